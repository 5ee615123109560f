"""The FFN slot: the interface of a transformer block's feed-forward layer, dense or sparse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from router_lab.errors import UserError
from router_lab.registry import Registry
from router_lab.routing import (
    Lookahead,
    Router,
    RouterContext,
    Routing,
    TokenCounts,
    refused,
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "sigmoid": F.sigmoid,
    "tanh": F.tanh,
    "identity": lambda x: x,
}


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    s = x.sigmoid()
    value = x * s
    return value, torch.addcmul(value, value, s, value=-1).add_(s)  # s + v (1 − s)


def _gelu(approximate: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        slope = torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate=approximate)
        return F.gelu(x, approximate=approximate), slope

    return both


def _of_value(
    act: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """An activation whose slope is a function of its value."""

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        value = act(x)
        return value, slope(value)

    return both


SLOPES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "silu": _silu,
    "gelu": _gelu("none"),
    "gelu_tanh": _gelu("tanh"),
    "relu": _of_value(F.relu, lambda y: y.sign()),
    "relu2": _of_value(ACTIVATIONS["relu2"], lambda y: 2 * y.sqrt()),
    "sigmoid": _of_value(F.sigmoid, lambda y: y * (1 - y)),
    "tanh": _of_value(F.tanh, lambda y: 1 - y * y),
    "identity": _of_value(ACTIVATIONS["identity"], torch.ones_like),
}
"""The value and the slope of each activation."""


@dataclass(frozen=True, eq=False)
class Gated:
    """The weights of gated experts: y = down(act(g) · u) with [g, u] = gate_up(x).

    Of E experts, or without the first axis of one.
    """

    act: str
    gate_up_EDF: Tensor
    down_EFD: Tensor
    gate_up_bias_EF: Tensor | None = None
    down_bias_ED: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.gate_up_EDF, self.down_EFD, self.gate_up_bias_EF, self.down_bias_ED

    def map(self, of: Callable[[Tensor], Tensor]) -> Gated:
        return _gated(self.act, (None if t is None else of(t) for t in self.tensors))

    def __call__(self, rows_ERD: Tensor) -> Tensor:
        """The outputs of all experts, for as many rows each."""
        h_ERF = rows_ERD @ self.gate_up_EDF
        if self.gate_up_bias_EF is not None:
            h_ERF = h_ERF + self.gate_up_bias_EF[:, None]
        gate_ERF, up_ERF = h_ERF.chunk(2, dim=-1)
        out_ERD = (ACTIVATIONS[self.act](gate_ERF) * up_ERF) @ self.down_EFD
        return out_ERD if self.down_bias_ED is None else out_ERD + self.down_bias_ED[:, None]

    @staticmethod
    def stack(experts: Sequence[Gated]) -> Gated:
        """Several experts of one kind as one."""
        by_name = zip(*(expert.tensors for expert in experts), strict=True)
        stacks = (None if ts[0] is None else torch.stack(ts).detach() for ts in by_name)
        return _gated(experts[0].act, stacks)

    @staticmethod
    def random(n_experts: int, d_model: int, d_hidden: int) -> Gated:
        """SwiGLU experts, weights of standard deviation d_in^-1/2, no biases."""
        up_EDF = torch.randn(n_experts, d_model, 2 * d_hidden) * d_model**-0.5
        return Gated("silu", up_EDF, torch.randn(n_experts, d_hidden, d_model) * d_hidden**-0.5)


def _gated(act: str, tensors: Iterable[Tensor | None]) -> Gated:
    up_EDF, down_EFD, up_bias_EF, down_bias_ED = tensors
    assert up_EDF is not None and down_EFD is not None
    return Gated(act, up_EDF, down_EFD, up_bias_EF, down_bias_ED)


Load = Mapping[str, Sequence[float]]
"""Rows that each expert computed, per token of the model, by the name of the record."""
BALANCED: Load = {}
"""Stands for balanced load if nothing was measured."""


class FFN(nn.Module, ABC):
    """Base class of every feed-forward layer in the slot.

    Args:
        d_model: width D of the residual stream.
        d_hidden: inner width F, of one expert if there are experts; null: solved by `match`.
    """

    lookahead: Lookahead = "never"
    """Whether a token's output depends on later tokens or on other sequences (see `Router`)."""
    default_losses: Mapping[str, Mapping[str, Any]] = {}
    """Balance losses under `loss=default`: those of the paper of the layer or its router."""
    own_losses: Mapping[str, float] = {}
    """Coefficient of each term that a layer without a router puts into `Routing.losses`."""
    paper: ClassVar[str] = ""
    reference: ClassVar[str] = ""
    """Source of a layer that routes without a router, and what it is tested against."""
    gates: ClassVar[tuple[str, ...]] = ()
    """Matrices that route, by name; those of a `Router` or a `Gate` need not be named."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        if d_hidden < 1:
            raise refused(self, "d_hidden", d_hidden, "at least 1")
        self.d_model = d_model
        self.d_hidden = d_hidden

    @abstractmethod
    def forward(self, x_TD: Tensor, context: RouterContext) -> tuple[Tensor, dict[str, Routing]]:
        """Output [T, D] and the records: the layer's under "", an inner router's under "expert3". A
        dense layer has none."""

    def gated(self) -> Gated | None:
        """Its weights, if all it computes is one gated expert: many of them can be stacked."""
        return None

    def routers(self) -> dict[str, Router]:
        """The routers of the layer, under the names of their records."""
        return {}

    def output_weights(self) -> Iterator[Tensor]:
        """The weights that write to the residual stream; `model.zero_outputs` starts them at 0."""
        yield from ()

    def active_params(self) -> float:
        """Active parameters per token, averaged over the experts."""
        return float(sum(p.numel() for p in self.parameters()))

    def matmul_params(self, load: Load = BALANCED, rows: float = 1.0) -> float:
        """Weight elements that a token of the model is multiplied with in training: its forward
        FLOPs are twice as many.

        Args:
            load: rows that the experts computed; see `BALANCED`.
            rows: rows that reach this layer, per token of the model.
        """
        return rows * sum(p.numel() for p in self.parameters() if p.dim() >= 2)


FFNS: Registry[FFN] = Registry(
    "ffn",
    FFN,
    "router_lab.model.ffns",
    "ffns",
    given=("d_model", "token_counts"),
    linked={
        "d_hidden": None,
        "router": "${router}",
        "capacity": "${capacity}",
        "seq_len": "${model.seq_len}",
    },
)
DENSE: Mapping[str, Any] = {"name": "mlp"}
"""The config node of the dense reference layer."""


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of that name. Raises UserError for an unknown name."""
    if name not in ACTIVATIONS:
        raise UserError(
            f"hidden_act={name} is unknown; it must be one of {', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[name]


class Linear(nn.Linear):
    """nn.Linear with weights of standard deviation d_in^-1/2 and zero bias."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.in_features**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def build_ffn(
    config: Mapping[str, Any],
    d_model: int,
    d_hidden: int | None,
    token_counts: TokenCounts | None = None,
) -> FFN:
    """The layer that a config node describes.

    Args:
        d_hidden: width if the node does not set one.
        token_counts: see `Router`.
    """
    width = d_hidden if config.get("d_hidden") is None else config["d_hidden"]
    if width is None:
        raise UserError(f"ffn.d_hidden of {config['name']} is not set; give a width or a `match`.")
    node = {**config, "d_hidden": width}
    return FFNS.build(node, d_model=d_model, token_counts=token_counts)
