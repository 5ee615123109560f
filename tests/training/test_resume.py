"""A run that was stopped, killed, or is limited by the clock, through the command line."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import router_lab.training.fit
from router_lab.commands.main import main
from router_lab.runs.state import read_state
from router_lab.training.callbacks import clock
from router_lab.training.task import LMTask

OPTIONS = ("match=total_params", "trainer.validations=4")
SECONDS = 1 / 64  # that a batch takes by the run's clock
STEPS = 18  # validations after 5, 9, 14 and 18
BUDGET = f"budget=tokens:{STEPS * 4 * 32}"


class Killed(BaseException):
    """Stands in for a process that is gone between two steps."""


class Run:
    """Launches of one run, and the steps that each of them trained, by a clock of its own."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.out = folder
        self.arguments = ["train", f"out={folder}", *tiny(*OPTIONS, *overrides)]
        self.trained: list[list[int]] = []
        self.now = 0.0

    def launch(self, at: int | None = None, do: Callable[[], Any] | None = None) -> int:
        """The exit code. At the beginning of the micro-batch `at`, `do` is called."""
        begin = LMTask.on_train_batch_start
        batches: list[int] = []
        self.trained.append(batches)

        def watched(task: LMTask, batch: Any, batch_idx: int) -> None:
            if batch_idx == at and do is not None:
                do()
            begin(task, batch, batch_idx)
            batches.append(batch_idx)
            self.now += SECONDS

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LMTask, "on_train_batch_start", watched)
            patch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: self.now))
            try:
                main(self.arguments)
            except SystemExit as end:
                return int(end.code or 0)
            except Killed:
                return -9
        return 0

    @property
    def folder(self) -> Path:
        (config,) = self.out.glob("*/*/config.yaml")
        return config.parent

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return found

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = torch.load(self.folder / "final.ckpt")
        return found

    def checkpoint(self) -> dict[str, Any]:
        path = self.folder / "checkpoints" / "last.ckpt"
        found: dict[str, Any] = torch.load(path, weights_only=False)
        return found


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def kill() -> None:
    raise Killed


def assert_same_end(run: Run, whole: Run) -> None:
    assert run.weights.keys() == whole.weights.keys()
    for name, value in whole.weights.items():
        assert run.weights[name].equal(value), name
    for key in ("quality", "routing", "saturation", "curve"):
        assert run.result[key] == whole.result[key], key
    assert run.result["curve"][-1]["seconds"] == run.result["train"]["seconds"]


def scalars(run: Run, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows."""
    events = EventAccumulator(str(run.folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


CASES = {
    # Noise, dropout, and a stop in the middle of an optimiser step.
    "noise": ("router=noisy_topk", "model.dropout=0.1", "trainer.accumulate=2",
              f"budget=tokens:{STEPS * 2 * 4 * 32}"),
    # A bias in a buffer that every step moves.
    "bias": ("router=loss_free", BUDGET),
    # Momentum, and whose turn it is.
    "muon": ("experiment=recipe", "optim.every=3", BUDGET),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_run_ends_the_same(case: str, tmp_path: Path) -> None:
    whole, run = Run(tmp_path / "whole", *CASES[case]), Run(tmp_path / "run", *CASES[case])
    assert whole.launch() == 0
    n = len(whole.trained[0])
    accumulate = n // STEPS
    assert whole.trained[0] == list(range(n)) and accumulate in (1, 2)
    assert [point["step"] for point in whole.result["curve"]] == [5, 9, 14, 18]

    assert run.launch(at=7 * accumulate, do=interrupt) == 130
    status = read_state(run.folder)
    assert (status.state, status.reason) == ("interrupted", "SIGINT")
    assert not (run.folder / "result.json").exists()
    first = run.checkpoint()
    assert first["global_step"] == 8  # the step of the signal was finished, then saved
    assert run.launch(at=13 * accumulate, do=interrupt) == 130  # a validation is due at its end
    assert [p["step"] for p in run.checkpoint()["callbacks"]["Evaluation"]["curve"]] == [5, 9, 14]
    assert run.launch() == 0
    assert [index for part in run.trained for index in part] == whole.trained[0]
    assert_same_end(run, whole)
    assert first["callbacks"]["Clock"]["seconds"] == 8 * accumulate * SECONDS
    assert run.result["train"]["seconds"] == n * SECONDS
    assert read_state(run.folder).state == "finished"
    assert not (run.folder / "checkpoints").exists()  # nothing to go on with


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    often = "trainer.log_every=1"
    whole, run = Run(tmp_path / "whole", BUDGET, often), Run(tmp_path / "run", BUDGET, often)
    assert whole.launch() == 0
    assert run.launch(at=12, do=kill) == -9
    assert run.checkpoint()["global_step"] == 9
    (run.folder / "checkpoints" / "draft.ckpt").write_bytes(b"half of one")
    assert run.launch() == 0
    assert run.trained == [list(range(12)), list(range(9, 18))]
    assert_same_end(run, whole)
    for tag in ("loss/train", "quality/bits_per_byte"):
        assert scalars(run, tag) == scalars(whole, tag)
    assert [tokens for tokens, _ in scalars(run, "loss/train")] == list(range(128, 2305, 128))


@pytest.mark.parametrize("budget", [BUDGET, "budget=seconds:0.5"])
def test_killed_before_its_result_it_only_evaluates(
    budget: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, budget)
    with monkeypatch.context() as patch:
        patch.setattr(router_lab.training.fit, "result_of", lambda *_: kill())
        assert run.launch() == -9
    assert run.launch() == 0
    assert run.trained[0] and run.trained[1] == []
    assert run.result["train"]["steps"] == len(run.trained[0])
    curve = [point["step"] for point in run.result["curve"]]
    assert curve == sorted(set(curve)) and curve[-1] == len(run.trained[0])
    assert run.launch() == 0  # finished: nothing to do
    assert run.trained[2] == []


def test_seconds_end_a_run_and_add_up(tmp_path: Path) -> None:
    run = Run(tmp_path, "budget=seconds:1", "optim.warmup=0", "trainer.log_every=1")
    assert run.launch(at=20, do=interrupt) == 130
    assert run.checkpoint()["callbacks"]["Clock"]["seconds"] == 21 * SECONDS
    assert run.launch() == 0
    train = run.result["train"]
    assert (train["seconds"], train["steps"], train["tokens"]) == (1, 64, 64 * 4 * 32)
    assert run.trained == [list(range(21)), list(range(21, 64))]
    curve = [(point["seconds"], point["step"]) for point in run.result["curve"]]
    assert curve == [(0.25, 16), (0.5, 32), (0.75, 48), (1, 64)]
    rates = [rate for _, rate in scalars(run, "loss/learning_rate")]
    assert rates[0] > 0.0029 and rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(3e-4, rel=0.1)  # a tenth, at the end
