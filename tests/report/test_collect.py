"""What is found on disk, what is left out, and why."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from fake_runs import ARMS, result_of, write_grid, write_run, write_status

from router_lab.errors import UserError
from router_lab.report.collect import Collection, collect, find_runs


def reasons(collection: Collection) -> dict[str, str]:
    return {f"{run.arm}/{run.seed}": f"{run.state}: {run.reason}" for run in collection.left_out}


def now() -> str:
    return datetime.now(UTC).isoformat()


def test_every_finished_run_is_read(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=range(2))
    found = collect([tmp_path])
    assert {(run.arm, run.seed) for run in found.runs} == {(arm, s) for arm in ARMS for s in (0, 1)}
    assert found.left_out == ()


def test_each_run_without_a_result_is_left_out_with_its_reason(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=[0])
    write_status(tmp_path, "mlp", 1, "failed", reason="ValueError: boom")
    write_status(tmp_path, "mlp", 2, "running", step=40, updated=now())
    write_status(tmp_path, "mlp", 3, "interrupted", step=70)
    write_status(tmp_path, "mlp", 4, "finished")
    write_status(tmp_path, "mlp", 5, "running", updated="2020-01-01T00:00:00+00:00")
    (tmp_path / "first_look" / "mlp-s6-half").mkdir()
    (tmp_path / "first_look" / "mlp-s6-half" / "status.json").write_text('{"state": "run')
    (tmp_path / "first_look" / "mlp-s7-bare").mkdir()
    (tmp_path / "first_look" / "mlp-s7-bare" / "overrides.yaml").write_text("[]")
    found = collect([tmp_path])
    assert len(found.runs) == len(ARMS)
    why = reasons(found)
    assert why["mlp/1"] == "failed: ValueError: boom"
    assert why["mlp/2"] == "running: at step 40 of 200"
    assert why["mlp/3"] == "interrupted: stopped at step 70 of 200"
    assert why["mlp/4"] == "unreadable: its status is finished, but there is no result.json"
    assert why["mlp/5"].startswith("lost: silent for")
    assert "cannot be read" in why["mlp-s6-half/None"]
    assert why["mlp-s7-bare/None"] == "new: it has not begun"
    assert len(why) == 7


def test_results_that_cannot_be_compared_are_left_out(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=[0])
    odd = result_of("mlp", ARMS["mlp"], 1)
    write_run(tmp_path, {**odd, "schema": 2})
    write_run(tmp_path, {**odd, "seed": 2, "quality": {"bits_per_byte": float("nan")}})
    write_run(tmp_path, {**odd, "seed": 3, "data": {"name": "text", "fingerprint": "beef" * 4}})
    found = collect([tmp_path])
    assert len(found.runs) == len(ARMS)
    why = reasons(found)
    assert why["mlp/1"] == "other schema: its result.json has schema 2; this version reads 1"
    assert why["mlp/2"] == "diverged: it finished, but its quality is not a number"
    assert why["mlp/3"] == ("other data: trained on text beefbeef; most runs on stdlib 3f2a9c0d")


def test_unknown_and_missing_optional_keys_are_tolerated(tmp_path: Path) -> None:
    bare = {"schema": 1, "arm": "a", "seed": 0, "fingerprint": "f", "grid": None, "new": [1],
            "quality": {"bits_per_byte": 2.0}}  # fmt: skip
    write_run(tmp_path, bare)
    (run,) = collect([tmp_path]).runs
    assert run.grid == "" and run.number("params.active") is None


def test_a_folder_given_twice_or_linked_is_read_once(tmp_path: Path) -> None:
    write_grid(tmp_path / "runs", seeds=[0])
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs", target_is_directory=True)
    (tmp_path / "link").symlink_to(tmp_path / "runs", target_is_directory=True)
    dirs = [tmp_path / "runs", tmp_path / "link", tmp_path / "runs" / "first_look"]
    assert len(find_runs(dirs)) == len(ARMS)


def test_one_run_may_be_named_directly(tmp_path: Path) -> None:
    folder = write_run(tmp_path, result_of("mlp", ARMS["mlp"], 0))
    (folder / "checkpoints").mkdir()
    assert find_runs([folder]) == [folder.resolve()]


def test_a_missing_folder_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder"):
        collect([tmp_path / "nowhere"])
