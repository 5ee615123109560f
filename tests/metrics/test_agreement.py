"""Coactivation and agreement, by hand and by brute force."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch
from helpers import context_of
from hypothesis import given, strategies as st
from random_records import (
    measure,
    plain,
    random_record,
    records,
    topk,
)

from router_lab.metrics import Agreement, selection
from router_lab.routing import Routing


def test_coactivation_sees_pairs_that_are_not_neighbours_in_rank() -> None:
    """Experts 0 and 2 always come together, first and last of three."""
    values = measure(topk([[0, 1, 2], [0, 3, 2], [0, 1, 2], [1, 3, 4]], n_experts=5)).compute()
    matrix = values["coactivation_EE"]
    assert matrix[0].tolist() == pytest.approx([1, 2 / 3, 1, 1 / 3, 0])
    assert matrix[4].tolist() == [0, 1, 0, 1, 1]
    # best partners: 0 and 2 each other 3 of 3, 1 with 0: 2 of 3, 3: 1 of 2, 4: 1 of 1
    assert values["coactivation"] == pytest.approx((3 + 3 + 2 + 1 + 1) / 12)


def test_coactivation_of_fixed_groups_and_of_one_expert() -> None:
    assert measure(topk([[0, 1], [2, 3], [1, 0]], 4)).compute()["coactivation"] == 1.0
    assert measure(topk([[0], [1]], 4)).compute()["coactivation"] == 0.0


def test_agreement_by_hand() -> None:
    before = topk([[0, 1], [2, 3], [0, 2]], 4)
    after = topk([[1, 0], [2, 0], [1, 3]], 4)  # the same, half, all other
    agreement = Agreement()
    agreement.update(after, selection(before))
    assert agreement.compute() == pytest.approx((1 + 0.5 + 0) / 3)


def test_agreement_where_k_varies() -> None:
    """{0,1} → {0}: half. {} → {1}: none. {2} → {2,3,0}: a third. {} → {}: left out."""

    def varying(sets: list[set[int]]) -> Routing:
        mask_TE = torch.tensor([[e in s for e in range(4)] for s in sets])
        zeros_TE = torch.zeros(len(sets), 4)
        context = context_of(1, len(sets))
        return Routing.from_mask(
            mask_TE, mask_TE.float(), logits_TE=zeros_TE, probs_TE=zeros_TE, context=context
        )

    before, after = varying([{0, 1}, set(), {2}, set()]), varying([{0}, {1}, {2, 3, 0}, set()])
    agreement = Agreement()
    agreement.update(after, selection(before))
    assert agreement.compute() == pytest.approx((1 / 2 + 0 + 1 / 3) / 3)


@given(st.integers(0, 10**6), records(n_experts=4), st.data())
def test_agreement_equals_brute_force(seed: int, first: Routing, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["variable_k", "dropped", "fixed_k"]))
    context = first.context
    second = random_record(kind, 1, first.n_tokens, 4, 2, seed)
    pairs = list(zip(plain(first), plain(second), strict=True))
    scores = [
        len(a.experts & b.experts) / max(len(a.experts), len(b.experts))
        for a, b in pairs
        if a.experts or b.experts
    ]
    right = fmean(scores) if scores else 1.0
    for one, other in ((first, second), (second, first)):
        agreement = Agreement()
        agreement.update(one, selection(other))
        assert agreement.compute() == pytest.approx(right, abs=1e-6)
    assert context is first.context


def test_a_choice_agrees_with_itself() -> None:
    routing = random_record("variable_k", 2, 8, 4, 2, seed=3)
    agreement = Agreement()
    agreement.update(routing, selection(routing))
    assert agreement.compute() == 1.0
