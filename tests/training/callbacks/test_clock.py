"""How old a process is when its first step ends."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import pytest
from helpers import train

from router_lab.training.callbacks.clock import seconds_alive

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


@linux
def test_a_forked_process_is_younger_than_its_parent() -> None:
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        child = pool.apply(seconds_alive)
    parent = seconds_alive()
    assert child is not None and parent is not None and 0 <= child < parent


def test_unknown_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert seconds_alive() is None


@linux
def test_a_result_says_when_training_was_under_way(tmp_path: Path) -> None:
    result, _ = train(tmp_path, "budget=tokens:256")
    after = seconds_alive()
    assert after is not None and 0 < result["train"]["setup_seconds"] < after
    assert result["train"]["peak_memory_bytes"] > 2**20
