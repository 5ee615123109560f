"""Routing regret: what other choices of experts would have cost or saved.

For a probed token t and one layer, every alternative choice S' of as many experts as the token has
(|S'| = |S|) replaces it; everything above is recomputed, including later tokens and the routing of
the layers above. Its effect is the change of the loss, in nats, summed over what it can reach: the
token's own next-token prediction and all later ones of its window (in a model that looks ahead, the
earlier ones too).

    Δ(S') = Σ_{s ≥ t} [loss_s(S') − loss_s(S)]          regret = max(0, −min_{S'} Δ(S'))

S' runs over all subsets of that size if there are at most `EXHAUSTIVE`, otherwise over all single
swaps. Experts that stay keep their combine weight; newcomers, in the order of the router's
probabilities, take the weights of those that leave, in the order of choice. So only the choice of
experts is judged, not its weights, for any router alike. Capacity is ignored: a full expert takes
the token too.

The best choice is known in hindsight: it has seen the next tokens, which no router has. Regret is
therefore above zero even for a perfect router; compare it with that of other routers with as many
alternatives, and with `swap_nats`, the mean cost of another choice.

Our own definition; each window is a batch of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean, stdev

import torch
from torch import Tensor

from router_lab.model.transformer import Transformer
from router_lab.probe.trace import nats, repeat, resume, routed_layers, sequences_meet, trace
from router_lab.routing import Routing

EXHAUSTIVE = 70
"""Up to so many other subsets, all are tried (8 experts, up to 4 of them); else single swaps."""
TOLERANCE = 1e-4
"""Nats by which an alternative must be better to count as better: the rounding of a long sum."""
LOGITS = 2**25
"""Elements of the logits computed at once (128 MB)."""


@torch.no_grad()
def measure_regret(
    model: Transformer,
    windows: Tensor,
    positions: Sequence[int],
    advance: Callable[[int], None] = lambda alternatives: None,
    step: int = 0,
) -> dict[str, dict[str, float]]:
    """Probes one token in each window, in every routed layer; returns each layer's `summary`.

    Args:
        model: in evaluation mode.
        windows: tokens [P, S + 1], long.
        positions: the probed position of each window, 0 … S − 1.
        advance: called with the number of alternatives just computed.
        step: optimiser steps that the model was trained for.

    Cost: for each token, layer and alternative, the layers above over the window; one alternative
    at a time if sequences compete for an expert's capacity.
    """
    layers = routed_layers(model)
    tokens: dict[str, list[dict[str, float]]] = {name: [] for name in layers}
    meet = sequences_meet(model)
    for window, position in zip(windows, positions, strict=True):
        first = 0 if meet else position
        base = trace(model, window[None, :-1], step)
        target_S = window[1 + first :]
        base_S = nats(model, base.output[:, first:], target_S[None])[0]
        # Elements of a copy's logits; a small vocabulary still has activations to store.
        size = len(target_S) * max(model.embedding.num_embeddings, 4096)
        at_once = 1 if meet else max(1, LOGITS // size)
        for name, (layer, _) in layers.items():
            others_NK = alternatives(base.routings[name], position)
            deltas = []
            for other_NK in others_NK.split(at_once) if len(others_NK) else ():
                changed = with_experts(base.routings[name], position, other_NK)
                x_NSD = resume(model, base, layer, changed)[:, first:]
                target_NS = target_S.expand(len(other_NK), -1)
                deltas.append(nats(model, x_NSD, target_NS) - base_S)
                advance(len(other_NK))
            if deltas:
                delta_NS = torch.cat(deltas)
                tokens[name].append(of_token(delta_NS.sum(dim=1), delta_NS[:, position - first]))
    return {name: summary(probed) for name, probed in tokens.items()}


def of_token(total_N: Tensor, own_N: Tensor) -> dict[str, float]:
    """A token's figures, from the change of the loss [N] under each alternative, in nats.

    Args:
        total_N: of all predictions that the token can reach.
        own_N: of its own next-token prediction alone.
    """
    return {
        "regret_nats": max(0.0, -float(total_N.min())),
        "regret_own_nats": max(0.0, -float(own_N.min())),
        "best_choice": float(total_N.min() > -TOLERANCE),
        "best_choice_own": float(own_N.min() > -TOLERANCE),
        "best_choice_chance": 1 / (len(total_N) + 1),
        "beats": float((total_N > 0).double().mean()),
        "swap_nats": float(total_N.mean()),
        "alternatives": float(len(total_N)),
    }


def summary(tokens: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the tokens of `of_token`; {} if no token had an alternative.

    - `regret_nats`, with its standard error `regret_nats_se`; `regret_own_nats`
    - `best_choice`: share of tokens whose choice no alternative betters; `best_choice_own`
    - `best_choice_chance`: that share for a choice made blindly among equals
    - `beats`: share of the alternatives that are worse than the choice; a coin has 0.5
    - `swap_nats`: mean change of the loss over the alternatives
    - `alternatives`: how many there were; `probed`: tokens that had any
    """
    if not tokens:
        return {}
    n, regret = len(tokens), [token["regret_nats"] for token in tokens]
    return {
        **{key: fmean(token[key] for token in tokens) for key in tokens[0]},
        "regret_nats_se": stdev(regret) / math.sqrt(n) if n > 1 else 0.0,
        "probed": float(n),
    }


def with_experts(record: Routing, token: int, other_NK: Tensor) -> Routing:
    """N copies of a window's record, each with other experts for one token."""
    copies = repeat(record, len(other_NK))
    shift_N = len(record.taken) * torch.arange(len(other_NK), device=other_NK.device)
    expert_A = copies.taken.expert_A.clone()
    expert_A[places(record, token) + shift_N[:, None]] = other_NK
    return replace(copies, taken=replace(copies.taken, expert_A=expert_A))


def places(record: Routing, token: int) -> Tensor:
    """Where the token's assignments are in the record, in its order of preference [K]."""
    place_K = (record.taken.token_A == token).nonzero().squeeze(1)
    return place_K[record.taken.rank_A[place_K].argsort(stable=True)]


def alternatives(record: Routing, token: int) -> Tensor:
    """Other choices of as many experts for a token [N, K], long.

    Column j takes the place, and the weight, of the token's expert number j in the order of choice.
    N = 0 for a token with no expert or with all of them.
    """
    chosen_K = record.taken.expert_A[places(record, token)]
    chosen, E, K = chosen_K.tolist(), record.n_experts, len(chosen_K)
    order = record.probs_TE[token].argsort(descending=True, stable=True).tolist()
    if math.comb(E, K) - 1 <= EXHAUSTIVE:
        sets = [set(subset) for subset in combinations(range(E), K)]
        sets.remove(set(chosen))
    else:
        others = [e for e in range(E) if e not in chosen]
        sets = [{*chosen, new} - {old} for old in chosen for new in others]
    rows = []
    for wanted in sets:
        newcomers = iter([e for e in order if e in wanted and e not in chosen])
        rows.append([e if e in wanted else next(newcomers) for e in chosen])
    return torch.tensor(rows, dtype=torch.long, device=chosen_K.device).view(len(rows), K)


def n_alternatives(n_experts: int, k: int) -> int:
    """How many other choices are tried for a token with k of E experts."""
    every = math.comb(n_experts, k) - 1
    return every if every <= EXHAUSTIVE else k * (n_experts - k)
