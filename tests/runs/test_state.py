"""One reading of a run's state, on this machine and from another."""

from __future__ import annotations

import json
import math
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fake_runs import ARMS, result_of, status_of, write_run

from router_lab.runs import status as status_module
from router_lab.runs.state import SILENT_SECONDS, number, read_state, seconds_silent
from router_lab.runs.status import heartbeat, lock, write_json, write_status

HERE = socket.gethostname()
LONG_AGO = "2020-01-01T00:00:00Z"


def state(folder: Path, status: dict[str, object], now: float | None = None) -> tuple[str, ...]:
    write_json(folder / "status.json", status)
    read = read_state(folder, now)
    return read.state, str(read.reason)


def test_a_run_here_is_lost_when_nobody_holds_its_lock(tmp_path: Path) -> None:
    here = status_of("a", 0, "running", host=HERE, updated=LONG_AGO)
    assert state(tmp_path, here) == ("lost", "its process died without reporting")
    with lock(tmp_path):
        assert read_state(tmp_path).state == "running"


def test_a_run_elsewhere_is_lost_when_it_is_silent(tmp_path: Path) -> None:
    there = status_of("a", 0, "running", updated="2025-01-01T00:00:00+00:00")
    then = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
    assert state(tmp_path, there, then + SILENT_SECONDS - 1)[0] == "running"
    assert state(tmp_path, there, then + 1900) == ("lost", "silent for 31 min 40 s on elsewhere")
    assert state(tmp_path, {**there, "updated": None}, then)[0] == "lost"


@pytest.mark.parametrize("reported", ["failed", "interrupted"])
def test_an_end_is_as_reported_until_locked_again(tmp_path: Path, reported: str) -> None:
    ended = status_of("a", 3, reported, reason="why", step=7, seconds_left=None)
    assert state(tmp_path, ended) == (reported, "why")
    read = read_state(tmp_path)
    assert (read.arm, read.seed, read.progress) == ("a", 3, "7 of 200")
    with lock(tmp_path):
        assert read_state(tmp_path).state == "running"


def test_files_that_cannot_be_read_or_are_missing(tmp_path: Path) -> None:
    assert read_state(tmp_path / "nowhere").state == "new"
    assert state(tmp_path, {"started": LONG_AGO})[0] == "new"  # the launcher says when it began
    assert state(tmp_path, status_of("a", 0, "finished"))[0] == "unreadable"
    (tmp_path / "status.json").write_text('{"state": "run')
    assert "status.json cannot be read" in str(read_state(tmp_path).reason)
    folder = write_run(tmp_path, result_of("mlp", ARMS["mlp"], 0))
    read = read_state(folder)
    assert (read.state, read.bits_per_byte) == ("finished", read.result["quality"]["bits_per_byte"])
    (folder / "result.json").write_text("[]")
    assert read_state(folder).reason == "result.json contains no JSON object"


def test_a_run_says_that_it_is_alive_without_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_module, "HEARTBEAT", 0.01)
    write_status(tmp_path, state="running", step=3)
    before = read_state(tmp_path).status["updated"]
    with heartbeat(tmp_path):
        while (beaten := read_state(tmp_path).status)["updated"] == before:
            pass
    assert (beaten["state"], beaten["step"]) == ("running", 3)
    after = (tmp_path / "status.json").read_bytes()
    assert (tmp_path / "status.json").read_bytes() == after


def test_silence_is_infinite_without_a_time() -> None:
    assert seconds_silent({}) == math.inf
    assert seconds_silent({"updated": "yesterday"}) == math.inf
    assert seconds_silent({"updated": "1970-01-01T00:00:10"}, now=30.0) == 20.0


def test_number_reads_only_finite_numbers() -> None:
    record = json.loads('{"a": {"b": 1.5, "c": NaN, "d": true, "e": "1"}, "f": null}')
    assert number(record, "a.b") == 1.5
    assert [number(record, path) for path in ("a.c", "a.d", "a.e", "f", "f.g", "z.y")] == [None] * 6
