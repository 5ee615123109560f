"""Balance losses, computed from a layer's record and chosen beside the router.

Every routed layer adds coef · term to the training loss, as in Switch (arXiv:2101.03961, section
2.2), Megatron-LM and DeepSeek-V3: the pressure on a layer does not depend on the number of layers.
With `reduce: mean` it adds coef · term / L, where L is the number of routed layers (MegaBlocks, and
nearly transformers, which pools the layers before it multiplies). Experts that route again add the
mean of their terms, so that each level of a hierarchy has the whole coefficient (mesh-TensorFlow's
two-level layer). A router with one expert has nothing to balance and is skipped.

f_E share of the demand (sums to 1), P_E mean probability (sums to 1), T tokens, E experts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from router_lab.check import ABOVE_0, Amount
from router_lab.errors import UserError
from router_lab.registry import Registry, register
from router_lab.routing import Routing, count, squared_cv
from router_lab.runs import layers

Reduce = Literal["sum", "mean"]


@dataclass(eq=False)
class BalanceLoss(ABC):
    """One term of the training loss; the fields are its options.

    Args:
        coef: weight of a layer's term, 0 or more.
        reduce: `sum`: each routed layer adds its term at `coef`; `mean`: at `coef` over the number
            of routed layers.
    """

    coef: Amount
    reduce: Reduce = "sum"
    paper: ClassVar[str] = ""
    global_demand = False
    """Whether the term needs the demand of the whole optimiser step so far."""

    @abstractmethod
    def __call__(self, routing: Routing, demand_E: Tensor) -> Tensor:
        """A layer's term, without its coefficient: a scalar.

        Args:
            routing: the layer's record.
            demand_E: demand for each expert in this micro-batch, or, if `global_demand`, in all
                micro-batches and ranks of the optimiser step so far.
        """


LOSSES: Registry[BalanceLoss] = Registry(
    "loss", BalanceLoss, "router_lab.losses", "losses", several=True
)


def shares(demand_E: Tensor) -> Tensor:
    """Each expert's share of the demand; the shares sum to 1, or to 0 if there is no demand."""
    return demand_E / demand_E.sum(dim=-1, keepdim=True).clamp_min(1)


@register("load_balance")
@dataclass(eq=False)
class LoadBalance(BalanceLoss):
    """E · Σ f_i P_i: 1 at perfect balance, E if one expert has all of the demand.

    Switch (arXiv:2101.03961, eq. 4–6); for the scopes arXiv:2501.11873, eq. 3–5. f is a share of
    the demand, before any capacity limit: a full expert is still pushed away from.

    Args:
        scope: tokens that f is taken over. `micro_batch`; `sequence`: the loss of each sequence,
            averaged (DeepSeek-V3, arXiv:2412.19437, eq. 17–20); `global`: f over all micro-batches
            of the optimiser step so far and all ranks, P over the micro-batch.
        reference: `paper`: as above; `hf`: times the mean number of experts per token
            (transformers' scale, k at balance); `llm_baselines`: divided by E.
        tau: demand for a feed-forward expert over that for a special one at balance, in a layer
            with both: Σ f_i P_i / b_i with their shares b at that balance, which again is 1 there
            (MoE++, arXiv:2410.07348, eq. 7, scaled).
    """

    coef: Amount = 0.01
    scope: Literal["micro_batch", "sequence", "global"] = "micro_batch"
    reference: Literal["paper", "hf", "llm_baselines"] = "paper"
    tau: Annotated[float, ABOVE_0] = 1.0

    def __post_init__(self) -> None:
        self.global_demand = self.scope == "global"

    def __call__(self, routing: Routing, demand_E: Tensor) -> Tensor:
        E = routing.n_experts
        inverse_E: int | Tensor = E
        if self.tau != 1 and routing.kinds:
            inverse_E = 1 / routing.probs_TE.new_tensor(routing.fair_shares(self.tau))
        if self.scope == "sequence":
            loss = self._per_sequence(routing, inverse_E).mean()
        else:
            loss = (inverse_E * shares(demand_E) * routing.probs_TE.mean(dim=0)).sum()
        if self.reference == "hf":
            return loss * routing.demand_E.sum() / routing.n_tokens
        return loss / E if self.reference == "llm_baselines" else loss

    @staticmethod
    def _per_sequence(routing: Routing, inverse_E: int | Tensor) -> Tensor:
        """The loss of each sequence that has a token."""
        sequence_T, B = routing.context.sequence_T, routing.context.n_sequences
        asked, E = routing.asked, routing.n_experts
        demand_BE = count(sequence_T[asked.token_A] * E + asked.expert_A, B * E).view(B, E)
        tokens_B = count(sequence_T, B)
        probs_BE = routing.probs_TE.new_zeros(B, E).index_add(0, sequence_T, routing.probs_TE)
        mean_BE = probs_BE / tokens_B.clamp_min(1)[:, None]
        return (inverse_E * shares(demand_BE) * mean_BE).sum(dim=1)[tokens_B > 0]


@register("z")
@dataclass(eq=False)
class ZLoss(BalanceLoss):
    """mean (logsumexp z)²: keeps the logits small. ST-MoE, arXiv:2202.08906, eq. 5."""

    coef: Amount = 1e-3

    def __call__(self, routing: Routing, demand_E: Tensor) -> Tensor:
        return routing.logits_TE.logsumexp(dim=-1).square().mean()


@register("importance")
@dataclass(eq=False)
class Importance(BalanceLoss):
    """CV² of the sums of combine weights per expert: 0 at balance, E − 1 at collapse.

    Shazeer et al. 2017, arXiv:1701.06538, eq. 6–7.
    """

    coef: Amount = 0.1

    def __call__(self, routing: Routing, demand_E: Tensor) -> Tensor:
        return squared_cv(routing.importance_E)


@register("probability_cv")
@dataclass(eq=False)
class ProbabilityCV(BalanceLoss):
    """CV² of the mean probability of each expert: 0 at balance, E − 1 at collapse.

    The demand has no gradient; the mean probability stands in for it, as in V-MoE's importance loss
    (arXiv:2106.05974, appendix A.2). Noisy top-k and V-MoE have a smooth load of their own.
    """

    coef: Amount = 0.1

    def __call__(self, routing: Routing, demand_E: Tensor) -> Tensor:
        return squared_cv(routing.probs_TE.mean(dim=0))


@register("entropy")
@dataclass(eq=False)
class Entropy(BalanceLoss):
    """log E − H(mean p): 0 at balance, log E at collapse, however sure each token is."""

    coef: Amount = 0.01

    def __call__(self, routing: Routing, demand_E: Tensor) -> Tensor:
        mean_E = routing.probs_TE.mean(dim=0)
        mean_E = mean_E / mean_E.sum().clamp_min(torch.finfo(torch.float32).tiny)
        return torch.xlogy(mean_E, mean_E).sum() + math.log(routing.n_experts)


@dataclass(frozen=True, eq=False)
class LayerTerms:
    """The loss terms of one micro-batch.

    Attributes:
        terms: by name, the mean over the layers without the coefficient: 1 at balance for
            `load_balance`, whatever the number of layers. A router's own terms include theirs; one
            with the name of a configured term is called `router_NAME`.
        total: what is added to the cross-entropy.
    """

    terms: dict[str, Tensor]
    total: Tensor | float


def build_losses(
    config: Mapping[str, Mapping[str, Any] | None],
    default: Mapping[str, Mapping[str, Any]],
) -> dict[str, BalanceLoss]:
    """The terms that a config node names: {"load_balance": {"coef": 0.01}, …}.

    Args:
        config: the node; its entry "default" stands for the losses of the router's paper, of which
            other entries may change an option.
        default: the losses of the router's paper.

    Raises:
        UserError: an unknown loss or option, or a value that is not possible.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"loss={config} is not possible; give the losses by name, {{z: {{}}}}.")
    for name, options in config.items():
        if not isinstance(options, Mapping | None):
            raise UserError(f"loss.{name}={options} is not possible; give its options, by name.")
    chosen = {name: dict(options or {}) for name, options in config.items()}
    if "default" in chosen:
        if chosen.pop("default"):
            raise UserError("loss.default has no options; give those of one loss, +loss.z.coef=…")
        names = {**default, **chosen}
        chosen = {name: {**default.get(name, {}), **chosen.get(name, {})} for name in names}
    return {
        name: LOSSES.build({"name": name, **options})
        for name, options in chosen.items()
        if options.get("coef") != 0
    }


def layer_terms(
    losses: Mapping[str, BalanceLoss],
    routings: Mapping[str, Routing],
    step_demand: Mapping[str, Tensor],
) -> LayerTerms:
    """All terms of a micro-batch: the configured ones and the routers' own.

    Args:
        step_demand: by layer, the demand of the optimiser step so far, this micro-batch included.
    """
    n_layers = len({layers.outermost(name) for name, r in routings.items() if r.n_experts > 1})
    total: Tensor | float = 0.0
    sums: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    for name, routing in routings.items():
        weight = weight_in_layer(name, routings)
        terms = {}
        for loss_name, loss in losses.items() if routing.n_experts > 1 else ():
            demand_E = step_demand[name] if loss.global_demand else routing.demand_E
            terms[loss_name] = weight * loss(routing, demand_E)
            coef = loss.coef / n_layers if loss.reduce == "mean" else loss.coef
            total = total + coef * terms[loss_name]
        for own_name, term in routing.losses.items():
            terms[f"router_{own_name}" if own_name in losses else own_name] = weight * term
            total = total + weight * term
        for term_name, term in terms.items():
            sums[term_name] = sums.get(term_name, torch.zeros_like(term)) + term
            weights[term_name] = weights.get(term_name, 0.0) + weight
    return LayerTerms({name: summed / weights[name] for name, summed in sums.items()}, total)


def weight_in_layer(name: str, routings: Mapping[str, Routing]) -> float:
    """Weight of a record's terms within its layer: 1 for the layer's own record; for an expert that
    routes again, 1/n of the record above, n being the number of such experts with or without
    tokens."""
    outer = layers.outer(name)
    if outer not in routings:
        return 1.0
    above = routings[outer]
    n = above.kinds.count("ffn") or above.n_experts
    return weight_in_layer(outer, routings) / n


def acting(
    losses: Mapping[str, BalanceLoss], own_losses: Iterable[Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Every term of the training loss, for result.json and the catalogue.

    Args:
        own_losses: `own_losses` of each router and layer.

    Returns:
        name, coef and reduce of each; the other options of a configured term; `of: router` for a
        router's own.
    """
    terms: list[dict[str, Any]] = []
    for name, loss in losses.items():
        term = {"name": name, "coef": loss.coef, "reduce": loss.reduce}
        options = [option.name for option in LOSSES.options(name)]
        terms.append(term | {key: getattr(loss, key) for key in options if hasattr(loss, key)})
    for coefs in own_losses:
        for name, coef in coefs.items():
            term = {"name": name, "coef": coef, "reduce": "sum", "of": "router"}
            if coef and term not in terms:
                terms.append(term)
    return terms
