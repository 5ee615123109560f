"""Coefficients of the balance losses over several layers, levels and kinds of experts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import collapsed, context_of, routed
from torch import Tensor

from router_lab.losses import (
    acting,
    build_losses,
    layer_terms,
    weight_in_layer,
)
from router_lab.model.ffn import build_ffn
from router_lab.model.transformer import ModelOptions, Transformer
from router_lab.routing import ROUTERS, Routing


def test_layers_add_up_and_are_not_pooled() -> None:
    """Four layers, each collapsed to another expert: pooled they would look balanced."""
    layers = {f"layer{i}": routed(collapsed(4, 8).roll(i, dims=1)) for i in range(4)}
    for reduce, total in (("sum", 4 * 0.1 * 4.0), ("mean", 0.1 * 4.0)):
        losses = build_losses({"load_balance": {"coef": 0.1, "reduce": reduce}}, {})
        terms = layer_terms(losses, layers, {})
        assert float(terms.terms["load_balance"]) == pytest.approx(4.0)
        assert float(terms.total) == pytest.approx(total)


def test_own_terms_of_a_router_join_the_total_with_their_weight() -> None:
    plain = routed(torch.zeros(4, 2))
    own = replace(plain, losses={"sparsity": torch.tensor(0.3)})
    losses = build_losses({"z": {"coef": 2.0}}, {})
    terms = layer_terms(losses, {"layer0": own, "layer1": plain}, {})
    assert float(terms.total) == pytest.approx(0.3 + 2 * 2.0 * math.log(2) ** 2)
    terms = layer_terms(losses, {"layer0": own, "layer1": own}, {})
    assert float(terms.terms["sparsity"]) == pytest.approx(0.3)
    assert float(terms.total) == pytest.approx(2 * 0.3 + 2 * 2.0 * math.log(2) ** 2)


def test_terms_of_the_same_name_are_not_mixed() -> None:
    routing = replace(routed(torch.zeros(4, 2)), losses={"z": torch.tensor(0.3)})
    terms = layer_terms(build_losses({"z": None}, {}), {"layer0": routing}, {})
    assert float(terms.terms["z"]) == pytest.approx(math.log(2) ** 2)
    assert float(terms.terms["router_z"]) == pytest.approx(0.3)


def by_hand(routing: Routing, coef: float) -> Tensor:
    """Gradient of coef · E · Σ f_i mean_t p_ti with respect to the logits, f held constant:
    coef · E / T · p_ti (f_i − Σ_j f_j p_tj)."""
    T, E = routing.probs_TE.shape
    f_E = routing.demand_E / routing.demand_E.sum()
    p_TE = routing.probs_TE.detach()
    return coef * E / T * p_TE * (f_E - (p_TE * f_E).sum(dim=1, keepdim=True))


def gradients(
    routings: dict[str, Routing], loss: dict[str, Any] | None = None
) -> dict[str, Tensor]:
    """Gradient of the loss terms with respect to each record's logits, the layers cut apart."""
    logits = {name: r.logits_TE.detach().requires_grad_() for name, r in routings.items()}
    records = {
        name: replace(routing, logits_TE=logits[name], probs_TE=logits[name].softmax(dim=-1))
        for name, routing in routings.items()
    }
    total = layer_terms(build_losses({"load_balance": loss}, {}), records, {}).total
    assert isinstance(total, Tensor)
    found = torch.autograd.grad(total, list(logits.values()), materialize_grads=True)
    return dict(zip(logits, found, strict=True))


def trained_records(ffn: dict[str, Any], ffn_layers: Any = "all") -> dict[str, Routing]:
    """The records of a model of four layers in training."""
    model = Transformer(
        32, ffn, ModelOptions(16, 4, n_heads=2, seq_len=8, ffn_layers=ffn_layers), d_hidden=8
    )
    return model.train()(torch.randint(32, (4, 8))).routings


def assert_gradient(grad_TE: Tensor, routing: Routing, coef: float) -> None:
    torch.testing.assert_close(grad_TE, by_hand(routing, coef), atol=1e-9, rtol=1e-4)


@pytest.mark.parametrize(("reduce", "share"), [("sum", 1.0), ("mean", 1 / 4)])
def test_each_layer_adds_its_term_at_the_coefficient(reduce: str, share: float) -> None:
    routings = trained_records({"name": "moe", "n_experts": 4})
    found = gradients(routings, {"coef": 0.02, "reduce": reduce})
    assert set(found) == {"layer0", "layer1", "layer2", "layer3"}
    for name, grad_TE in found.items():
        assert_gradient(grad_TE, routings[name], 0.02 * share)


def test_fewer_routed_layers_press_no_harder_on_each() -> None:
    routings = trained_records({"name": "moe", "n_experts": 4}, ffn_layers=2)
    found = gradients(routings)
    assert set(found) == {"layer1", "layer3"}
    for name, grad_TE in found.items():
        assert_gradient(grad_TE, routings[name], 0.01)


@pytest.mark.parametrize(("reduce", "share"), [("sum", 1.0), ("mean", 1 / 4)])
def test_a_mixture_within_depths_has_its_coefficient(reduce: str, share: float) -> None:
    """The record of mixture_of_depths itself has one expert: it is no layer of its own."""
    inner = {"name": "moe", "n_experts": 4}
    routings = trained_records({"name": "mixture_of_depths", "share": 0.5, "expert": inner})
    records = {name: replace(routing, losses={}) for name, routing in routings.items()}
    found = gradients(records, {"reduce": reduce})
    for layer in range(4):
        name = f"layer{layer}.expert0"
        assert_gradient(found[name], routings[name], 0.01 * share)
        assert not found[f"layer{layer}"].any()


@pytest.mark.parametrize("tokens", [1, 2, 64])
def test_levels_of_a_hierarchy_have_the_whole_coefficient_each(tokens: int) -> None:
    """Whichever of the four inner mixtures got a token: with one token two have a record."""
    inner = {"name": "moe", "n_experts": 3}
    moe = build_ffn({"name": "moe", "n_experts": 4, "expert": inner}, 16, 8)
    context = context_of(1, tokens)
    _, records = moe(torch.randn(tokens, 16), context)
    assert tokens > 1 or len(records) == 1 + 2
    routings = {f"layer0.{name}".rstrip("."): routing for name, routing in records.items()}
    for name, grad_TE in gradients(routings).items():
        assert_gradient(grad_TE, routings[name], 0.01 if name == "layer0" else 0.01 / 4)


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_a_record_with_one_expert_is_no_routed_layer(reduce: str) -> None:
    """z would pull at its logits, and the mean over the layers would be half."""
    records = {"layer0": routed(torch.zeros(6, 4)), "layer1": routed(torch.full((6, 1), 3.0))}
    terms = layer_terms(build_losses({"z": {"coef": 0.5, "reduce": reduce}}, {}), records, {})
    assert float(terms.terms["z"]) == pytest.approx(math.log(4) ** 2)
    assert float(terms.total) == pytest.approx(0.5 * math.log(4) ** 2)


def test_special_experts_do_not_route_again() -> None:
    """Three experts that route and two that compute nothing: each of the three counts a third."""
    outer = replace(routed(torch.zeros(6, 5)), kinds=("ffn",) * 3 + ("zero", "copy"))
    records = {"layer0": outer, "layer0.expert1": routed(torch.zeros(2, 4))}
    assert weight_in_layer("layer0.expert1", records) == pytest.approx(1 / 3)


def test_every_term_that_acts_is_listed() -> None:
    router = ROUTERS.build({"name": "noisy_topk", "w_load": 0.0}, d_model=4, n_experts=4)
    losses = build_losses({"load_balance": {"scope": "global"}, "z": {"reduce": "mean"}}, {})
    assert acting(losses, [router.own_losses, {}, router.own_losses]) == [
        {"name": "load_balance", "coef": 0.01, "reduce": "sum", "scope": "global"}
        | {"reference": "paper", "tau": 1.0},
        {"name": "z", "coef": 1e-3, "reduce": "mean"},
        {"name": "importance", "coef": 0.1, "reduce": "sum", "of": "router"},
    ]


def test_no_layers_no_losses() -> None:
    terms = layer_terms(build_losses({"z": None}, {}), {}, {})
    assert terms.terms == {} and terms.total == 0.0
