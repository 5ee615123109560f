"""`router-lab compare DIR…`: the comparison on the terminal and in files."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from router_lab.errors import UserError
from router_lab.report.collect import LeftOut, collect
from router_lab.report.comparison import Comparison, compare_arms
from router_lab.runs.text import count, listing

if TYPE_CHECKING:
    from rich.console import Console

MOST_LEFT_OUT = 12  # lines on the terminal; the page has all


def compare(
    dirs: Sequence[str | Path],
    baseline: str | None = None,
    by: str = "tokens",
    out: str | Path | None = None,
    columns: Sequence[str] = (),
    versions: str = "newest",
) -> None:
    """Print the comparison of all finished runs under `dirs` and write it as files.

    Into `out` (the first folder's `report/` unless given) go table.md, table.csv, table.tex,
    report.html and the figures that there is data for, each as .png and .svg.

    Args:
        columns: more numbers to show, see `compare_arms`.
        versions: of each arm, `newest` or `all`.

    Raises UserError for a folder that is missing or holds no finished run, an unknown baseline,
    budget in `by` (tokens, flops, seconds) or column.
    """
    from router_lab.report.figures import write_figures
    from router_lab.report.html import page
    from router_lab.report.table import csv_table, latex, markdown

    if not dirs:
        raise UserError("nothing to compare: give a folder that holds runs, such as runs/")
    comparison = compare_arms(collect(dirs, versions), baseline, by, columns)
    folder = Path(out) if out is not None else Path(dirs[0]) / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be made: {error.strerror}") from None
    files = {
        "table.md": markdown(comparison),
        "table.csv": csv_table(comparison),
        "table.tex": latex(comparison),
        "report.html": page(comparison, command(dirs, baseline, by, out, columns, versions)),
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    figures = write_figures(comparison, folder)
    _print(comparison)
    written = [*files, *(f"{name}.png/.svg" for name in figures)]
    _console().print(f"\nWritten to {folder}: {listing(written, 9)}", highlight=False, markup=False)


def command(
    dirs: Sequence[str | Path],
    baseline: str | None,
    by: str,
    out: str | Path | None,
    columns: Sequence[str] = (),
    versions: str = "newest",
) -> str:
    """The command line that makes this comparison."""
    words = ["router-lab", "compare", *map(str, dirs)]
    if baseline is not None:
        words += ["--baseline", baseline]
    words += ["--by", by]
    if columns:
        words += ["--columns", ",".join(columns)]
    if versions != "newest":
        words += ["--versions", versions]
    if out is not None:
        words += ["--out", str(out)]
    return shlex.join(words)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    # A piped table must not be cut at 80 columns.
    return console if console.is_terminal else Console(width=160)


def _print(comparison: Comparison) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from router_lab.report.table import print_table
    from router_lab.report.verdict import verdict

    console = _console()
    said = verdict(comparison)
    console.print(said.question, style="dim", highlight=False, markup=False)
    console.print(said.answer, style="bold", highlight=False, markup=False)
    for reason in said.reasons:
        console.print(Padding(Text(reason), (0, 0, 0, 2)))
    console.print()
    print_table(comparison, console)
    if comparison.left_out:
        console.print(f"\nLeft out: {count(len(comparison.left_out), 'run')}", style="bold")
        for line in _left_out_lines(comparison.left_out):
            console.print(Padding(Text(line), (0, 0, 0, 2)))


def _left_out_lines(runs: Sequence[LeftOut]) -> list[str]:
    """A line for each state and reason, with the runs that share it."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for run in runs:
        seed = "" if run.seed is None else f" seed {run.seed}"
        groups[run.state, run.reason].append(f"{run.arm}{seed}")
    lines = [
        f"{state} – {listing(sorted(names), 4)}: {reason}"
        for (state, reason), names in sorted(groups.items())
    ]
    if len(lines) > MOST_LEFT_OUT:
        lines[MOST_LEFT_OUT:] = [f"… and {len(lines) - MOST_LEFT_OUT} more, see report.html"]
    return lines
