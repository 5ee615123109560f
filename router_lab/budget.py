"""What a run may cost: its length, its parameters and FLOPs, and widths solved to match them.

FLOPs are those of matrix products, a multiply and an add counted as two; training costs three times
the forward pass. Attention is counted causal: a token looks at half the sequence on average.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from router_lab.errors import UserError
from router_lab.ffn import FFN, build_ffn
from router_lab.transformer import Transformer

UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
TOLERANCE = 0.01
"""Arms whose budget differs by more than this share are not matched."""


@dataclass(frozen=True)
class Budget:
    """The length of a run: so many tokens, training FLOPs or seconds of training."""

    kind: Literal["tokens", "flops", "seconds"]
    amount: float

    @classmethod
    def parse(cls, text: object) -> Budget:
        """`tokens:20M`, `flops:1e15`, `seconds:600`."""
        found = re.fullmatch(r"(tokens|flops|seconds):([0-9.]+(?:e[+-]?[0-9]+)?)([kmbgt]?)", str(text).lower())
        try:
            assert found is not None
            amount = float(found[2]) * UNITS[found[3]]
            assert amount > 0
        except (AssertionError, ValueError):
            raise UserError(
                f"budget={text} is not understood; give tokens:20M, flops:1e15 or seconds:600."
            ) from None
        return cls(found[1], amount)  # type: ignore[arg-type]

    def steps(self, tokens_per_step: int, flops_per_token: float) -> int | None:
        """Optimiser steps of the run; None where the clock decides."""
        if self.kind == "seconds":
            return None
        tokens = self.amount if self.kind == "tokens" else self.amount / flops_per_token
        return max(1, math.ceil(tokens / tokens_per_step - 1e-9))


@dataclass(frozen=True)
class Cost:
    """Parameters of a model, and training FLOPs of a token."""

    total: int
    active: float
    embedding: int
    flops_per_token: float

    def params(self) -> dict[str, float]:
        """The parameter counts for result.json."""
        return {k: v for k, v in asdict(self).items() if k != "flops_per_token"}


def cost(model: Transformer) -> Cost:
    """Counted from the modules; experts by how often the router takes them on average."""
    total = sum(p.numel() for p in model.parameters())
    d_model = model.embedding.embedding_dim
    active = float(total)
    matmul = float(model.embedding.weight.numel())  # the head
    attended = 0.0
    for block in model.blocks:
        ffn, attention = block.ffn, block.attention
        assert isinstance(ffn, FFN)
        active += ffn.active_params() - sum(p.numel() for p in ffn.parameters())
        matmul += sum(p.numel() for p in attention.parameters()) + ffn.matmul_params()
        attended += 2 * d_model * (model.seq_len + 1) / 2  # scores and weighted values
    return Cost(total, active, model.embedding.weight.numel(), 3 * 2 * (matmul + attended))


COUNTS: dict[str, Callable[[FFN], float]] = {
    "active_params": lambda ffn: ffn.active_params(),
    "flops": lambda ffn: ffn.matmul_params(),
    "total_params": lambda ffn: float(sum(p.numel() for p in ffn.parameters())),
}


@dataclass(frozen=True)
class Match:
    """How near one layer of the FFN slot comes to the dense layer that it is matched to."""

    kind: str
    target: float
    actual: float
    d_hidden: int

    @property
    def error(self) -> float:
        return self.actual / self.target - 1

    def report(self) -> dict[str, Any]:
        return {**asdict(self), "error": self.error}


def solve_width(
    match: str, ffn: Mapping[str, Any], d_model: int, d_ffn: int
) -> Match | None:
    """The d_hidden at which a layer costs what a dense `mlp` of width d_ffn does.

    Every FFN's cost is a + b · d_hidden, so that two small layers tell a and b. A width that is a
    multiple of 8 is taken where it is near enough.

    Returns:
        None for `match=none`, which leaves the width alone.

    Raises:
        UserError: unknown match, a width given as well, or no width can meet the budget.
    """
    if match == "none":
        return None
    if match not in COUNTS:
        raise UserError(f"match={match} is unknown; it must be one of {', '.join(COUNTS)}, none.")
    if ffn.get("d_hidden") is not None:
        raise UserError(
            f"ffn.d_hidden={ffn['d_hidden']} is given and match={match} would solve it; "
            "leave one out (match=none keeps your width)."
        )
    count = COUNTS[match]
    target = count(build_ffn({"name": "mlp"}, d_model, d_ffn))
    at_8, at_16 = (count(build_ffn(dict(ffn), d_model, width)) for width in (8, 16))
    slope = (at_16 - at_8) / 8
    fixed = at_8 - 8 * slope
    if slope <= 0 or target <= fixed + slope / 2:
        raise UserError(
            f"No ffn.d_hidden gives ffn={ffn['name']} the {match} of a dense mlp of width "
            f"{d_ffn}: take a larger model.d_ffn, fewer experts, or match=none with ffn.d_hidden."
        )
    exact = (target - fixed) / slope
    width = max(8, 8 * round(exact / 8))
    if abs((fixed + slope * width) / target - 1) > TOLERANCE:
        width = max(1, round(exact))
    return Match(match, target, fixed + slope * width, width)
