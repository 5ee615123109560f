"""The base class of every router, and what routers are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from router_lab.errors import UserError
from router_lab.registry import Registry
from router_lab.routing.record import RouterContext, Routing

Lookahead = Literal["never", "in training", "always"]
"""See `Router`; in increasing order."""


def furthest(*lookaheads: Lookahead) -> Lookahead:
    """The largest of them; `never` if there are none."""
    return max(lookaheads, key=get_args(Lookahead).index, default="never")


TokenCounts = Callable[[], Sequence[int]]
"""How often each token id occurs in the training text; counted when it is called."""


@dataclass(frozen=True, eq=False)
class StepTotals:
    """What a router learns of a whole optimiser step, all micro-batches and ranks added up.

    Attributes:
        n_tokens: tokens that this layer routed in the step.
        density: demand over (tokens × experts), averaged over the model's routed layers.
        stats: the router's own `Routing.stats`, summed.
    """

    n_tokens: int
    density: float
    stats: Mapping[str, Tensor] = field(default_factory=dict)


class Stage(nn.Module, ABC):
    """What a router knows of a capacity limit; `capacity.Capacity` has the rest."""

    factor: float
    eval_factor: float
    k: float | None

    @abstractmethod
    def lookahead(self, router: Router, kinds: Sequence[str] = ()) -> Lookahead:
        """What the limit adds to a router's look-ahead. Args: kinds: see Routing.kinds."""


class Router(nn.Module, ABC):
    """Base of every router; routers are final.

    Its parameters and buffers stay in float32 whatever `trainer.precision` is.

    The constructor's options are the router's configuration.

    Args:
        d_model: width D of the vectors that are routed.
        n_experts: experts E to choose from.
        k: experts per token; the mean where it varies. The base keeps it as `mean_k`, for what a
            token costs; a router that chooses k experts keeps its own `self.k = k`.

    A constructor may also ask for what only the layer or the run knows, and gets it without an
    option of that name. Both are None where the router is built by itself:

    - `kinds: Sequence[str] | None = None`, the kind of every expert (see `MoE`);
    - `token_counts: TokenCounts | None = None`, how often each id occurs in the training text.

    A subclass states its properties as class attributes. If `lookahead`, `keeps_rest`,
    `default_losses` or `own_losses` depends on the options, set it on the instance in `__init__`.

    Attributes:
        lookahead: whether a token's routing depends on more than the token and those before it
            in its sequence, i.e. on later tokens or other sequences: `never`, `in training` alone,
            or `always`, so that evaluation uses what a model that writes text does not have. A
            capacity limit answers for itself. Tested in both modes.
        fixed_k: every token gets exactly k experts.
        permutable: permuting the tokens permutes the routing with them. Tested.
        weight_on: what the combine weight multiplies, an expert's `output` or its `input`
            (Llama 4).
        keeps_rest: the layer adds (1 − Σ of a token's asked weights) · x to its output (BASE).
        runs_all: in training the layer runs all experts for every token (`Routing.ghost_TE`).
        default_losses: balance losses that `loss=default` gives it, as in its paper; each routed
            layer adds its term at the coefficient (see router_lab.losses).
        own_losses: coefficient of each term that it may put into `Routing.losses`, by name.
        paper: where it comes from.
        reference: what it is checked against.
    """

    lookahead: Lookahead = "never"
    fixed_k: ClassVar[bool] = True
    permutable: ClassVar[bool] = True
    weight_on: ClassVar[Literal["output", "input"]] = "output"
    keeps_rest: bool = False
    runs_all: ClassVar[bool] = False
    default_losses: Mapping[str, Mapping[str, Any]] = {}
    own_losses: Mapping[str, float] = {}
    paper: ClassVar[str] = ""
    reference: ClassVar[str] = ""
    capacity: Stage | None
    """A router whose paper limits the load of an expert sets the stage here."""
    k_ffn: float | None = None
    """How many of the k are feed-forward experts on average, where a router of special experts aims
    at something else than k times their share of the experts."""

    def __init__(self, d_model: int, n_experts: int, k: float = 1) -> None:
        super().__init__()
        if n_experts < 1:
            raise refused(self, "n_experts", n_experts, "at least 1")
        if not 0 < k <= n_experts:
            raise refused(self, "k", k, f"between 1 and the number of experts, {n_experts}")
        self.d_model = d_model
        self.n_experts = n_experts
        self.mean_k = k
        self.capacity = None

    @abstractmethod
    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        """Routes T tokens. x_TD may be in any float dtype; the gate maths is in float32."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Moves to another device, but stays in float32: in bfloat16 a bias would stop moving once
        its updates are rounded away."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        moved: nn.Module = super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return moved

    def matmul_params(self) -> float:
        """Weight elements that a token is multiplied with: its forward FLOPs are twice as many."""
        return float(sum(p.numel() for p in self.parameters() if p.dim() >= 2))

    def refuse_constant_weight(self, remedy: str) -> None:
        """Raises UserError for k = 1: one renormalised weight is always 1 and has no gradient."""
        if self.mean_k == 1 and self.n_experts > 1:
            right = (
                "at least 2 with a renormalised weight, which for k = 1 is always 1 and gives no"
            )
            raise refused(self, "k", 1, f"{right} gradient; {remedy}")

    def after_step(self, demand_E: Tensor, totals: StepTotals) -> None:
        """Called once per optimiser step, with the demand of all its micro-batches and ranks."""
        return None


ROUTERS: Registry[Router] = Registry(
    "router",
    Router,
    "router_lab.routers",
    "routers",
    given=("d_model", "n_experts", "kinds", "token_counts"),
)


class Gate(nn.Linear):
    """A linear map whose maths is float32 whatever the precision around it."""

    def __init__(self, d_in: int, d_out: int, bias: bool = False) -> None:
        super().__init__(d_in, d_out, bias=bias)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.in_features**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        with torch.autocast(x_TD.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(x_TD.float(), self.weight.float(), bias)


def squared_cv(value_E: Tensor) -> Tensor:
    """Population variance over squared mean; 0 for all zeros."""
    mean, tiny = value_E.mean(), torch.finfo(torch.float32).tiny
    return (value_E - mean).square().mean() / mean.square().clamp_min(tiny)


def refused(owner: object, option: str, value: object, right: str) -> UserError:
    """The error for an option out of range, in the words every router uses."""
    name = type(owner).__name__
    return UserError(f"{name}: {option}={value} is not possible; it must be {right}.")
