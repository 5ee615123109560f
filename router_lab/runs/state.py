"""The state of a run, for the launcher, the report and the commands."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from router_lab.runs.status import HEARTBEAT, is_locked, read_record
from router_lab.runs.text import duration

SILENT_SECONDS = 6 * HEARTBEAT
"""A run on another machine counts as dead after so long without a new status."""


@dataclass(frozen=True)
class RunState:
    """A run's folder at present.

    Attributes:
        state: new, running, finished, failed, interrupted, lost or unreadable. *Lost*: its status
            is `running`, but no process on this machine holds its lock, or the other machine that
            trains it has been silent for `SILENT_SECONDS`.
        reason: why it is not finished, if known.
        status, result: status.json and result.json; empty if they are missing or broken.
    """

    folder: Path
    state: str
    reason: str | None = None
    status: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def arm(self) -> str:
        return str(self.result.get("arm") or self.status.get("arm") or self.folder.name)

    @property
    def seed(self) -> int | None:
        seed = number({**self.status, **self.result}, "seed")
        return None if seed is None else int(seed)

    @property
    def fingerprint(self) -> str:
        return str(self.result.get("fingerprint") or self.status.get("fingerprint") or "")

    @property
    def bits_per_byte(self) -> float | None:
        """Of the last validation."""
        if self.result:
            return number(self.result, "quality.bits_per_byte")
        return number(self.status, "bits_per_byte")

    @property
    def unit(self) -> str:
        """What its quality is in bits per: byte, or token where bytes are unknown."""
        return str((self.result.get("data") or self.status).get("unit") or "byte")

    @property
    def max_vio(self) -> float | None:
        """Of the last validation, the mean over the layers."""
        if self.result:
            return number(self.result, "routing.mean.max_vio")
        return number(self.status, "max_vio")

    @property
    def progress(self) -> str:
        """`40 of 200` steps; only the first number if the budget is in seconds."""
        step, steps = number(self.status, "step"), number(self.status, "steps")
        done = "?" if step is None else f"{step:.0f}"
        return done if not steps else f"{done} of {steps:.0f}"


def read_state(folder: Path, now: float | None = None) -> RunState:
    """Reads the run's folder, also while the run is writing to it.

    Args:
        now: Unix time, for how long a run on another machine has been silent; None: the clock's.
    """
    result, broken_result = read_record(folder / "result.json")
    if result:
        return RunState(folder, "finished", None, read_record(folder / "status.json")[0], result)
    status, broken_status = read_record(folder / "status.json")

    def state(name: str, reason: str | None = None) -> RunState:
        return RunState(folder, name, reason, status)

    if is_locked(folder):
        return state("running")
    if broken := broken_result or broken_status:
        return state("unreadable", broken)
    reported = status.get("state")
    if reported is None:
        return state("new", "it has not begun")
    if reported == "running":
        if not elsewhere(status):
            return state("lost", "its process died without reporting")
        silent = seconds_silent(status, now)
        if silent > SILENT_SECONDS:
            since = duration(silent) if silent < math.inf else "ever"
            return state("lost", f"silent for {since} on {status['host']}")
        return state("running")
    if reported in ("failed", "interrupted"):
        reason = status.get("reason")
        return state(reported, None if reason is None else str(reason))
    return state("unreadable", f"its status is {reported}, but there is no result.json")


def elsewhere(status: Mapping[str, Any]) -> bool:
    """Whether the run was last trained on another machine, whose lock may be invisible here."""
    return status.get("host") not in (None, socket.gethostname())


def seconds_silent(status: Mapping[str, Any], now: float | None = None) -> float:
    """Seconds since the run last wrote its status; infinite if the time is missing."""
    try:
        then = datetime.fromisoformat(str(status.get("updated")))
    except ValueError:
        return math.inf
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return (time.time() if now is None else now) - then.timestamp()


def number(record: Any, path: str) -> float | None:
    """The finite number at a dotted path of nested dicts, or None: `number(r, "quality.loss")`."""
    for key in path.split("."):
        if not isinstance(record, dict):
            return None
        record = record.get(key)
    if isinstance(record, bool) or not isinstance(record, int | float):
        return None
    return float(record) if math.isfinite(record) else None
