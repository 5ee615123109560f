"""Versions of an arm: the same arm of a grid, run again after its options or its code changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from router_lab.runs.folder import SINGLE
from router_lab.runs.state import RunState
from router_lab.runs.text import count, listing

Key = tuple[Path, str, str]
When = tuple[str, float]


def replaced(states: Sequence[RunState]) -> dict[Path, str]:
    """The folders of runs of older versions, with the fingerprint of the newest version.

    The newest version is the one whose last run started last. Runs outside of grids are versions
    of one arm only if their overrides are the same.
    """
    started: dict[Key, dict[str, When]] = defaultdict(dict)
    keys: dict[Path, Key] = {}
    for state in states:
        if state.fingerprint:
            keys[state.folder] = key = state.folder.parent, state.arm, _request(state)
            when = str(state.status.get("started") or ""), _written(state.folder)
            versions = started[key]
            versions[state.fingerprint] = max(versions.get(state.fingerprint, when), when)
    newest = {
        key: max(versions, key=lambda one: versions[one]) for key, versions in started.items()
    }
    return {
        state.folder: newest[keys[state.folder]]
        for state in states
        if state.folder in keys and state.fingerprint != newest[keys[state.folder]]
    }


def _written(folder: Path) -> float:
    """When the run wrote its result or else its status: Unix time, for runs that start together."""
    files = (folder / "result.json", folder / "status.json")
    return next((file.stat().st_mtime for file in files if file.exists()), 0.0)


def _request(state: RunState) -> str:
    """What distinguishes arms of one name outside of grids: the overrides without the seed."""
    if state.folder.parent.name != SINGLE:
        return ""
    overrides = state.folder / "overrides.yaml"
    lines = overrides.read_text().splitlines() if overrides.is_file() else []
    return "\n".join(line for line in lines if not line.startswith("- seed="))


def replaced_note(states: Sequence[RunState], older: Mapping[Path, str]) -> str:
    """Names the arms whose older versions are not shown."""
    arms = listing(sorted({state.arm for state in states if state.folder in older}))
    runs = count(len(older), "run")
    return f"Not shown: {runs} of older versions of {arms} (--versions all shows them)"
