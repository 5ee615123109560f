"""Runs of several processes and compiled runs, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import train

from router_lab.experiment import load_run

STEPS = 6
OPTIONS = ("loss=none", "trainer.accelerator=cpu", f"budget=tokens:{STEPS * 2 * 4 * 32}",
           "trainer.validations=2", "trainer.val_windows=12")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("router=loss_free",),
        ("router=noisy_topk", "router.w_importance=0", "router.w_load=0"),
        ("router=loss_free", "experiment=recipe", "optim.every=2"),
        # An inner expert that gets no token on one rank has no gradient and no record there.
        ("ffn=hierarchical", "ffn.n_experts=12", "ffn.expert.n_experts=2", "router.k=2"),
    ],
    ids=str,
)
def test_two_ranks_train_as_one_that_takes_two_batches(
    overrides: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, weights = train(tmp_path / "one", *OPTIONS, *overrides, "trainer.accumulate=2")
    capfd.readouterr()
    two, weights_two = train(tmp_path / "two", *OPTIONS, *overrides, "trainer.devices=2")
    printed = capfd.readouterr().out
    assert printed.count("bits/byte") == 1 and printed.count("Finished") == 1
    assert two["train"]["steps"] == one["train"]["steps"] == STEPS
    assert two["train"]["tokens"] == one["train"]["tokens"] == STEPS * 2 * 4 * 32
    for name, value in weights.items():
        torch.testing.assert_close(weights_two[name], value, atol=1e-4, rtol=1e-3, msg=name)
    assert two["quality"]["loss"] == pytest.approx(one["quality"]["loss"], rel=1e-4)
    assert [p["step"] for p in two["curve"]] == [p["step"] for p in one["curve"]]
    assert two["flops_per_token_measured"] == pytest.approx(one["flops_per_token_measured"], 1e-3)
    layers, layers_two = one["routing"]["layers"], two["routing"]["layers"]
    assert layers_two.keys() == layers.keys()
    for name, layer in layers.items():
        assert layers_two[name]["tokens"] == pytest.approx(layer["tokens"], abs=4), name
        assert layers_two[name]["load"] == pytest.approx(layer["load"], abs=0.02), name


@pytest.mark.slow
def test_what_goes_wrong_on_a_rank_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        train(tmp_path, *OPTIONS, "trainer.devices=2", "optim.lr=1e30", "optim.warmup=0")
    assert end.value.code == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "router-lab:" in line]
    assert "The loss is not finite at step" in line
    (status,) = tmp_path.glob("*/*/status.json")
    assert json.loads(status.read_text())["state"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("router", ["softmax_topk", "noisy_topk"])
def test_a_compiled_run_learns_the_same(router: str, tmp_path: Path) -> None:
    plain, weights = train(tmp_path / "plain", *OPTIONS, f"router={router}")
    options = [f"router={router}", "trainer.compile=true"]
    compiled, weights_too = train(tmp_path / "compiled", *OPTIONS, *options)
    assert weights_too.keys() == weights.keys()  # no prefix in the names
    assert compiled["quality"]["loss"] == pytest.approx(plain["quality"]["loss"], rel=1e-3)
    (path,) = (tmp_path / "compiled").glob("*/*/result.json")
    model = load_run(path.parent).model
    assert all(p.equal(weights_too[name]) for name, p in model.named_parameters())
