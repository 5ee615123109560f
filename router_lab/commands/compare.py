"""`router-lab compare DIR…`: the comparison on the terminal and in files."""

from __future__ import annotations

import inspect
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router_lab.errors import UserError
from router_lab.report.collect import LeftOut, collect
from router_lab.report.comparison import Comparison, compare_arms
from router_lab.runs.text import count, listing

if TYPE_CHECKING:
    from rich.console import Console

SIZE = r"\d+(\.\d+)?x\d+(\.\d+)?"
MOST_LEFT_OUT = 12  # lines on the terminal; the page has all


def compare(
    dirs: Sequence[str | Path],
    out: str | Path | None = None,
    size: str | None = None,
    versions: str = "newest",
    **options: Any,
) -> None:
    """Print the comparison of all finished runs under `dirs` and write it as files.

    Into `out` (the first folder's `report/` unless given) go report.html; table.md, .tex and .csv;
    runs.csv and pairs.csv (docs/result.md); runs.parquet if pyarrow is installed; and the figures
    that have data, each as .png, .svg and .pdf.

    Args:
        size: of the figures in inches, `6x4`.
        versions: of each arm, `newest` or `all`.
        options: see `compare_arms`.

    Raises UserError for a folder that is missing or contains no finished run, or a wrong option.
    """
    from router_lab.report.figures import ENDINGS, write_figures
    from router_lab.report.html import page
    from router_lab.report.rows import arm_rows, csv_text, pair_rows, run_rows, write_parquet
    from router_lab.report.table import latex, markdown

    if not dirs:
        raise UserError("nothing to compare: give a folder that contains runs, such as runs/")
    inches = _inches(size) if size else None
    comparison = compare_arms(collect(dirs, versions), **options)
    made_by = command(dirs, **options, versions=versions, size=size, out=out)
    files = {
        "report.html": page(comparison, made_by),
        "table.md": markdown(comparison),
        "table.tex": latex(comparison),
        "table.csv": csv_text(arm_rows(comparison)),
        "runs.csv": csv_text(run_rows(comparison)),
        "pairs.csv": csv_text(pair_rows(comparison)),
    }
    folder = Path(out) if out is not None else Path(dirs[0]) / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be made: {error.strerror}") from None
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    written = [*files]
    if write_parquet(run_rows(comparison), folder / "runs.parquet"):
        written.append("runs.parquet")
    written += [
        f"{name}.{'/.'.join(ENDINGS)}" for name in write_figures(comparison, folder, inches)
    ]
    _print(comparison)
    _console().print(
        f"\nWritten to {folder}: {listing(written, 12)}", highlight=False, markup=False
    )


def command(dirs: Sequence[str | Path], **options: Any) -> str:
    """The command line that makes this comparison; options with their default are left out."""
    words = ["router-lab", "compare", *map(str, dirs)]
    defaults = inspect.signature(compare_arms).parameters
    for name, value in options.items():
        default = "newest" if name == "versions" else name in defaults and defaults[name].default
        if value and value != default:
            text = str(value) if isinstance(value, str | Path) else ",".join(value)
            words += [f"--{'metric' if name == 'metrics' else name}", text]
    return shlex.join(words)


def _inches(size: str) -> tuple[float, float]:
    width, height = map(float, size.split("x")) if re.fullmatch(SIZE, size) else (0, 0)
    if not 1 <= min(width, height) <= max(width, height) <= 50:
        raise UserError(f"--size {size} is no size: write width x height in inches, such as 6x4")
    return width, height


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
