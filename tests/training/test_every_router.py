"""Every router, feed-forward layer and preset of one trains from the command line alone.

Tiny sizes: what is tested is that nothing but a name is needed, and that the run ends in a result
whose figures make sense.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from helpers import train

from router_lab.capacity import CAPACITIES
from router_lab.commands.presets import presets
from router_lab.losses import LOSSES
from router_lab.model.ffn import FFNS
from router_lab.routing import ROUTERS

STEPS = 10
# Two micro-batches a step, and recomputed activations: what routers get wrong most.
OPTIONS = (f"budget=tokens:{STEPS * 2 * 4 * 32}", "trainer.accumulate=2", "model.checkpoint=true")


def check(result: dict[str, Any]) -> None:
    assert result["train"]["steps"] == STEPS
    assert result["train"]["tokens"] == STEPS * 2 * 4 * 32
    # Learning has begun: better than guessing all sixteen symbols alike.
    assert result["quality"]["loss"] < math.log(16)
    assert all(math.isfinite(value) for value in result["quality"].values() if value is not None)
    for layer in result["routing"]["layers"].values():
        assert sum(layer["load"]) == pytest.approx(1.0, abs=1e-3)
        assert all(math.isfinite(value) for value in layer["load"])
    assert abs(result["match"]["error"]) < 0.06


@pytest.mark.parametrize("name", ROUTERS.names())
def test_router(name: str, tmp_path: Path) -> None:
    result, weights = train(tmp_path, *OPTIONS, f"router={name}")
    check(result)
    assert result["router"] == name
    assert set(result["routing"]["layers"]) == {"layer0", "layer1"}
    router = ROUTERS.build({"name": name}, d_model=32, n_experts=8)
    for parameter, _ in router.named_parameters():
        assert f"blocks.1.ffn.router.{parameter}" in weights


def test_the_result_lists_every_term_of_the_loss(tmp_path: Path) -> None:
    z = {"name": "z", "coef": 0.5, "reduce": "mean"}
    own = [
        {"name": name, "coef": 0.1, "reduce": "sum", "of": "router"}
        for name in ("importance", "load")
    ]
    options = ["loss=z", "loss.z.coef=0.5", "loss.z.reduce=mean"]
    result, _ = train(tmp_path / "moe", *OPTIONS, "router=noisy_topk", *options)
    assert result["losses"] == [z, *own]
    result, _ = train(tmp_path / "dense", *OPTIONS, "ffn=mlp")
    assert result["losses"] == []  # nothing routes, so nothing acted


@pytest.mark.parametrize(
    ("overrides", "factor"),
    [
        (["router=switch"], 2.0),
        (["router=switch", "router.eval_factor=1.25"], 1.25),
        (["capacity=position", "capacity.eval_factor=1.5"], 1.5),
        (["capacity=position", "capacity.eval_factor=inf"], None),
        (["ffn=moepp", "router.capacity_factor=1.1"], None),
        (["ffn=mlp"], None),
    ],
)
def test_the_result_has_the_capacity_factor_of_evaluation(
    overrides: list[str], factor: float | None, tmp_path: Path
) -> None:
    result, _ = train(tmp_path, *OPTIONS, *overrides)
    assert result["evaluation"]["capacity_factor"] == factor


@pytest.mark.parametrize("name", FFNS.names())
def test_layer(name: str, tmp_path: Path) -> None:
    result, _ = train(tmp_path, *OPTIONS, f"ffn={name}")
    check(result)
    assert result["ffn"] == name
    ahead = {"soft_moe": "always", "mixture_of_depths": "in training"}
    assert result["lookahead"] == ahead.get(name, "never")


def presets_of(group: str) -> list[str]:
    return [preset.name for preset in presets(group)]


@pytest.mark.parametrize("preset", presets_of("ffn"))
def test_preset_of_a_layer(preset: str, tmp_path: Path) -> None:
    check(train(tmp_path, *OPTIONS, f"ffn={preset}")[0])


@pytest.mark.parametrize("loss", [*LOSSES.names(), *presets_of("loss"), "[default,z]"])
def test_balance_loss(loss: str, tmp_path: Path) -> None:
    check(train(tmp_path, *OPTIONS, f"loss={loss}")[0])


@pytest.mark.parametrize("preset", [*CAPACITIES.names(), *presets_of("capacity")])
def test_capacity(preset: str, tmp_path: Path) -> None:
    result, _ = train(tmp_path, *OPTIONS, f"capacity={preset}")
    check(result)
    assert (result["routing"]["mean"]["dropped"] > 0) == (preset != "none")
