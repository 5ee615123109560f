"""Bytes that are saved and held, of computations whose memory is known."""

from __future__ import annotations

import torch
from torch import Tensor

from router_lab.bench.memory import peak_bytes, saved_bytes

N = 1 << 16
BYTES = 4 * N


def test_saved_is_what_the_backward_pass_reads() -> None:
    x = torch.randn(N, requires_grad=True)
    weight = torch.randn(N, requires_grad=True)

    def product() -> Tensor:
        return (x * weight).exp()  # saves x, weight and the result of exp

    assert saved_bytes(product, [weight]) == 2 * BYTES
    assert saved_bytes(product, []) == 3 * BYTES
    assert saved_bytes(lambda: x + weight, []) == 0


def test_one_storage_counts_once() -> None:
    x = torch.randn(2, N, requires_grad=True)
    assert saved_bytes(lambda: x[0] * x[1], []) == 2 * BYTES


def test_peak_is_the_most_that_is_held_at_once() -> None:
    def one_after_the_other() -> None:
        for _ in range(4):
            torch.empty(N)

    def side_by_side() -> None:
        kept = [torch.empty(N) for _ in range(4)]
        assert len(kept) == 4

    assert BYTES <= peak_bytes(one_after_the_other) < 1.1 * BYTES
    assert 4 * BYTES <= peak_bytes(side_by_side) < 4.1 * BYTES
