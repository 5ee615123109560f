"""Sums and agreement over several ranks."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from router_lab.training.ranks import broadcast_from_rank0, union_over_ranks
from router_lab.training.task import StepDemand


def on_two_ranks(function: Any, folder: Path) -> list[Any]:
    """What the function gives in each of two processes that are joined by gloo."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def run(rank: int) -> None:
        dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
        queue.put((rank, function(rank)))
        dist.barrier()
        os._exit(0)

    processes = [context.Process(target=run, args=(rank,)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = dict(queue.get() for _ in processes)
    for process in processes:
        process.join()
    return [found[0], found[1]]


def test_demand_adds_up_over_ranks_that_know_different_layers(tmp_path: Path) -> None:
    def over_ranks(rank: int) -> Any:
        step = StepDemand()
        step.demand = {"layer0": torch.tensor([1 + rank, 3])}
        step.tokens = {"layer0": torch.tensor(2)}
        step.stats = {"layer0": {"sum_E": torch.tensor([0.5, 1.5 + rank])}}
        if rank == 1:  # an inner expert that only this rank has tokens for
            step.demand["layer0.expert1"] = torch.tensor([2**40, 0, 1])
            step.tokens["layer0.expert1"] = torch.tensor(7)
            step.stats["layer0.expert1"] = {"n": torch.tensor(3.0)}
        total = step.over_ranks()
        return (
            {name: value.tolist() for name, value in total.demand.items()},
            {name: value.item() for name, value in total.tokens.items()},
            {name: {k: v.tolist() for k, v in s.items()} for name, s in total.stats.items()},
            total.demand["layer0"].dtype == torch.long,
            total.density(),
        )

    first, second = on_two_ranks(over_ranks, tmp_path)
    assert first == second
    demand, tokens, stats, is_long, density = first
    assert demand == {"layer0": [3, 6], "layer0.expert1": [2**40, 0, 1]} and is_long
    assert tokens == {"layer0": 4, "layer0.expert1": 7}
    assert stats == {"layer0": {"sum_E": [1.0, 4.0]}, "layer0.expert1": {"n": 3.0}}
    assert density == pytest.approx((9 / 8 + (2**40 + 1) / 21) / 2)


def test_ranks_agree_and_know_what_any_has(tmp_path: Path) -> None:
    def talk(rank: int) -> Any:
        return (
            broadcast_from_rank0([rank, 1 - rank], torch.device("cpu")),
            union_over_ranks({"b": rank, f"only {rank}": 5}),
        )

    (says, known), (also, known_too) = on_two_ranks(talk, tmp_path)
    assert says == also == [0.0, 1.0]
    assert known == {"b": 0, "only 0": 5, "only 1": 5}
    assert list(known) == list(known_too) and known_too["b"] == 1


def test_one_rank_needs_nobody() -> None:
    step = StepDemand()
    assert step.over_ranks() is step and step.density() == 0
    assert union_over_ranks({"a": 1}) == {"a": 1}
    assert broadcast_from_rank0([1.5], torch.device("cpu")) == [1.5]
