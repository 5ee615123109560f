"""The FFN slot: the interface of a transformer block's feed-forward layer, dense or sparse."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

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
