"""A progress bar for data that are made once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(
    label: str, total: float | None, after: float = 1.0
) -> Iterator[Callable[[float], None]]:
    """A bar on stderr for work that takes more than `after` seconds; one line off a terminal.

    with progress("stdlib: labelling", total=100) as advance:
        advance(1)
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(label, total=total)
    due = time.monotonic() + after

    def advance(amount: float) -> None:
        nonlocal due
        bar.advance(task, amount)
        if time.monotonic() >= due:
            due = float("inf")
            if bar.console.is_terminal:
                bar.start()
            else:
                print(f"{label} (once; kept in the cache)", file=sys.stderr)

    try:
        yield advance
    finally:
        bar.live.stop()
