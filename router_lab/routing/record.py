"""What a router is given, `RouterContext`, and what it returns, `Routing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from router_lab.routing import noise
from router_lab.routing.assignments import Assignments


@dataclass(frozen=True, eq=False)
class RouterContext:
    """What a router may need to know about the tokens beyond their vectors.

    Attributes:
        token_id_T: vocabulary id of each token, long.
        sequence_T: which sequence of the batch each token belongs to, long, 0 … n_sequences − 1.
        position_T: place of each token in its sequence, long.
        n_sequences: sequences in the batch.
        layer: index of the transformer block, from 0.
        step: optimiser steps done so far.
        noise_B: a random key of each sequence, 32 bits, long: what `uniform` and `normal` draw
            from in training. None: from torch's default generator.
        stream: separates the noise of an inner router from that of the outer one.
        previous: record of the nearest routed layer below, over the same tokens; None in the first.
    """

    token_id_T: Tensor
    sequence_T: Tensor
    position_T: Tensor
    n_sequences: int
    layer: int = 0
    step: int = 0
    noise_B: Tensor | None = None
    stream: int = 0
    previous: Routing | None = None

    @staticmethod
    def of_batch(token_id_BS: Tensor, **fields: Any) -> RouterContext:
        """The context of a batch of full sequences, tokens in reading order."""
        B, S = token_id_BS.shape
        device = token_id_BS.device
        return RouterContext(
            token_id_T=token_id_BS.reshape(-1),
            sequence_T=torch.arange(B, device=device).repeat_interleave(S),
            position_T=torch.arange(S, device=device).repeat(B),
            n_sequences=B,
            **fields,
        )

    def uniform(self, n: int, draw: int = 0) -> Tensor:
        """Noise of this layer, uniform in (0, 1) [T, n], float32.

        A function of seed, window, position and layer: it does not depend on the rest of the batch.

        Args:
            draw: 0 … 255, the number of the draw in the forward pass; the same draw gives the same
                numbers.
        """
        if self.noise_B is None:
            return torch.rand(len(self.token_id_T), n, device=self.token_id_T.device)
        return noise.uniform(self._noise_T(draw), n)

    def normal(self, n: int, draw: int = 0) -> Tensor:
        """As `uniform`, from the standard normal distribution."""
        if self.noise_B is None:
            return torch.randn(len(self.token_id_T), n, device=self.token_id_T.device)
        return noise.normal(self._noise_T(draw), n)

    def _noise_T(self, draw: int) -> Tensor:
        assert self.noise_B is not None
        # Integers only add up here: torch.compile may treat them as symbols.
        key_B = noise.fold(noise.fold(self.noise_B, self.stream), 256 * self.layer + draw)
        return noise.fold(key_B[self.sequence_T], self.position_T)

    def select(self, index_A: Tensor, expert: int | None = None) -> RouterContext:
        """The context of a subset of the tokens, as an expert that routes again sees it.

        Args:
            expert: which one, so that each has noise of its own.
        """
        return replace(
            self,
            stream=self.stream if expert is None else 256 * self.stream + expert + 1,
            token_id_T=self.token_id_T[index_A],
            sequence_T=self.sequence_T[index_A],
            position_T=self.position_T[index_A],
            previous=None,
        )


@dataclass(frozen=True, eq=False, repr=False)
class Routing:
    """One layer's decision for one batch: which experts each token goes to, and why.

    Attributes:
        asked: what the router wants.
        taken: what a capacity limit leaves of it; the same object without a limit.
        logits_TE: scores before any normalisation, float32; zeros for a router that has none.
        probs_TE: scores as a distribution over experts (rows sum to 1, or to 0), float32.
        losses: terms that only this router can compute, by name, already weighted.
        stats: sums this router wants added up over micro-batches and ranks, back in `after_step`.
        state: what the router of the next routed layer finds in `context.previous` (ZAYA) [T, …].
        ghost_TE: zero-valued weights that only carry gradient: in training the layer also runs the
            experts that were not chosen (DenseMixer; see `Router.runs_all`).
        context: the tokens that were routed. Set by the layer, not by the router.
        kinds: the kind of every expert (see `MoE`), () where all are feed-forward. Set by the
            layer, too.
    """

    asked: Assignments
    taken: Assignments
    logits_TE: Tensor
    probs_TE: Tensor
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    state: Tensor | None = None
    ghost_TE: Tensor | None = None
    context: RouterContext = None  # type: ignore[assignment]
    kinds: tuple[str, ...] = ()

    @classmethod
    def from_topk(
        cls, index_TK: Tensor, weight_TK: Tensor, logits_TE: Tensor, probs_TE: Tensor, **extra: Any
    ) -> Routing:
        """Every token goes to the K experts of its row, in order of preference."""
        T, K = index_TK.shape
        device = index_TK.device
        asked = Assignments(
            token_A=torch.arange(T, device=device).repeat_interleave(K),
            expert_A=index_TK.reshape(-1),
            weight_A=weight_TK.reshape(-1).float(),
            rank_A=torch.arange(K, device=device).repeat(T),
            n_experts=probs_TE.shape[1],
            k=K,
        )
        return cls(asked, asked, logits_TE, probs_TE, **extra)

    @classmethod
    def from_mask(
        cls, mask_TE: Tensor, weight_TE: Tensor, logits_TE: Tensor, probs_TE: Tensor, **extra: Any
    ) -> Routing:
        """Every token goes to the experts that its row of a boolean mask marks: any number."""
        token_A, expert_A = mask_TE.nonzero(as_tuple=True)
        # A token's order of preference: rank of the weight among the marked ones of its row.
        marked_TE = weight_TE.detach().masked_fill(~mask_TE, -torch.inf)
        rank_TE = marked_TE.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        asked = Assignments(
            token_A=token_A,
            expert_A=expert_A,
            weight_A=weight_TE[token_A, expert_A].float(),
            rank_A=rank_TE[token_A, expert_A],
            n_experts=mask_TE.shape[1],
        )
        return cls(asked, asked, logits_TE, probs_TE, **extra)

    def __repr__(self) -> str:
        taken = "all" if self.taken is self.asked else len(self.taken)
        parts = {part: ", ".join(getattr(self, part)) for part in ("losses", "stats")}
        extras = "".join(f"; {part}: {names}" for part, names in parts.items() if names)
        return (
            f"Routing({self.n_tokens} tokens to {self.n_experts} experts: "
            f"{len(self.asked)} assignments asked, {taken} taken{extras})"
        )

    @property
    def n_tokens(self) -> int:
        return self.probs_TE.shape[0]

    @property
    def n_experts(self) -> int:
        return self.probs_TE.shape[1]

    @property
    def demand_E(self) -> Tensor:
        """Assignments asked of each expert, before any capacity limit, long."""
        return self.asked.count_E

    @property
    def load_E(self) -> Tensor:
        """Assignments carried out by each expert, long."""
        return self.taken.count_E

    @property
    def importance_E(self) -> Tensor:
        """Combine weight of each expert in what is carried out, float32, differentiable."""
        return self.taken.importance_E

    def fair_shares(self, tau: float = 1.0) -> list[float]:
        """See the function of this name."""
        return fair_shares(self.kinds or ("ffn",) * self.n_experts, tau)

    def with_ghosts(self) -> Assignments:
        """What the layer has to compute: `taken`, and with `ghost_TE` every other pair as well."""
        taken = self.taken
        if self.ghost_TE is None:
            return taken
        other_TE = torch.ones_like(self.ghost_TE, dtype=torch.bool)
        other_TE[taken.token_A, taken.expert_A] = False
        token_A, expert_A = other_TE.nonzero(as_tuple=True)
        return replace(
            taken,
            token_A=torch.cat([taken.token_A, token_A]),
            expert_A=torch.cat([taken.expert_A, expert_A]),
            weight_A=torch.cat([taken.weight_A, self.ghost_TE[token_A, expert_A]]),
            rank_A=torch.cat([taken.rank_A, torch.full_like(token_A, self.n_experts)]),
            k=None,
        )

    def detach(self) -> Routing:
        """The same record without its graph, for metrics."""
        asked = self.asked.detach()
        return replace(
            self,
            asked=asked,
            taken=asked if self.taken is self.asked else self.taken.detach(),
            logits_TE=self.logits_TE.detach(),
            probs_TE=self.probs_TE.detach(),
            losses={name: term.detach() for name, term in self.losses.items()},
            state=None if self.state is None else self.state.detach(),
            ghost_TE=None,  # only its gradient is of interest
            context=replace(self.context, previous=None),
        )


def fair_shares(kinds: Sequence[str], tau: float = 1.0) -> list[float]:
    """Each expert's share of the assignments at balance; they sum to 1.

    Args:
        kinds: the kind of every expert.
        tau: assignments of a feed-forward expert over those of a special one (MoE++,
            arXiv:2410.07348, eq. 7 and 8).
    """
    parts = [tau if kind == "ffn" else 1.0 for kind in kinds]
    return [part / sum(parts) for part in parts]
