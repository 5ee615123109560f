"""Grids that survive: failures stay where they happen, and the same command goes on."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from standin.launching import Launch, end, held, statuses, wait_for

from router_lab.launch import view as view_module
from router_lab.launch.pool import exit_reason, slots
from router_lab.launch.view import View
from router_lab.runs.folder import RunDir
from router_lab.runs.state import read_state
from router_lab.runs.status import is_locked, write_json, write_status


def test_twelve_runs_that_fail_or_are_interrupted(
    launch: Launch,
    tmp_path: Path,
) -> None:
    command = ("grid=faulty", f"out={tmp_path}", "hydra.launcher.workers=3")
    grid = tmp_path / "faulty"
    first = launch(*command)
    wait_for(lambda: held(grid) >= {"q,x-s0", "q,y-s0", "q,z-s0"})
    first.send_signal(signal.SIGINT)
    code, output = end(first)
    assert code == 130, output
    assert {name: status.state for name, status in statuses(grid).items()} == {
        "one-s0": "finished", "raises-s0": "failed", "killed-s0": "failed",
        "p,x-s0": "finished", "p,y-s0": "finished", "p,z-s0": "finished",
        "q,x-s0": "interrupted", "q,y-s0": "interrupted", "q,z-s0": "interrupted",
    }  # fmt: skip  # the other three had not begun

    (tmp_path / "go").touch()
    code, output = end(launch(*command))
    assert code == 1, output
    after = statuses(grid)
    assert len(after) == 12
    failed = {name: s.reason for name, s in after.items() if s.state == "failed"}
    assert failed == {
        "raises-s0": "ValueError: the loss is not a number",
        "killed-s0": "killed by SIGKILL (the kernel does so when memory runs out)",
    }
    assert sum(status.state == "finished" for status in after.values()) == 10
    for path in grid.glob("*/trained.txt"):  # a checkpoint a step: none is trained twice
        steps = path.read_text().split()
        assert steps == sorted(set(steps), key=int), path
    assert "ValueError: the loss is not a number" in output

    code, output = end(launch(*command))
    assert code == 1
    assert "12 runs, 0 to do, 10 finished before, 2 failed before" in output
    code, output = end(launch(*command, "retry=true", "grid.only=[raises]"))
    assert code == 1
    assert "1 runs, 1 to do" in output


def test_exits_and_refusals_have_their_reasons(launch: Launch, tmp_path: Path) -> None:
    code, output = end(launch("grid=ends", f"out={tmp_path}"))
    assert code == 1
    reasons = {name: (s.state, s.reason) for name, s in statuses(tmp_path / "ends").items()}
    assert reasons == {
        "exits-s0": ("failed", "it called exit(3)"),
        "refuses-s0": ("failed", "router.k must be at most 8, not 9."),
        "fine-s0": ("finished", None),
    }
    for _, reason in reasons.values():
        assert str(reason or "") in output


def test_all_is_well_is_status_0_and_a_comma_list_is_a_grid(launch: Launch, tmp_path: Path) -> None:
    code, output = end(launch("-m", "router=a,b", "seed=0,1", f"out={tmp_path}"))
    assert code == 0, output
    assert output.splitlines()[-1] == f"Next: router-lab compare {tmp_path / 'single'}"
    assert sorted(statuses(tmp_path / "single")) == ["a-s0", "a-s1", "b-s0", "b-s1"]


def test_two_launches_share_the_work(launch: Launch, tmp_path: Path) -> None:
    command = ("grid=twelve", f"out={tmp_path}", "fault=hold", "seed=0", "hydra.launcher.workers=2")
    both = [launch(*command), launch(*command)]
    wait_for(lambda: len(held(tmp_path / "twelve")) == 4)  # two each
    (tmp_path / "go").touch()
    for process in both:
        code, output = end(process)
        assert code == 0, output
    trained = list((tmp_path / "twelve").glob("*/trained.txt"))
    assert len(trained) == 6
    for path in trained:
        assert path.read_text().split() == list("012345")


def test_what_does_not_stop_is_killed_after_the_grace(launch: Launch, tmp_path: Path) -> None:
    process = launch(
        "-m", "router=a", f"out={tmp_path}", "fault=hang", "fault_at=1", "hydra.launcher.grace=0.2"
    )  # fmt: skip
    wait_for(lambda: bool(list(tmp_path.glob("single/*/trained.txt"))))
    process.send_signal(signal.SIGTERM)
    code, output = end(process)
    assert code == 130, output
    assert statuses(tmp_path / "single")["a-s0"].state == "interrupted"


def test_runs_do_not_outlive_a_launch_that_was_killed(launch: Launch, tmp_path: Path) -> None:
    process = launch("-m", "router=a", f"out={tmp_path}", "fault=hold")
    wait_for(lambda: held(tmp_path / "single") == {"a-s0"})
    (folder,) = (tmp_path / "single").iterdir()
    assert is_locked(folder)
    process.kill()
    process.communicate()
    wait_for(lambda: not is_locked(folder))
    assert read_state(folder).state == "interrupted"


def test_gpus_are_dealt_out(launch: Launch, tmp_path: Path) -> None:
    process = launch(
        "-m", "seed=range(4)", f"out={tmp_path}", "trainer.accelerator=auto", "fault=hold",
        "hydra.launcher.gpus=[4,5]", "hydra.launcher.jobs_per_gpu=2",
    )  # fmt: skip
    wait_for(lambda: len(held(tmp_path / "single")) == 4)  # side by side
    (tmp_path / "go").touch()
    code, output = end(process)
    assert code == 0, output
    sees = [path.read_text().split()[-1] for path in tmp_path.glob("single/*/train.log")]
    assert sorted(sees) == ["4", "4", "5", "5"]


def test_slots() -> None:
    assert slots(3, []) == [None] * 3
    assert slots(None, ["0", "1"], jobs_per_gpu=2) == [("0",), ("1",), ("0",), ("1",)]
    assert slots(None, list("01234"), gpus_per_run=2) == [("0", "1"), ("2", "3")]
    assert slots(1, ["0", "1"]) == [("0",)]


def test_words() -> None:
    assert exit_reason(-15) == "killed by SIGTERM"
    assert exit_reason(7) == "its process ended with status 7"


@pytest.fixture
def still_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes for the table."""
    monkeypatch.setattr(view_module, "time", SimpleNamespace(monotonic=lambda: 5.0))


@pytest.mark.usefixtures("still_clock")
def test_the_table(tmp_path: Path) -> None:
    runs = [RunDir(tmp_path / name, "g", name, 0, "f") for name in ("done", "now", "bad")]
    write_json(runs[0].folder / "result.json", {"quality": {"bits_per_byte": 2.125}})
    write_status(
        runs[1].folder, step=30, steps=90, bits_per_byte=2.5, max_vio=0.25, seconds_left=90.0
    )
    console = Console(width=100, height=30, force_terminal=True, color_system=None, record=True)
    view = View(places=2, console=console)
    for run in runs:
        view.started(run)
    view.ended(runs[0], "finished", None)
    view.ended(runs[2], "failed", "ValueError: [not] a number")
    console.print(view.render([runs[1]], waiting=4, stopping=False))
    text = console.export_text()
    done, bad, now = (
        next(line for line in text.splitlines() if line.startswith(name))
        for name in ("done", "bad", "now")
    )
    assert done.split()[:4] == ["done", "0", "finished", "2.125"]
    assert "ValueError: [not] a number" in bad
    words = "now 0 running 30 of 90 2.500 bits/byte 0.25 1 min 30 s left"
    assert " ".join(now.split()) == words
    assert "1 done, 1 running, 1 failed, 4 waiting; about 45 s left" in text


@pytest.mark.usefixtures("still_clock")
@pytest.mark.parametrize(("waiting", "expected"), [(0, 90.0), (2, (90 + 2 * 90) / 3)])
def test_time_left(tmp_path: Path, waiting: int, expected: float) -> None:
    run = RunDir(tmp_path, "g", "a", 0, "f")
    view = View(places=3, console=Console(file=None))
    view.started(run)
    assert view.seconds_left([run], waiting) is None
    write_status(run.folder, seconds_left=90.0)
    assert view.seconds_left([run], waiting) == pytest.approx(expected)
