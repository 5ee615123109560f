"""The comparison as tables: terminal (rich), Markdown, CSV and LaTeX; the CSV has every number."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from router_lab.report.columns import tables
from router_lab.report.comparison import Comparison, Row
from router_lab.report.notes import notes
from router_lab.report.statistics import Estimate, estimate

if TYPE_CHECKING:
    from rich.console import Console

BOLD = "\0"  # marks a bold cell; no cell contains it otherwise


def print_table(comparison: Comparison, console: Console) -> None:
    """Both tables, cut into pieces if the terminal is narrow, and the notes below."""
    from rich.table import Table
    from rich.text import Text

    for titles, lines in tables(comparison, lambda cell: f"{BOLD}{cell}"):
        for piece in _pieces(titles, lines, console.width):
            table = Table(box=None, header_style="bold", pad_edge=False)
            for index in piece:
                justify: Literal["left", "right"] = "right" if index else "left"
                table.add_column(Text(titles[index]), justify=justify, no_wrap=True)
            for cells, row in zip(lines, comparison.rows, strict=True):
                shown = [
                    Text(cells[i].lstrip(BOLD), "bold" if BOLD in cells[i] else "") for i in piece
                ]
                table.add_row(*shown, style="dim" if row is comparison.baseline else None)
            console.print(table)
            console.print()
    for note in notes(comparison):
        console.print(note, style="dim", highlight=False, markup=False)


def _pieces(titles: Sequence[str], lines: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Columns that fit side by side, the first one (the arm) in every piece."""
    sizes = [max(map(len, column)) + 2 for column in zip(titles, *lines, strict=True)]
    pieces = [[0]]
    for index in range(1, len(titles)):
        if sum(sizes[i] for i in pieces[-1]) + sizes[index] > width + 2 and len(pieces[-1]) > 1:
            pieces.append([0])
        pieces[-1].append(index)
    return pieces


def markdown(comparison: Comparison) -> str:
    """Both tables and the notes, for a README."""
    parts = []
    for titles, lines in tables(comparison, lambda cell: f"**{cell}**"):
        rule = ["---", *("--:" for _ in titles[1:])]
        safe = [[cells[0].replace("|", "\\|"), *cells[1:]] for cells in lines]
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *safe)))
    parts.append("\n".join(f"- {note}" for note in notes(comparison)))
    return "\n\n".join(parts).strip() + "\n"


def latex(comparison: Comparison) -> str:
    """Both tables as tabulars with booktabs rules; the notes as comments."""
    parts = []
    for titles, lines in tables(comparison, lambda cell: f"\0{cell}\1"):
        head, *body = (" & ".join(map(_tex, cells)) + r" \\" for cells in (titles, *lines))
        begin = rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}"
        code = [begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
        parts.append("\n".join(code))
    parts.append("\n".join(f"% {note}" for note in notes(comparison)))
    return "\n\n".join(parts) + "\n"


TEX = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$",
    "Δ": r"$\Delta$", "±": r"$\pm$", "−": r"$-$", "–": "--", "†": r"$\dagger$", "≠": r"$\neq$",
    "↘": r"$\searrow$", "\0": r"\textbf{", "\1": "}",
}  # fmt: skip


def _tex(cell: str) -> str:
    return "".join(TEX.get(character, character) for character in cell)


def csv_table(comparison: Comparison) -> str:
    """One line per arm with every number: mean, standard deviation over seeds, intervals."""
    lines: list[dict[str, object]] = []
    for row in comparison.rows:
        difference = row.difference
        line: dict[str, object] = {
            "arm": row.name,
            "baseline": comparison.baseline.name,
            "lookahead": row.arm.lookahead,
            "matched": not row.unmatched,
            "converged": row.converged,
            "seeds": row.quality.n,
            "seeds_missing": row.arm.missing,
            **_spread("bits_per_byte", row.quality),
            "bits_per_byte_half95": row.quality.half,
            "difference": difference and difference.mean,
            "difference_half95": difference and difference.half,
            "difference_seeds": difference and difference.n,
            "p": difference and difference.p,
            "p_holm": difference and difference.p_holm,
            "bits_per_byte_at_equal_budget": row.at_equal,
            "fall_in_last_fifth": row.falling,
        }
        for path in _number_paths(row):
            line |= _spread(
                path.replace("routing.mean.", ""), estimate([*row.arm.values(path).values()])
            )
        lines.append(line)
    fields = list(dict.fromkeys(key for line in lines for key in line))
    used = [key for key in fields if any(line.get(key) not in (None, "") for line in lines)]
    out = io.StringIO()
    writer = csv.DictWriter(out, used, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _spread(name: str, value: Estimate) -> dict[str, object]:
    return {name: value.mean, f"{name}_sd": value.sd}


def _number_paths(row: Row) -> Sequence[str]:
    """Every number of a result but the quality itself, as dotted paths."""
    paths = ["flops_per_token"]
    for section in ("params", "train", "quality", "routing.mean", "probe", "match"):
        record: object = row.arm.first
        for key in section.split("."):
            record = record.get(key) if isinstance(record, dict) else None
        paths += [f"{section}.{key}" for key in (record if isinstance(record, dict) else {})]
    return [path for path in paths if row.arm.values(path) and path != "quality.bits_per_byte"]
