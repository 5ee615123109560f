"""Collectives over the processes of one run (DDP)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


def n_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def broadcast_from_rank0(values: Sequence[float], device: torch.device) -> list[float]:
    """Rank 0's values, as clocks and signals differ between ranks but all must act alike."""
    if n_ranks() == 1:
        return list(values)
    shared = torch.tensor(values, dtype=torch.float32, device=device)
    dist.broadcast(shared, src=0)
    return shared.tolist()


def union_over_ranks(values: Mapping[K, T]) -> dict[K, T]:
    """This rank's entries and those that only other ranks have, in one order on all ranks.

    An inner expert that got no token on a rank has no record there.
    """
    if n_ranks() == 1:
        return dict(values)
    ranks: list[Any] = [None] * n_ranks()
    dist.all_gather_object(ranks, dict(values))
    union = {name: value for one in ranks for name, value in one.items()} | dict(values)
    return {name: union[name] for name in sorted(union)}
