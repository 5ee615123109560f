"""The table of runs that `router-lab status` and the launcher print."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from router_lab.runs.state import RunState, number
from router_lab.runs.text import count, duration, fixed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STYLE = {"running": "cyan", "failed": "red", "lost": "red", "unreadable": "red",
         "interrupted": "yellow", "finished": "green"}  # fmt: skip


class Line(NamedTuple):
    """The cells of a row."""

    arm: str
    seeds: str
    state: str
    step: str
    quality: str
    max_vio: str
    note: str

    def plain(self) -> str:
        """One line of text, for output that is not a terminal."""
        cells = [
            f"{self.state:<12} {self.arm} s{self.seeds}",
            self.step and f"step {self.step}",
            self.quality,
            self.max_vio and f"MaxVio {self.max_vio}",
            self.note,
        ]
        return "  ".join(cell for cell in cells if cell)


def line(runs: Sequence[RunState], took: float | None = None) -> Line:
    """The row of runs of one arm that share state and reason.

    Args:
        took: seconds from start to end, if known.
    """
    first = runs[0]
    seeds = ", ".join("–" if run.seed is None else str(run.seed) for run in runs)
    finished = first.state == "finished"
    note = first.reason or ""
    if first.state == "running":
        left = number(first.status, "seconds_left")
        note = "starting" if not first.status.get("step") else ""
        note = note if left is None else f"{duration(left)} left"
    elif finished and took is not None:
        note = f"in {duration(took)}"
    quality = fixed(_mean(run.bits_per_byte for run in runs), 3)
    return Line(
        first.arm,
        seeds if len(runs) < 6 else count(len(runs), "seed"),
        first.state,
        "" if finished else ", ".join(dict.fromkeys(run.progress for run in runs)).strip("?"),
        quality and f"{quality} bits/{first.unit}",
        fixed(_mean(run.max_vio for run in runs), 2),
        note,
    )


def console() -> Console:
    """For tables: as wide as the terminal or COLUMNS, else 140 characters."""
    from rich.console import Console

    plain = Console()
    return plain if plain.is_terminal or "COLUMNS" in os.environ else Console(width=140)


def table(lines: Iterable[Line]) -> Table:
    """For a terminal."""
    from rich.table import Table
    from rich.text import Text

    result = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("Arm", "Seeds", "State", "Step", "Quality", "MaxVio", ""):
        result.add_column(title, justify="left" if title in ("Arm", "State", "") else "right")
    for one in lines:
        cells = [Text(cell) for cell in one]
        cells[2].style = STYLE.get(one.state, "")
        result.add_row(*cells)
    return result


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
