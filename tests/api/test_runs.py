"""Runs from Python as frames, and their comparison: the numbers of the files and of the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from fake_runs import ARMS, FakeArm, write_grid, write_status

import router_lab as rl
from router_lab.commands.compare import compare
from router_lab.errors import UserError

SOME = {name: ARMS[name] for name in ("mlp", "softmax_topk", "loss_free")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_grid(tmp_path, SOME)
    write_status(tmp_path, "capacity", 0, "failed", reason="it ran out of memory")
    return tmp_path


def test_what_is_heavy_comes_when_it_is_used(folder: Path) -> None:
    heavy = ("numpy", "pandas", "torch", "lightning", "hydra", "matplotlib")
    program = (
        "import sys, router_lab as rl\n"
        "assert {'load', 'build', 'train'} <= set(dir(rl))\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
        f"rl.load({str(folder)!r}).compare().frame\n"
        "print([name for name in ('torch', 'lightning', 'hydra') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        getattr(rl, "lode")  # noqa: B009


def test_a_row_per_run(folder: Path) -> None:
    runs = rl.load(folder)
    frame = runs.frame
    assert len(runs) == 9 and len(frame) == 10
    assert list(frame.columns[:5]) == ["arm", "seed", "state", "reason", "path"]
    for run in runs:
        (row,) = frame[frame.path == str(run.folder)].to_dict("records")
        assert row["state"] == "finished"
        assert row["arm"] == run.result["arm"] and row["seed"] == run.result["seed"]
        assert row["bits_per_byte"] == run.result["quality"]["bits_per_byte"]
        assert row["params.active"] == run.result["params"]["active"]
        if run.result["router"]:
            assert row["max_vio"] == run.result["routing"]["mean"]["max_vio"]
        else:
            assert pandas.isna(row["max_vio"])
    (failed,) = frame[frame.state == "failed"].to_dict("records")
    assert failed["arm"] == "capacity" and failed["reason"] == "it ran out of memory"
    assert not [name for name in frame if "layer" in name or name in ("curve", "versions")]
    plain = [v for column in frame for v in frame[column] if isinstance(v, dict | list)]
    assert plain == []


def test_a_row_per_validation(folder: Path) -> None:
    runs = rl.load(folder)
    curves = runs.curves
    run = runs.run("loss_free", seed=1)
    points = curves[(curves.arm == "loss_free") & (curves.seed == 1)]
    assert points.tokens.tolist() == [point["tokens"] for point in run.result["curve"]]
    assert points.max_vio.tolist() == [point["max_vio"] for point in run.result["curve"]]
    assert len(curves) == sum(len(run.result["curve"]) for run in runs)


@pytest.mark.parametrize(
    "options", [{}, {"baseline": "loss_free", "by": "flops"}, {"columns": ["cv_load"]}], ids=str
)
def test_the_numbers_of_the_command(folder: Path, tmp_path: Path, options: dict) -> None:
    compare([folder], **options, out=tmp_path / "out")
    written = pandas.read_csv(tmp_path / "out" / "table.csv")
    compared = rl.load(folder).compare(**options)
    pandas.testing.assert_frame_equal(compared.frame, written)
    assert len(written) == 3 and written.p_holm.notna().sum() == 2
    assert compared.verdict.startswith("loss_free has the lowest loss (2.1")


def test_figures_are_axes(folder: Path) -> None:
    compared = rl.load(folder).compare()
    (scatter,) = compared.quality_imbalance()
    assert scatter.get_ylabel() == "bits per byte" and "MaxVio" in scatter.get_xlabel()
    curves, differences = compared.curves()
    names = curves.get_legend_handles_labels()[1]
    assert set(names) == set(SOME) and differences.get_title("left").startswith("Difference from")
    (balance,) = compared.balance()
    assert set(balance.get_legend_handles_labels()[1]) == {"softmax_topk", "loss_free"}


def test_without_routed_arms_there_is_no_balance(tmp_path: Path) -> None:
    write_grid(tmp_path, {"mlp": ARMS["mlp"]})
    compared = rl.load(tmp_path).compare()
    assert compared.balance() == compared.quality_imbalance() == []


def test_a_run_is_found_by_arm_and_seed(folder: Path) -> None:
    runs = rl.load(folder)
    assert runs.run("loss_free").result["seed"] == 0
    assert runs.run("loss_free", seed=2).result["seed"] == 2
    with pytest.raises(UserError, match="no finished run of lossfree; did you mean loss_free"):
        runs.run("lossfree")
    with pytest.raises(UserError, match="no finished run of seed 7; its seeds are 0, 1, 2"):
        runs.run("loss_free", seed=7)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        rl.load(folder / "nowhere")


def test_of_several_versions_the_newest_is_taken(tmp_path: Path) -> None:
    import os

    for order, quality in enumerate((2.5, 2.4)):
        write_grid(tmp_path, {"mine": FakeArm(quality)}, seeds=[0], noise=0.0, luck=0.0)
        for result in tmp_path.rglob("result.json"):
            if order == 0:
                os.utime(result, (1.0, 1.0))
    assert len(rl.load(tmp_path)) == 1
    runs = rl.load(tmp_path, versions="all")
    assert len(runs) == 2
    assert runs.run("mine").result["quality"]["bits_per_byte"] == pytest.approx(2.4, abs=0.01)


def test_reprs_fit_on_a_line(folder: Path) -> None:
    runs = rl.load(folder)
    assert repr(runs) == f"Runs(9 finished runs of 3 arms, 1 left out; {folder})"
    assert repr(runs.compare()) == "Compared(loss_free, softmax_topk and mlp)"
    run = runs.run("mlp")
    bits = run.result["quality"]["bits_per_byte"]
    assert repr(run) == f"Run(mlp, seed 0: {bits:.4f} bits per byte; {run.folder})"
