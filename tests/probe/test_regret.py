"""Routing regret: alternatives by hand, the loss under each of them by plain loops."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import context_of
from torch import Tensor

from router_lab.model.transformer import ModelOptions, Transformer
from router_lab.probe.regret import alternatives, measure_regret, n_alternatives
from router_lab.probe.trace import trace
from router_lab.routing import ROUTERS, RouterContext, Routing

V, S = 11, 6


def build(router: dict[str, Any], n_layers: int = 2, n_experts: int = 4, **ffn: Any) -> Transformer:
    node = {"name": "moe", "n_experts": n_experts, "router": router, **ffn}
    model = Transformer(V, node, ModelOptions(8, n_layers, n_heads=2, seq_len=S), d_hidden=6)
    with torch.no_grad():
        model.embedding.weight.mul_(30)  # so that losses and choices differ well
    return model.eval()


def window() -> Tensor:
    return torch.randint(0, V, (S + 1,))


# --- which alternatives --------------------------------------------------------------------------


def record(chosen: list[int], probs: list[float]) -> Routing:
    """One token with these experts, first choice first."""
    scores_TE = torch.tensor([probs])
    return Routing.from_topk(
        torch.tensor([chosen]),
        torch.ones(1, len(chosen)),
        logits_TE=scores_TE,
        probs_TE=scores_TE,
        context=context_of(1, 1),
    )


def test_all_subsets_by_hand() -> None:
    """{2, 0} of four. Where both leave, the likelier newcomer, 3, takes the first one's weight."""
    found = alternatives(record([2, 0], [0.3, 0.1, 0.4, 0.2]), 0).tolist()
    assert sorted(found) == sorted([[1, 0], [2, 1], [2, 3], [3, 0], [3, 1]])
    assert n_alternatives(4, 2) == 5


def test_single_swaps_where_there_are_too_many_subsets() -> None:
    probs = torch.rand(10).tolist()
    found = alternatives(record([7, 1, 4], probs), 0).tolist()
    right = []
    for place in range(3):
        for new in set(range(10)) - {7, 1, 4}:
            row = [7, 1, 4]
            row[place] = new
            right.append(row)
    assert sorted(found) == sorted(right)
    assert n_alternatives(10, 3) == len(right) == 21 < math.comb(10, 3) - 1


def test_no_expert_or_all_of_them_leaves_no_choice() -> None:
    assert alternatives(record([1, 0], [0.5, 0.5]), 0).shape == (0, 2)
    full = record([1, 0], [0.4, 0.6])
    nobody = replace(full, taken=full.taken.keep(torch.tensor([], dtype=torch.long)))
    assert len(alternatives(nobody, 0)) == 0


# --- the loss under each -------------------------------------------------------------------------


def loop_forward(
    model: Transformer, tokens_S: Tensor, changed: tuple[str, int, list[int]] | None = None
) -> Tensor:
    """Loss of each token of one window, every MoE layer as loops over tokens and experts.

    changed: layer, token, and its experts in the order of choice; the weights stay as they are.
    """
    inputs = tokens_S[:-1]
    x_SD = model.embedding(inputs)
    for layer, block in enumerate(model.blocks):
        x_SD = x_SD + block.attention(block.attention_norm(x_SD)[None], None)[0]
        h_SD = block.ffn_norm(x_SD)
        logits = h_SD @ block.ffn.router.gate.weight.T
        gate_up_EDF, down_EFD = block.ffn.experts.gate_up_EDF, block.ffn.experts.down_EFD
        rows = []
        for t in range(S):
            top = logits[t].topk(2)
            experts, weights = top.indices.tolist(), top.values.softmax(0)
            if changed is not None and changed[:2] == (f"layer{layer}", t):
                experts = changed[2]
            y_D = torch.zeros(8)
            for e, w in zip(experts, weights, strict=True):
                gate_F, up_F = (h_SD[t] @ gate_up_EDF[e]).chunk(2)
                y_D = y_D + w * ((F.silu(gate_F) * up_F) @ down_EFD[e])
            rows.append(y_D)
        x_SD = x_SD + torch.stack(rows)
    logits_SV = model.norm(x_SD) @ model.embedding.weight.T
    return F.cross_entropy(logits_SV, tokens_S[1:], reduction="none").double()


@torch.no_grad()
@pytest.mark.parametrize("position", [0, 3, S - 1])
def test_regret_equals_the_loss_under_each_choice(position: int) -> None:
    model = build({"name": "softmax_topk", "k": 2})
    windows = torch.stack([window(), window()])
    found = measure_regret(model, windows, [position, position])
    for name in ("layer0", "layer1"):
        chosen, totals, owns = [], [], []
        for tokens_S in windows:
            base_S = loop_forward(model, tokens_S)
            routing = trace(model, tokens_S[None, :-1]).routings[name]
            chosen = routing.taken.expert_A.view(S, 2)[position].tolist()
            order = routing.probs_TE[position].argsort(descending=True).tolist()
            deltas = []
            for other in permutations(range(4), 2):
                kept = [e for e in other if e in chosen]
                in_place = all(other.index(e) == chosen.index(e) for e in kept)
                by_order = bool(kept) or order.index(other[0]) < order.index(other[1])
                if set(other) != set(chosen) and in_place and by_order:
                    deltas.append(
                        loop_forward(model, tokens_S, (name, position, list(other))) - base_S
                    )
            assert len(deltas) == 5
            totals.append([float(d[position:].sum()) for d in deltas])
            owns.append([float(d[position]) for d in deltas])
            assert all(d[:position].abs().sum() < 1e-5 for d in deltas)
        right = {
            "regret_nats": sum(max(0, -min(t)) for t in totals) / 2,
            "regret_own_nats": sum(max(0, -min(o)) for o in owns) / 2,
            "best_choice": sum(min(t) > 0 for t in totals) / 2,
            "best_choice_own": sum(min(o) > 0 for o in owns) / 2,
            "best_choice_chance": 1 / 6,
            "beats": sum(x > 0 for t in totals for x in t) / 10,
            "swap_nats": sum(map(sum, totals)) / 10,
            "alternatives": 5,
            "probed": 2,
        }
        summary = found[name]
        assert summary.pop("regret_nats_se") >= 0
        assert summary == pytest.approx(right, abs=2e-5)
        assert max(abs(x) for t in totals for x in t) > 1e-2  # there was something to see


@torch.no_grad()
@pytest.mark.parametrize(
    ("gate", "position", "best"),
    [
        ([1.0, 0.0, -1.0], 2, False),  # takes expert 0, and token 5 is next
        ([-1.0, 0.0, 1.0], 2, True),  # takes expert 2, and token 5 is next
        ([-1.0, 0.0, 1.0], 0, False),  # takes expert 2, and another token is next
        ([1.0, 0.0, -1.0], 0, True),
    ],
)
def test_by_hand_with_one_layer_of_three_experts(
    gate: list[float], position: int, best: bool
) -> None:
    """Experts 0 and 1 do nothing; expert 2 moves any prediction towards token 5.

    Attention is off, so nothing later moves. The gate is the same for all tokens. A wrong choice is
    regretted by what the right one, with the same weight, would have saved.
    """
    router = {"name": "softmax_topk", "k": 1, "norm_topk_prob": False}
    model = build(router, n_layers=1, n_experts=3)
    block = model.blocks[0]
    model.embedding.weight.abs_()
    block.attention.out.weight.zero_()
    block.ffn.router.gate.weight.copy_(torch.tensor(gate)[:, None].expand(3, 8))
    block.ffn.experts.gate_up_EDF.fill_(0.1)
    block.ffn.experts.down_EFD.zero_()
    block.ffn.experts.down_EFD[2] = model.embedding.weight[5]

    tokens_S = torch.tensor([1, 2, 3, 5, 1, 2, 3])
    x_D, target = model.embedding(tokens_S[position]), tokens_S[position + 1]
    h_D = x_D / (x_D.square().mean() + 1e-6).sqrt()
    hidden = 0.1 * h_D.sum()
    weight = (torch.tensor(gate) * h_D.sum()).softmax(0).max()
    push_D = weight * 6 * F.silu(hidden) * hidden * model.embedding.weight[5]
    losses = []
    for y_D in (x_D, x_D + push_D):
        normed_D = y_D / (y_D.square().mean() + 1e-6).sqrt()
        losses.append(-(normed_D @ model.embedding.weight.T).log_softmax(0)[target].item())
    nothing, pushed = losses

    found = measure_regret(model, tokens_S[None], [position])["layer0"]
    assert abs(nothing - pushed) > 0.01
    assert found["best_choice"] == found["best_choice_own"] == best
    regret = 0.0 if best else abs(nothing - pushed)
    assert found["regret_nats"] == pytest.approx(regret, abs=1e-5)
    assert found["regret_own_nats"] == pytest.approx(regret, abs=1e-5)
    # The two alternatives: the other idle expert, and the pusher; or both idle ones.
    other = pushed - nothing if gate[0] > 0 else 2 * (nothing - pushed)
    assert found["swap_nats"] == pytest.approx(other / 2, abs=1e-5)


# --- any router ----------------------------------------------------------------------------------


def whole_pass(model: Transformer, tokens_S: Tensor, name: str, t: int, row: list[int]) -> Tensor:
    """The loss of a plain forward pass in which the token has other experts."""

    layer = model.blocks[int(name.removeprefix("layer"))].ffn
    plain_route = layer.route

    def route(x_TD: Tensor, context: RouterContext) -> Routing:
        routing = plain_route(x_TD, context)
        taken = routing.taken
        ranks = list(zip(taken.token_A.tolist(), taken.rank_A.tolist(), strict=True))
        mine = sorted((rank, a) for a, (token, rank) in enumerate(ranks) if token == t)
        expert_A = taken.expert_A.clone()
        for (_, a), e in zip(mine, row, strict=True):
            expert_A[a] = e
        return replace(routing, taken=replace(taken, expert_A=expert_A))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer, "route", route)
        logits = model(tokens_S[None, :-1]).logits_BSV[0]
    return F.cross_entropy(logits, tokens_S[1:], reduction="none").double()


@torch.no_grad()
@pytest.mark.parametrize("name", ROUTERS.names())
def test_any_router(name: str) -> None:
    """Copies computed at once, from the layer up, equal whole passes of one window each."""
    options = {option.name for option in ROUTERS.options(name)}
    given = {"norm_topk_prob": False} if "norm_topk_prob" in options else {}
    model = build({"name": name, **given}, n_experts=8)
    tokens_S, t = window(), 2
    known = trace(model, tokens_S[None, :-1])
    found = measure_regret(model, tokens_S[None], [t])
    first = 0 if model.lookahead == "always" else t
    whole = F.cross_entropy(
        model(tokens_S[None, :-1]).logits_BSV[0], tokens_S[1:], reduction="none"
    ).double()
    for layer_name, layer in found.items():
        rows = alternatives(known.routings[layer_name], t).tolist()
        deltas = [whole_pass(model, tokens_S, layer_name, t, row) - whole for row in rows]
        totals = [float(d[first:].sum()) for d in deltas]
        if not rows:
            assert layer == {}
            continue
        assert layer["swap_nats"] == pytest.approx(sum(totals) / len(totals), abs=1e-4)
        assert layer["regret_nats"] == pytest.approx(max(0.0, -min(totals)), abs=1e-4)
