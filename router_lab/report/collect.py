"""Which runs there are, which can be compared, and why the others cannot."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router_lab.errors import UserError
from router_lab.runs.schema import SCHEMA
from router_lab.runs.state import RunState, number, read_state
from router_lab.runs.versions import replaced

RUN_FILES = {"result.json", "status.json", "overrides.yaml"}


@dataclass(frozen=True)
class Run:
    """A finished run: its `result.json`, when it started and when it was done.

    `started` is the time in status.json and, to order equal ones, the time at which the run wrote
    its configuration (Unix time); `done` is Unix time.
    """

    path: Path
    result: dict[str, Any]
    started: tuple[str, float] = ("", 0.0)
    done: float = 0.0

    @property
    def arm(self) -> str:
        return str(self.result["arm"])

    @property
    def seed(self) -> int:
        return int(self.result["seed"])

    @property
    def grid(self) -> str:
        return str(self.result.get("grid") or "")

    def number(self, path: str) -> float | None:
        return number(self.result, path)


@dataclass(frozen=True)
class LeftOut:
    """A run that takes no part in the comparison, and why."""

    path: Path
    arm: str
    seed: int | None
    state: str  # failed, running, interrupted, lost, diverged, other schema, other data, …
    reason: str
    fingerprint: str = ""


@dataclass(frozen=True)
class Collection:
    """All runs under some folders: those to compare and those left out."""

    dirs: tuple[Path, ...]
    runs: tuple[Run, ...]
    left_out: tuple[LeftOut, ...]


def find_runs(dirs: Sequence[str | Path]) -> list[Path]:
    """Every run's folder under the given ones, each once, in a stable order.

    Raises UserError for a folder that does not exist.
    """
    runs: dict[Path, None] = {}
    for folder in map(Path, dirs):
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: give one that holds runs, such as runs/")
        visited: set[Path] = set()
        for name, below, files in os.walk(folder, followlinks=True):
            path = Path(name).resolve()
            if path in visited:  # a symbolic link may lead back up
                below.clear()
            elif not RUN_FILES.isdisjoint(files):
                runs.setdefault(path)
                below.clear()  # checkpoints and event files, never other runs
            visited.add(path)
            below[:] = sorted(name for name in below if not name.startswith("."))
    return list(runs)


def collect(dirs: Sequence[str | Path], versions: str = "newest") -> Collection:
    """Read every run under the folders; safe while a grid is writing to them.

    Args:
        versions: `newest` leaves out the older versions of an arm; `all` keeps them.

    Bits per byte of different texts cannot be compared: only runs on the most common text are kept.

    Raises UserError for a folder that does not exist.
    """
    runs: list[Run] = []
    left_out: list[LeftOut] = []
    states = [read_state(path) for path in find_runs(dirs)]
    older = replaced(states) if versions == "newest" else {}
    for state in states:
        run = _sort_out(state, older.get(state.folder))
        if isinstance(run, Run):
            runs.append(run)
        else:
            left_out.append(run)
    most_common = Counter(map(_data, runs)).most_common(1)
    for run in runs:
        if _data(run) != most_common[0][0]:
            reason = f"trained on {_data(run)}; most runs on {most_common[0][0]}"
            left_out.append(LeftOut(run.path, run.arm, run.seed, "other data", reason))
    comparable = tuple(run for run in runs if _data(run) == most_common[0][0])
    return Collection(tuple(map(Path, dirs)), comparable, tuple(left_out))


def _data(run: Run) -> str:
    """The text that a run was trained on: its name and fingerprint."""
    data = run.result.get("data") or {}
    return f"{data.get('name')} {str(data.get('fingerprint'))[:8]}"


def _sort_out(read: RunState, newer: str | None) -> Run | LeftOut:
    result, status = read.result, read.status

    def left_out(state: str, reason: str) -> LeftOut:
        return LeftOut(read.folder, read.arm, read.seed, state, reason, read.fingerprint)

    if newer is not None:
        return left_out("older version", f"replaced by {newer[:8]}; --versions all shows both")
    if read.state != "finished":
        where = f"at step {read.progress}"
        default = where if read.state == "running" else f"stopped {where}"
        return left_out(read.state, read.reason or default)
    if result.get("schema") != SCHEMA:
        reason = f"its result.json has schema {result.get('schema')}; this version reads {SCHEMA}"
        return left_out("other schema", reason)
    if "arm" not in result or read.seed is None:
        return left_out("unreadable", "its result.json lacks the arm or the seed")
    if read.bits_per_byte is None:
        return left_out("diverged", "it finished, but its quality is not a number")
    started = (str(status.get("started") or ""), _written(read.folder / "config.yaml"))
    return Run(read.folder, result, started, _written(read.folder / "result.json"))


def _written(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0
