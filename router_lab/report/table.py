"""The comparison as tables: terminal (rich), Markdown and LaTeX."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from router_lab.report.columns import COST, Cell, Table, tables
from router_lab.report.comparison import Comparison
from router_lab.report.notes import notes
from router_lab.runs.text import count

if TYPE_CHECKING:
    from rich.console import Console


def print_table(comparison: Comparison, console: Console) -> None:
    """All tables, cut into pieces if the terminal is narrow, and the notes below."""
    from rich.table import Table
    from rich.text import Text

    for made in tables(comparison):
        for piece in _pieces(made, console.width):
            table = Table(box=None, header_style="bold", pad_edge=False)
            for index in piece:
                justify: Literal["left", "right"] = "right" if index else "left"
                table.add_column(Text(made.titles[index]), justify=justify, no_wrap=True)
            for cells, row in zip(made.rows, comparison.in_order, strict=True):
                shown = [Text(cells[i].text, "bold" if cells[i].strong else "") for i in piece]
                table.add_row(*shown, style="dim" if row is comparison.baseline else None)
            console.print(table)
            console.print()
    for note in notes(comparison):
        console.print(note, style="dim", highlight=False, markup=False)


def _pieces(table: Table, width: int) -> list[list[int]]:
    """Columns that fit side by side, the first one (the arm) in every piece."""
    texts = [table.titles, *([cell.text for cell in row] for row in table.rows)]
    sizes = [max(map(len, column)) + 2 for column in zip(*texts, strict=True)]
    pieces = [[0]]
    for index in range(1, len(sizes)):
        if sum(sizes[i] for i in pieces[-1]) + sizes[index] > width + 2 and len(pieces[-1]) > 1:
            pieces.append([0])
        pieces[-1].append(index)
    return pieces


def markdown(comparison: Comparison) -> str:
    """All tables and the notes, for a README."""
    parts = []
    for table in tables(comparison):
        rule = ["---", *("--:" for _ in table.titles[1:])]
        rows = [
            [f"**{c.text}**" if c.strong else c.text.replace("|", "\\|") for c in row]
            for row in table.rows
        ]
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in (table.titles, rule, *rows)))
    parts.append("\n".join(f"- {note}" for note in notes(comparison)))
    return "\n\n".join(parts).strip() + "\n"


def latex(comparison: Comparison) -> str:
    """A table environment with caption and label for each table; the notes as comments.

    The best value of a column is bold; a star marks a significant difference.
    """
    parts = [r"% \usepackage{booktabs}"]
    label = re.sub(r"[^a-z0-9]+", "-", comparison.name.lower()).strip("-")
    for table in tables(comparison):
        seeds = count(len(comparison.seeds), "seed")
        caption = (
            f"{comparison.name}: means over {seeds} with 95% intervals. Bold: best; *: p < 0.05."
        )
        if table.name == COST:
            caption = f"{comparison.name}: what the arms cost. Bold: best."
        head, *body = (
            " & ".join(map(_tex, row)) + r" \\" for row in ([*map(Cell, table.titles)], *table.rows)
        )
        code = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(Cell(caption))}}}",
            rf"\label{{tab:{label}-{table.name.replace('_', '-')}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.titles) - 1)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        parts.append("\n".join(code))
    parts.append("\n".join(f"% {note}" for note in notes(comparison)))
    return "\n\n".join(parts) + "\n"


TEX = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$",
    "Δ": r"$\Delta$", "±": r"$\pm$", "−": r"$-$", "–": "--", "†": r"$\dagger$", "≠": r"$\neq$",
    "↘": r"$\searrow$", ">": "$>$",
}  # fmt: skip


def _tex(cell: Cell) -> str:
    text = "".join(TEX.get(character, character) for character in cell.text)
    return (rf"\textbf{{{text}}}" if cell.best else text) + "$^*$" * cell.strong
