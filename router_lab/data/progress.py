"""A progress bar for what is made once: shown only when it takes time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any


class Progress:
    """A bar on stderr for work that takes over a second; one line where it is no terminal.

    with Progress("stdlib: labelling", total=100) as advance:
        advance(1)
    """

    def __init__(self, label: str, total: float | None) -> None:
        self.label = label
        self.total = total
        self.done = 0.0
        self._shown_from = time.monotonic() + 1.0
        self._bar: Any = None

    def __enter__(self) -> Callable[[float], None]:
        return self._advance

    def _advance(self, amount: float) -> None:
        self.done += amount
        if self._bar is None and time.monotonic() > self._shown_from:
            self._show()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
        console = Console(stderr=True)
        if not console.is_terminal:
            print(f"{self.label} (once; kept in the cache)", file=sys.stderr)
            self._shown_from = float("inf")
            return
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task(self.label, total=self.total)
        self._bar.start()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
