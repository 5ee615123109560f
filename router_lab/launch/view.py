"""The progress of a grid: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from router_lab.runs.folder import RunDir
from router_lab.runs.state import RunState, number, read_state
from router_lab.runs.table import Line, line, table
from router_lab.runs.text import duration


class View:
    """Shows runs as they start, progress and end; reads status.json only while they run.

    Args:
        places: how many run at a time, for the time left.
        report_every: seconds between lines about running runs, outside a terminal.
    """

    def __init__(
        self, places: int, report_every: float = 30.0, console: Console | None = None
    ) -> None:
        self.console = console or Console()
        self.places = places
        self.report_every = report_every
        self.counts: Counter[str] = Counter()
        self.ended_rows: list[Line] = []
        self.durations: list[float] = []  # seconds, of finished runs
        self.started_at: dict[RunDir, float] = {}
        self.reported_at = time.monotonic()
        terminal = self.console.is_terminal
        self.live = Live(console=self.console, auto_refresh=False) if terminal else None

    def __enter__(self) -> View:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self.live:
            self.live.stop()

    def started(self, run: RunDir) -> None:
        self.started_at[run] = time.monotonic()
        self._print(f"started      {run.name}")

    def ended(self, run: RunDir, state: str, reason: str | None) -> None:
        self.counts[state] += 1
        seconds = time.monotonic() - self.started_at[run]
        if state == "finished":
            self.durations.append(seconds)
        self.ended_rows.append(line([replace(_state(run), state=state, reason=reason)], seconds))
        self._print(self.ended_rows[-1].plain())

    def update(self, running: Sequence[RunDir], waiting: int, stopping: bool = False) -> None:
        """Call about twice a second."""
        if self.live:
            self.live.update(self.render(running, waiting, stopping), refresh=True)
        elif running and time.monotonic() - self.reported_at > self.report_every:
            self.reported_at = time.monotonic()
            for run in running:
                self._print(line([_state(run)]).plain())

    def render(self, running: Sequence[RunDir], waiting: int, stopping: bool) -> RenderableType:
        rows = [line([_state(run)]) for run in running]
        room = max(self.console.height - len(rows) - 4, 2)
        head = f"{self.counts['finished']} done, {len(running)} running, "
        head += f"{self.counts['failed']} failed, {waiting} waiting"
        if stopping:
            head += "; stopping: the runs write their checkpoints (Ctrl-C again kills them)"
        elif (left := self.seconds_left(running, waiting)) is not None:
            head += f"; about {duration(left)} left"
        return Group(table(self.ended_rows[-room:] + rows), Text(head, style="bold"))

    def seconds_left(self, running: Sequence[RunDir], waiting: int) -> float | None:
        """Seconds until the whole grid is done; None until a run can estimate its own."""
        left = {run: number(_state(run).status, "seconds_left") for run in running}
        estimates = {run: seconds for run, seconds in left.items() if seconds is not None}
        if not waiting:
            return max(estimates.values(), default=None)
        durations = self.durations or [
            time.monotonic() - self.started_at[run] + seconds for run, seconds in estimates.items()
        ]
        if not durations:
            return None
        return (sum(estimates.values()) + waiting * mean(durations)) / self.places

    def _print(self, text: str) -> None:
        """Prints a line outside a terminal, where there is no table."""
        if not self.live:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)


def _state(run: RunDir) -> RunState:
    """The state of a run that this launch trains; its files may not say yet that it is running."""
    state = read_state(run.folder)
    status = {**state.status, "arm": run.arm, "seed": run.seed}
    return replace(state, state="running", reason=None, status=status)
