"""Which runs are of older versions of their arm."""

from __future__ import annotations

from pathlib import Path

from router_lab.runs.state import RunState
from router_lab.runs.versions import replaced


def run(folder: Path, arm: str, fingerprint: str, started: int, overrides: str = "") -> RunState:
    path = folder / f"{arm}-{fingerprint}-{started}"
    path.mkdir(parents=True)
    (path / "overrides.yaml").write_text(overrides)
    status = {"arm": arm, "fingerprint": fingerprint, "started": f"2026-11-24T10:00:{started:02}"}
    return RunState(path, "finished", None, status)


def test_the_version_that_started_last_replaces_the_others(tmp_path: Path) -> None:
    old = [run(tmp_path / "g", "a", "1111", second) for second in (0, 1)]
    new = run(tmp_path / "g", "a", "2222", 2)
    other_arm, other_grid = run(tmp_path / "g", "b", "3333", 0), run(tmp_path / "h", "a", "4444", 0)
    states = [new, *old, other_arm, other_grid]
    assert replaced(states) == {one.folder: "2222" for one in old}
    assert replaced([*old, other_arm]) == {}


def test_outside_of_grids_other_overrides_are_another_arm(tmp_path: Path) -> None:
    single = tmp_path / "single"
    first = run(single, "a", "1111", 0, "- router.k=1\n- seed=0\n")
    again = run(single, "a", "2222", 1, "- router.k=1\n- seed=1\n")
    other = run(single, "a", "3333", 2, "- router.k=2\n- seed=0\n")
    assert replaced([first, again, other]) == {first.folder: "2222"}
