"""Every balance loss at balance, at collapse, and against naive versions in plain loops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import context_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from router_lab.capacity import Capacity
from router_lab.errors import UserError
from router_lab.losses import (
    LOSSES,
    LoadBalance,
    acting,
    build_losses,
    layer_terms,
    weight_in_layer,
)
from router_lab.model.ffn import build_ffn
from router_lab.model.transformer import ModelOptions, Transformer
from router_lab.routing import ROUTERS, Routing


def routed(logits_TE: Tensor, k: int = 1, n_sequences: int = 1) -> Routing:
    """Softmax top-k, not renormalised, over sequences of equal length."""
    T, _ = logits_TE.shape
    context = context_of(n_sequences, T // n_sequences)
    probs_TE = logits_TE.softmax(dim=-1)
    index_TK = logits_TE.topk(k, dim=-1).indices
    weight_TK = probs_TE.gather(1, index_TK)
    return Routing.from_topk(
        index_TK, weight_TK, logits_TE=logits_TE, probs_TE=probs_TE, context=context
    )


def one_expert_each(E: int, T: int, sure: float = 1e4) -> Tensor:
    """Logits of tokens that take turns: token t is sure of expert t mod E."""
    return sure * torch.eye(E)[torch.arange(T) % E]


def collapsed(E: int, T: int, sure: float = 1e4) -> Tensor:
    return sure * torch.eye(E)[torch.zeros(T, dtype=torch.long)]


def value(name: str, routing: Routing, **options: Any) -> float:
    return LOSSES.build({"name": name, **options})(routing, routing.demand_E).item()


@pytest.mark.parametrize("E", [1, 2, 5])
@pytest.mark.parametrize(
    ("name", "options", "at_balance", "at_collapse"),
    [
        ("load_balance", {"scope": "micro_batch"}, lambda E: 1, lambda E: E),
        ("load_balance", {"scope": "sequence"}, lambda E: 1, lambda E: E),
        ("load_balance", {"scope": "global"}, lambda E: 1, lambda E: E),
        ("load_balance", {"reference": "hf"}, lambda E: 1, lambda E: E),
        ("load_balance", {"reference": "llm_baselines"}, lambda E: 1 / E, lambda E: 1),
        ("importance", {}, lambda E: 0, lambda E: E - 1),
        ("probability_cv", {}, lambda E: 0, lambda E: E - 1),
        ("entropy", {}, lambda E: 0, math.log),
    ],
)
def test_value_at_balance_and_at_collapse(
    name: str, options: dict[str, Any], at_balance: Any, at_collapse: Any, E: int
) -> None:
    balanced = routed(one_expert_each(E, 4 * E), n_sequences=2)
    assert value(name, balanced, **options) == pytest.approx(at_balance(E), abs=1e-5)
    everything_on_one = routed(collapsed(E, 4 * E), n_sequences=2)
    assert value(name, everything_on_one, **options) == pytest.approx(at_collapse(E), abs=1e-5)


def test_every_loss_is_in_the_table_above_or_below() -> None:
    assert LOSSES.names() == ["entropy", "importance", "load_balance", "probability_cv", "z"]


def test_z_by_hand() -> None:
    """logsumexp of E zeros is log E; of (3, −∞, −∞) it is 3."""
    assert value("z", routed(torch.zeros(6, 4))) == pytest.approx(math.log(4) ** 2)
    assert value("z", routed(torch.tensor([[3.0, -1e9, -1e9]]))) == pytest.approx(9.0)
    both = torch.tensor([[0.0, 0.0], [3.0, -1e9]])
    assert value("z", routed(both)) == pytest.approx((math.log(2) ** 2 + 9) / 2)


def test_load_balance_by_hand() -> None:
    """Three tokens, two experts; two tokens prefer the first (0.8, 0.6), one the second (0.7):
    f = (2/3, 1/3), P = (0.8 + 0.6 + 0.3, 0.2 + 0.4 + 0.7)/3 = (1.7, 1.3)/3,
    2 · (2/3 · 1.7/3 + 1/3 · 1.3/3) = 9.4/9."""
    routing = routed(torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]).log())
    assert value("load_balance", routing) == pytest.approx(9.4 / 9)


def test_balance_losses_ignore_confidence() -> None:
    """Unsure tokens with equal probabilities are as balanced as sure ones that take turns."""
    for sure in (0.01, 1.0, 1e4):
        routing = routed(one_expert_each(4, 16, sure))
        assert value("load_balance", routing) == pytest.approx(1.0)
        assert value("entropy", routing) == pytest.approx(0.0, abs=1e-6)
        assert value("probability_cv", routing) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["load_balance", "importance", "probability_cv", "entropy"])
def test_a_step_down_the_gradient_balances(name: str) -> None:
    logits_TE = (torch.randn(64, 4) + torch.tensor([1.0, 0.0, 0.0, -1.0])).requires_grad_()
    before = routed(logits_TE, k=2)
    loss = LOSSES.build({"name": name})
    loss(before, before.demand_E).backward()
    assert logits_TE.grad is not None
    pull_E = logits_TE.grad.sum(dim=0)
    assert pull_E[0] > 0 > pull_E[3]  # down the gradient: less of the first, more of the last
    after = routed(logits_TE.detach() - 50 * logits_TE.grad, k=2)
    assert value(name, after) < value(name, before)
    assert after.load_E.max() < before.load_E.max()


# --- the scopes, against loops over tokens ------------------------------------------------------


def naive_load_balance(index_TK: np.ndarray, probs_TE: np.ndarray, count_TK: np.ndarray) -> float:
    """E Σ f P in loops; f from count_TK, P from probs_TE."""
    T, E = probs_TE.shape
    total = 0.0
    for e in range(E):
        f = sum(1 for row in count_TK for i in row if i == e) / count_TK.size
        P = sum(probs_TE[t, e] for t in range(T)) / T
        total += f * P
    return E * total


@given(
    seed=st.integers(0, 10_000),
    E=st.integers(2, 6),
    B=st.integers(1, 4),
    S=st.integers(1, 5),
    data=st.data(),
)
def test_scopes_against_loops(seed: int, E: int, B: int, S: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, E))
    torch.manual_seed(seed)
    micro = [routed(2 * torch.randn(B * S, E), k, n_sequences=B) for _ in range(3)]
    index = [r.taken.expert_A.view(B * S, k).numpy() for r in micro]
    probs = [r.probs_TE.numpy() for r in micro]

    for i, routing in enumerate(micro):
        expected = naive_load_balance(index[i], probs[i], index[i])
        assert value("load_balance", routing) == pytest.approx(expected, rel=1e-4)

        rows = [slice(b * S, (b + 1) * S) for b in range(B)]
        each = [naive_load_balance(index[i][r], probs[i][r], index[i][r]) for r in rows]
        assert value("load_balance", routing, scope="sequence") == pytest.approx(
            np.mean(each), rel=1e-4
        )

        # global: f over the micro-batches of the step so far, P over this one alone
        so_far = np.concatenate(index[: i + 1])
        demand_E = torch.stack([r.demand_E for r in micro[: i + 1]]).sum(dim=0)
        terms = layer_terms(
            build_losses({"load_balance": {"scope": "global", "coef": 0.5}}, {}),
            {"layer0": routing},
            {"layer0": demand_E},
        )
        expected = naive_load_balance(index[i], probs[i], so_far)
        assert float(terms.terms["load_balance"]) == pytest.approx(expected, rel=1e-4)
        assert float(terms.total) == pytest.approx(0.5 * expected, rel=1e-4)


def test_sequences_of_unequal_length_and_an_empty_one() -> None:
    """Sequence 0 has tokens 0 and 1, sequence 1 none, sequence 2 the last: the mean is over two."""
    logits_TE = torch.randn(3, 4)
    routing = routed(logits_TE, k=2)
    context = replace(routing.context, sequence_T=torch.tensor([0, 0, 2]), n_sequences=3)
    routing = replace(routing, context=context)
    parts = [value("load_balance", routed(part, k=2)) for part in (logits_TE[:2], logits_TE[2:])]
    assert value("load_balance", routing, scope="sequence") == pytest.approx(sum(parts) / 2)


@pytest.mark.parametrize("scope", ["micro_batch", "sequence"])
@pytest.mark.parametrize("limit", ["batch", "sequence"])
def test_dropped_assignments_count_as_load(scope: str, limit: Any) -> None:
    """Else a full expert would look balanced, and the loss would stop pushing."""
    routing = routed(collapsed(4, 16, sure=3.0), n_sequences=2)
    dropped = Capacity(factor=1.0, scope=limit)(routing)
    assert dropped.load_E.tolist() == [4, 0, 0, 0]
    assert value("load_balance", dropped, scope=scope) == value(
        "load_balance", routing, scope=scope
    )
    again = Capacity(factor=1.0, scope=limit)(dropped)
    assert value("load_balance", again, scope=scope) == value("load_balance", routing, scope=scope)


def test_special_experts_may_be_asked_for_a_smaller_share() -> None:
    """Two feed-forward experts and one zero expert, tau = 2: balance is 2/5, 2/5, 1/5."""
    turn_T = torch.tensor([0, 0, 1, 1, 2])
    routing = routed(1e4 * torch.eye(3)[turn_T])
    routing = replace(routing, kinds=("ffn", "ffn", "zero"))
    assert value("load_balance", routing, tau=2.0) == pytest.approx(1.0)
    on_one = replace(routed(collapsed(3, 5)), kinds=("ffn", "ffn", "zero"))
    assert value("load_balance", on_one, tau=2.0) == pytest.approx(5 / 2)


# --- against transformers ----------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_hf_scale_against_transformers(k: int, padded: bool) -> None:
    """One layer, as transformers pools layers before it multiplies. Tolerance 1e-5."""
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    B, S, E = 3, 7, 5
    logits_TE = torch.randn(B * S, E)
    mask_BS = torch.ones(B, S, dtype=torch.bool)
    if padded:
        mask_BS = torch.arange(S) < torch.tensor([[7], [4], [1]])
    expected = mixtral.load_balancing_loss_func(
        (logits_TE,), num_experts=E, top_k=k, attention_mask=mask_BS.long() if padded else None
    )
    routing = routed(logits_TE[mask_BS.flatten()], k)  # padding never reaches a record
    assert value("load_balance", routing, reference="hf") == pytest.approx(
        float(expected), abs=1e-5
    )


# --- the layers together -----------------------------------------------------------------------


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


def test_configurations() -> None:
    default = {"load_balance": {"coef": 0.25, "scope": "sequence"}}
    (loss,) = build_losses({"default": {}}, default).values()
    assert isinstance(loss, LoadBalance) and (loss.coef, loss.scope) == (0.25, "sequence")
    assert build_losses({}, default) == {}
    assert list(build_losses({"z": None, "entropy": {"coef": 0}}, {})) == ["z"]
    for wrong, words in [
        ("balance", "loss=balance is not possible; give the losses by name"),
        ({"balance": None}, "There is no loss named 'balance'"),
        ({"z": {"coef": -1.0}}, "loss.z.coef=-1.0 is not possible; it must be a number, 0 or more"),
        ({"z": {"reduce": "max"}}, "one of sum, mean"),
        ({"load_balance": {"scope": "layer"}}, "one of micro_batch, sequence, global"),
    ]:
        with pytest.raises(UserError, match=words):
            build_losses(wrong, {})  # type: ignore[arg-type]
