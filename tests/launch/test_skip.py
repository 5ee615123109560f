"""A run that another machine trains is never started a second time, without a lock to see."""

from __future__ import annotations

from pathlib import Path

from standin.launching import Launch, end, statuses

from router_lab.runs.status import write_status

FAULT = ("router=a", "seed=0", "fault=raise", "fault_at=1")


def started_elsewhere(launch: Launch, out: Path) -> Path:
    """A run's folder, as another machine that trains it has left it: no lock that we can see."""
    code, output = end(launch("-m", *FAULT, f"out={out}"))
    assert code == 1, output
    assert "Next:" not in output  # there is nothing to compare
    (folder,) = (out / "single").iterdir()
    write_status(folder, state="running", reason=None, host="elsewhere", pid=1)
    return folder


def test_the_launcher_and_the_run_itself_leave_it_alone(launch: Launch, tmp_path: Path) -> None:
    folder = started_elsewhere(launch, tmp_path)
    before = (folder / "trained.txt").read_text()

    code, output = end(launch("-m", *FAULT, f"out={tmp_path}"))
    assert code == 0, output
    assert "1 runs, 0 to do, 1 being trained by another launch" in output

    code, output = end(launch(*FAULT, f"out={tmp_path}"))
    assert code != 0
    assert "is being trained on elsewhere" in output
    assert (folder / "trained.txt").read_text() == before
    assert statuses(tmp_path / "single")["a-s0"].state == "running"


def test_it_is_started_again_once_it_has_been_silent(launch: Launch, tmp_path: Path) -> None:
    folder = started_elsewhere(launch, tmp_path)
    status = (folder / "status.json").read_text()
    updated = status.split('"updated": "')[1].split('"')[0]
    (folder / "status.json").write_text(status.replace(updated, "2020-01-01T00:00:00Z"))
    code, output = end(launch("-m", *FAULT, f"out={tmp_path}"))
    assert "1 runs, 1 to do" in output
    assert code == 1  # its fault again
    assert statuses(tmp_path / "single")["a-s0"].state == "failed"


def test_arms_that_describe_one_run_train_once(launch: Launch, tmp_path: Path) -> None:
    twice = ("router=a", "seed=0", "trainer.threads=1,2")  # threads do not decide a result
    code, output = end(launch("-m", *twice, f"out={tmp_path}"))
    assert code == 0, output
    assert "1 runs, 1 to do" in output
    assert "threads=2 s0 is the same run as threads=1 s0, which stands for both" in output
    assert len(list((tmp_path / "single").iterdir())) == 1
