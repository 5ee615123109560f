"""`router-lab plan`: what train would do, and nothing done."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from router_lab.commands.main import main
from router_lab.launch.estimate import makespan

TINY = """
# @package _global_
hydra: {mode: MULTIRUN}
grid:
  seeds: [0, 1, 2]
  common: [model=nano, model.seq_len=32, data=languages, data.n_tokens=20000, data.alphabet=16,
           "budget=tokens:2k", trainer.batch_size=4, trainer.val_windows=4]
  arms:
"""
ARMS = {
    "wide": "[router=softmax_topk, router.k=3]",
    "narrow": "[router=softmax_topk, router.k=2]",
}
SINGLE = ["model=nano", "model.seq_len=32", "data=languages", "data.n_tokens=20000"]
SINGLE += ["data.alphabet=16", "budget=tokens:1k", "trainer.batch_size=4", "trainer.val_windows=4"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")


def grid(arms: dict[str, str] = ARMS) -> list[str]:
    """The arguments of train for a grid of these arms, in a folder of its own."""
    folder = Path("conf", "grid")
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"    {name}: {overrides}" for name, overrides in arms.items()]
    (folder / "tiny.yaml").write_text(TINY + "\n".join(lines))
    return ["--config-dir", "conf", "grid=tiny"]


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    main(["plan", *arguments])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["plan", *arguments])
    assert end.value.code == 2
    return capsys.readouterr().err.strip().splitlines()


def cells(printed: str, arm: str) -> list[str]:
    [line] = [line for line in printed.splitlines() if line.startswith(f"{arm} ")]
    return re.split(r"\s{2,}", line.strip())


def fake_runs(arguments: list[str], **states: str) -> None:
    """Folders of runs in these states, by arm and seed: `wide_0="finished"`."""
    from router_lab.commands import plan as command

    arms: list[Any] = []
    original = command.planned_arms

    def planned(*args: Any) -> list[Any]:
        arms.extend(original(*args))
        return arms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "planned_arms", planned)
        main(["plan", *arguments, "--no-time"])
    runs = {f"{one.dir.arm}_{one.dir.seed}": one.dir for arm in arms for one in arm.runs}
    for name, state in states.items():
        run = runs[name]
        run.folder.mkdir(parents=True)
        status = {"state": state, "host": socket.gethostname(), "arm": run.arm, "seed": run.seed}
        status |= {"step": 4, "steps": 16, "tokens": 512, "seconds_left": 6.0}
        (run.folder / "status.json").write_text(json.dumps(status))
        if state == "finished":
            result = {"arm": run.arm, "seed": run.seed, "train": {"tokens_per_second": 100.0}}
            (run.folder / "result.json").write_text(json.dumps(result))


def test_only_what_differs_is_said_of_each_arm(capsys: pytest.CaptureFixture[str]) -> None:
    printed = planned(capsys, *grid(), "optim.lr=0.01", "--no-time")
    head, table = printed.split("\n\n", 1)
    assert head.startswith("tiny: 2 arms × seeds 0, 1, 2 = 6 runs in runs/tiny: 6 new; 6 to do\n")
    common = ["model=nano", "router=softmax_topk", "optim.lr=0.01", "budget=tokens:2k"]
    assert all(option in head and option not in table for option in common)
    assert "Every run: 16 steps, 2.05k tokens" in head
    assert cells(printed, "wide")[1] == "router.k=3" and cells(printed, "wide")[-2] == "3 new"
    assert cells(printed, "narrow")[1] == "router.k=2"
    assert "6 runs to do; --no-time left out how long they take." in printed


def test_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = grid()
    before = sorted(tmp_path.rglob("*"))
    planned(capsys, *arguments)
    planned(capsys, *SINGLE)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_done_and_how_long_the_rest_takes(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = grid()
    fake_runs(arguments, wide_0="finished", wide_1="interrupted", narrow_0="failed")
    printed = planned(capsys, *arguments, "--no-time")
    assert cells(printed, "wide")[-2] == "1 finished, 1 interrupted, 1 new"
    assert cells(printed, "narrow")[-2] == "1 failed, 2 new"
    assert "1 finished, 1 interrupted, 3 new, 1 failed; 4 to do" in printed.splitlines()[0]
    # 100 tokens per second once, (2048 − 512) tokens in 6 seconds once; the median is 178. 10
    # validations of 4 windows of 32 tokens count as 427 tokens more.
    assert cells(printed, "wide")[-1] == "14 s"
    assert "; 5 to do" in planned(capsys, *arguments, "retry=true", "--no-time")


def test_runs_of_other_machines_tell_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = grid()
    fake_runs(arguments, wide_0="finished")
    [status] = Path("runs").rglob("status.json")
    status.write_text(status.read_text().replace(socket.gethostname(), "elsewhere"))
    assert cells(planned(capsys, *arguments, "--no-time"), "wide")[-1] == "–"


def test_arms_without_runs_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = grid()
    fake_runs(arguments, wide_0="finished")
    printed = planned(capsys, *arguments, "hydra.launcher.workers=2")
    assert "for 5 runs to do, 2 at a time." in printed
    assert "earlier runs on this machine (wide) and a few steps measured now (narrow)" in printed


def test_all_wrong_arms_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = grid(
        {
            "good": "[router=switch]",
            "no_such_router": "[router=nope]",
            "no_such_option": "[router=switch, router.kk=1]",
            "too_many": "[router.k=99]",
            "too_small": "[match=total_params, ffn.n_experts=999]",
        }
    )
    lines = refused(capsys, *arguments)
    assert lines[0] == "router-lab: 4 of 5 arms cannot be trained:"
    assert len(lines) == 5
    for line, part in zip(
        lines[1:],
        [
            "no_such_router: router=nope does not exist",
            "no_such_option: The router switch has no option kk",
            "too_many: ",
            "too_small: No ffn.d_hidden gives ffn=moe the total_params",
        ],
        strict=True,
    ):
        assert line.strip().startswith(part)
    assert not (tmp_path / "runs").exists()


def test_comma_lists(capsys: pytest.CaptureFixture[str]) -> None:
    printed = planned(capsys, "-m", *SINGLE, "router=switch,gshard", "seed=0,1", "--no-time")
    assert printed.startswith(
        "single: 2 arms × seeds 0, 1 = 4 runs in runs/single: 4 new; 4 to do\n"
    )
    assert cells(printed, "switch")[1] == "router=switch"
    [line] = refused(capsys, *SINGLE, "seed=0,1")
    assert "add -m to train a run for each of them" in line
    lines = refused(capsys, "-m", *SINGLE, "router=switch,nope")
    assert lines[0].endswith("1 of 2 arms cannot be trained:")
    assert lines[1].strip().startswith("nope: router=nope does not exist")


@pytest.mark.usefixtures("registry_left_alone")
def test_a_plugin_that_the_grid_names(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(
        "from router_lab.registry import register\n"
        "from router_lab.routers.softmax_topk import SoftmaxTopK\n"
        "@register('planned_router')\n"
        "class PlannedRouter(SoftmaxTopK):\n    '''A router of my own.'''\n"
    )
    printed = planned(capsys, *grid({"a": '["plugins=[mine.py]", router=planned_router]'}))
    assert "router=planned_router" in printed and "1 arm × seeds" in printed


def test_a_single_run_is_the_one_that_train_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SINGLE, "router=noisy_topk", "model.d_ffn=100"]
    printed = planned(capsys, *arguments)
    assert "single: 1 arm × seed 0 = 1 run in runs/single: 1 new; 1 to do" in printed
    assert "Time by a few steps measured now" in printed
    width = cells(printed, "noisy_topk")[1]
    main(["train", *arguments])
    assert f"ffn.d_hidden={width} solved" in capsys.readouterr().out
    [result] = tmp_path.rglob("result.json")
    assert json.loads(result.read_text())["match"]["d_hidden"] == int(width)
    assert "1 finished; 0 to do" in planned(capsys, *arguments)


def test_one_configuration_under_two_names(capsys: pytest.CaptureFixture[str]) -> None:
    ffns = ("-m", *SINGLE, "ffn=mlp,moe", "router=switch,gshard", "seed=0,1", "--no-time")
    printed = planned(capsys, *ffns)
    assert "mlp,switch and mlp,gshard are one configuration; only mlp,switch is trained." in printed
    assert "8 new; 6 to do" in printed
    [line] = refused(capsys, *grid({"a": "[]", "b": "[router.k=2]", "c": "[router.k=3]"}))
    assert line == "router-lab: grid: the arms a and b are the same; change one or leave it out."


def test_a_search_has_no_plan(capsys: pytest.CaptureFixture[str]) -> None:
    [line] = refused(capsys, "experiment=tune", "hydra/sweeper=optuna")
    assert "A search chooses its runs as it goes" in line


def test_makespan() -> None:
    assert makespan([3.0, 1.0, 1.0, 1.0], 2) == 3.0
    assert makespan([1.0, 1.0, 3.0], 2) == 4.0
    assert makespan([2.0, 2.0], 1) == 4.0
