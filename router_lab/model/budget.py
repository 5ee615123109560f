"""The budget of a run: its length, its parameters and FLOPs, and widths solved to match them.

FLOPs are those of matrix products; a multiply and an add count as two. Training costs three times
the forward pass; recomputed activations are not counted again. Attention is counted as causal: a
token attends to half the sequence on average.

An expert counts as often as the router assigns it to a token at balanced load. The capacity stage
is a filter, so there is no padding to count. Dropped assignments are not computed: at balance, a
capacity factor of 1 or more drops nothing, and a factor below 1 leaves that share of the work.
`measured_flops` counts what was actually computed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from router_lab.errors import UserError
from router_lab.model.ffn import BALANCED, DENSE, FFN, Load, build_ffn
from router_lab.model.transformer import Attention, Transformer
from router_lab.runs import schema
from router_lab.runs.layers import within

UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
TOLERANCE = 0.01
"""Arms whose budgets differ by more than this share are not matched."""


@dataclass(frozen=True)
class Budget:
    """The length of a run, in tokens, training FLOPs or seconds of training."""

    kind: Literal["tokens", "flops", "seconds"]
    amount: float

    @classmethod
    def parse(cls, text: object) -> Budget:
        """`tokens:20M`, `flops:1e15`, `seconds:600`."""
        number = r"([0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?)([kmbgt]?)"
        match = re.fullmatch(rf"(tokens|flops|seconds):{number}", str(text).lower())
        amount = float(match[2]) * UNITS[match[3]] if match else 0.0
        if match is None or not 0 < amount < math.inf:
            raise UserError(
                f"budget={text} is not possible; give tokens:20M, flops:1e15 or seconds:600."
            )
        return cls(match[1], amount)  # type: ignore[arg-type]

    def steps(self, tokens_per_step: int, flops_per_token: float) -> int | None:
        """Optimiser steps of the run; None where the clock decides."""
        if self.kind == "seconds":
            return None
        tokens = self.amount if self.kind == "tokens" else self.amount / flops_per_token
        return max(1, math.ceil(tokens / tokens_per_step - 1e-9))


@dataclass(frozen=True)
class Cost:
    """Parameters of a model, and training FLOPs per token."""

    total: int
    active: float
    embedding: int
    flops_per_token: float


def cost(model: Transformer) -> Cost:
    """Counts the modules; experts by how often the router selects them on average."""
    total = sum(p.numel() for p in model.parameters())
    active = float(total)
    for ffn in _ffns(model):
        active += ffn.active_params() - sum(p.numel() for p in ffn.parameters())
    flops = _flops(model, _matmul(model, BALANCED))
    heads = [head for head in (model.embedding, model.unembedding) if head is not None]
    embedding = sum(head.weight.numel() for head in heads)
    return Cost(total, active, embedding, flops)


def measured_flops(model: Transformer, load: Load) -> float:
    """Training FLOPs per token, from the rows that the experts actually computed.

    Args:
        load: rows that each expert computed in training, per token of the model, by the name of the
            record ("layer0.expert3").
    """
    return _flops(model, _matmul(model, load))


def measured_active_params(model: Transformer, load: Load) -> float:
    """Parameters that a token used in training: the active parameters at balanced load, corrected
    by how many rows each expert actually computed.

    Args:
        load: as for `measured_flops`.
    """
    return cost(model).active + _matmul(model, load) - _matmul(model, BALANCED)


def _matmul(model: Transformer, load: Load) -> float:
    """Weight elements that all FFNs multiply a token with."""
    ffns = enumerate(_ffns(model))
    return sum(ffn.matmul_params(within(load, f"layer{i}")) for i, ffn in ffns)


def _ffns(model: Transformer) -> list[FFN]:
    ffns = [block.ffn for block in model.blocks]
    assert all(isinstance(ffn, FFN) for ffn in ffns)
    return ffns  # type: ignore[return-value]


def _flops(model: Transformer, ffn_matmul: float) -> float:
    """Training FLOPs per token, given the weight elements that all FFNs multiply a token with."""
    d_model = model.embedding.embedding_dim
    matmul = ffn_matmul + model.embedding.weight.numel()  # the head
    for block in model.blocks:
        attention = block.attention
        assert isinstance(attention, Attention)
        matmul += sum(p.numel() for p in attention.parameters())
        matmul += 2 * d_model * (model.seq_len + 1) / 2  # scores and weighted values
    return 3 * 2 * matmul


COUNTS: dict[str, Callable[[FFN], float]] = {
    "active_params": lambda ffn: ffn.active_params(),
    "flops": lambda ffn: ffn.matmul_params(),
    "total_params": lambda ffn: float(sum(p.numel() for p in ffn.parameters())),
}


@dataclass(frozen=True)
class Match:
    """How closely one layer of the FFN slot matches the dense layer.

    Attributes:
        kind: what is matched: a name in COUNTS.
        target: that count of a dense `mlp` of width model.d_ffn.
        actual: that count of the layer with this d_hidden.
        solved: True if d_hidden was solved for, False if it was given.
    """

    kind: str
    target: float
    actual: float
    d_hidden: int
    solved: bool

    @property
    def error(self) -> float:
        return self.actual / self.target - 1

    def report(self) -> schema.Match:
        return {
            "kind": self.kind,
            "target": self.target,
            "actual": self.actual,
            "d_hidden": self.d_hidden,
            "solved": self.solved,
            "error": self.error,
        }


def solve_width(match: str, ffn: Mapping[str, Any], d_model: int, d_ffn: int) -> Match | None:
    """The d_hidden at which a layer costs what a dense `mlp` of width d_ffn does.

    Every FFN's cost is a + b · d_hidden, so two small layers determine a and b. The width is a
    multiple of 8 if that meets the budget within 1%. A d_hidden in the node is left as it is.

    Returns:
        None for `match=none`, which does not solve for a width.

    Raises:
        UserError: unknown match, or no width can meet the budget.
    """
    if match == "none":
        return None
    if match not in COUNTS:
        raise UserError(f"match={match} is unknown; it must be one of {', '.join(COUNTS)}, none.")

    def count(config: Mapping[str, Any], width: int | None) -> float:
        return COUNTS[match](build_ffn(config, d_model, width))

    target = count(DENSE, d_ffn)
    given = ffn.get("d_hidden")
    if given is not None:
        return Match(match, target, count(ffn, None), given, solved=False)
    at_8, at_16 = count(ffn, 8), count(ffn, 16)
    slope = (at_16 - at_8) / 8
    fixed = at_8 - 8 * slope
    if slope <= 0:
        raise UserError(
            f"match={match} solves ffn.d_hidden, but here the cost of ffn={ffn['name']} does not "
            "depend on it: remove the width from ffn.expert, or give ffn.d_hidden as well."
        )
    if target <= fixed + slope / 2:
        raise UserError(
            f"No ffn.d_hidden gives ffn={ffn['name']} the {match} of a dense mlp of width "
            f"{d_ffn}: use a larger model.d_ffn, fewer experts, or match=none with ffn.d_hidden."
        )
    exact = (target - fixed) / slope
    width = max(8, 8 * round(exact / 8))
    if abs((fixed + slope * width) / target - 1) > TOLERANCE:
        width = max(1, round(exact))
    return Match(match, target, count(ffn, width), width, solved=True)
