"""Every balance loss at balance, at collapse, and against naive versions in plain loops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import collapsed, routed
from hypothesis import given, strategies as st
from torch import Tensor

from router_lab.capacity import Capacity
from router_lab.errors import UserError
from router_lab.losses import (
    LOSSES,
    LoadBalance,
    build_losses,
    layer_terms,
)
from router_lab.routing import Routing


def one_expert_each(E: int, T: int, sure: float = 1e4) -> Tensor:
    """Logits of tokens that take turns: token t is sure of expert t mod E."""
    return sure * torch.eye(E)[torch.arange(T) % E]


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
