"""Specialisation by token id and by domain, by hand and by brute force."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from random_records import D, Token, domains, of_domains, plain, records, topk, vocabulary

from router_lab.routing import Routing


def test_vocabulary_by_hand() -> None:
    """Id 7 thrice: to 0, 0, 1. Id 5 twice: to 2, 2. Id 1 once, which says nothing of it.

    r_7 = 2/(2·3) = 1/3, r_5 = 2/(1·2) = 1, r = (3·1/3 + 2·1)/5 = 0.6. Loads 2, 2, 2 of 6 tokens:
    c = 6/(5·6) = 0.2. (0.6 − 0.2)/0.8 = 0.5.
    """
    routing = topk([[0], [0], [1], [2], [2], [1]], 3, ids=[7, 7, 7, 5, 5, 1])
    metric = vocabulary(3, 8)
    metric.update(routing)
    assert metric.compute()["vocab_specialisation"] == pytest.approx(0.5)


def test_a_hash_is_wholly_specialised_and_a_coin_not_at_all() -> None:
    ids = torch.randint(0, 50, (2000,))
    table_VK = torch.stack([torch.randperm(8)[:2] for _ in range(50)])
    for index_TK, right in ((table_VK[ids], 1.0), (torch.rand(2000, 8).topk(2).indices, 0.0)):
        metric = vocabulary(8, 50)
        metric.update(topk(index_TK.tolist(), 8, ids.tolist()))
        assert metric.compute()["vocab_specialisation"] == pytest.approx(right, abs=0.02)


@given(records())
def test_vocabulary_equals_all_pairs_of_tokens(routing: Routing) -> None:
    tokens = plain(routing)

    def repeat(group: list[Token]) -> float | None:
        """Over ordered pairs of tokens, the part of the first one's experts that the second has."""
        pairs = list(permutations(group, 2))
        asked = sum(len(a.experts) for a, _ in pairs)
        return sum(len(a.experts & b.experts) for a, b in pairs) / asked if asked else None

    groups = [[t for t in tokens if t.id == x] for x in range(4)]
    repeated = [(len(g), r) for g in groups if (r := repeat(g)) is not None]
    metric = vocabulary(routing.n_experts, 4)
    metric.update(routing)
    value = metric.compute()["vocab_specialisation"]
    chance = repeat(tokens)
    if not repeated or chance is None or chance == 1:
        assert value == 0.0
        return
    same = sum(n * r for n, r in repeated) / sum(n for n, _ in repeated)
    assert metric.compute()["vocab_specialisation"] == pytest.approx(
        (same - chance) / (1 - chance), abs=1e-6
    )


def test_domains_by_hand() -> None:
    """Expert 0 serves domain 0 only, expert 1 serves both evenly; the last token has no domain."""
    routing = topk([[0], [0], [1], [1], [0]], 3)
    metric = of_domains(3, 2)
    metric.update(routing, torch.tensor([0, 0, 0, 1, -1]))
    found = metric.compute()
    unrepeated = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    left = 0.5 * math.log(2)  # half of the time expert 1, which leaves one bit open
    assert found["domain_nmi"] == pytest.approx((unrepeated - left) / unrepeated)
    assert found["domain_purity"] == pytest.approx(0.75)
    assert found["domain_purity_chance"] == pytest.approx(0.75)
    np.testing.assert_allclose(found["share_DE"], np.array([[2 / 3, 1 / 3, 0], [0, 1, 0]]))


def test_more_experts_than_domains_can_be_wholly_specialised() -> None:
    metric = of_domains(4, 2)
    metric.update(topk([[0, 1], [2, 3], [1, 0], [3, 2]], 4), torch.tensor([0, 1, 0, 1]))
    assert metric.compute()["domain_nmi"] == pytest.approx(1.0)
    assert metric.compute()["domain_purity"] == pytest.approx(1.0)
    collapsed = of_domains(4, 2)
    collapsed.update(topk([[0], [0]], 4), torch.tensor([0, 1]))
    assert collapsed.compute()["domain_nmi"] == 0.0


@pytest.mark.parametrize("load", [(1, 4, 1), (2, 7, 1), (1, 4, 1, 1), (4, 0, 0)])
def test_a_single_domain_leaves_nothing_to_know(load: tuple[int, ...]) -> None:
    """The entropy of its share, 1 up to rounding, can be 1e-16 instead of 0."""
    index = [[expert] for expert, n in enumerate(load) for _ in range(n)]
    metric = of_domains(len(load), D)
    metric.update(topk(index, len(load)), torch.ones(len(index), dtype=torch.long))
    found = metric.compute()
    assert found["domain_nmi"] == 0.0
    assert found["domain_purity"] == pytest.approx(1.0)


@given(records(), st.integers(0, 10**6))
def test_domains_equal_brute_force(routing: Routing, seed: int) -> None:
    domain_T = domains(routing, seed)
    metric = of_domains(routing.n_experts, D)
    metric.update(routing, domain_T)
    found = metric.compute()
    pairs = [
        (d, e)
        for d, t in zip(domain_T.tolist(), plain(routing), strict=True)
        for e in t.experts
        if d >= 0
    ]
    if not pairs:
        assert found["domain_nmi"] == found["domain_purity"] == 0.0
        return
    n = len(pairs)
    joint = {pair: pairs.count(pair) / n for pair in pairs}
    p_d = {d: sum(p for (a, _), p in joint.items() if a == d) for d, _ in joint}
    p_e = {e: sum(p for (_, b), p in joint.items() if b == e) for _, e in joint}
    shared = sum(p * math.log(p / p_d[d] / p_e[e]) for (d, e), p in joint.items())
    unrepeated = -sum(p * math.log(p) for p in p_d.values())
    right = shared / unrepeated if len(p_d) > 1 else 0.0
    assert found["domain_nmi"] == pytest.approx(right, abs=1e-9)
    purity = sum(max(p for (_, b), p in joint.items() if b == e) for e in p_e)
    assert found["domain_purity"] == pytest.approx(purity)
    assert found["domain_purity_chance"] == pytest.approx(max(p_d.values()))
