"""Muon: momentum whose direction is orthogonalised, matrix by matrix; AdamW for the other weights.

B matrices of one shape N × M, N ≤ M. A weight of three or more dimensions is a stack of matrices,
such as the experts of a layer, stored [in, out]; one of two dimensions is [out, in], as in
`nn.Linear`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Polynomials = tuple[tuple[float, float, float], ...]

JORDAN: Polynomials = ((3.4445, -4.7750, 2.0315),) * 5
"""Five times the same quintic: https://kellerjordan.github.io/posts/muon, and torch.optim.Muon."""
POLYNOMIALS: dict[int, Polynomials] = {
    3: ((7.711, -22.1138, 16.2487), (3.2153, -2.4112, 0.5013), (2.2183, -1.594, 0.4107)),
    4: (
        (8.3837, -24.7659, 18.3571),
        (4.0434, -3.0114, 0.5695),
        (3.5056, -2.6267, 0.5257),
        (2.4901, -1.8343, 0.4368),
    ),
    5: JORDAN,
}
"""(a, b, c) of a x + b x³ + c x⁵ by number of iterations. Three and four are composed so that the
largest error on [0.02, 1] and [0.003, 1] is least, each polynomial for the interval that the one
before leaves (Polar Express, arXiv:2505.16932, algorithm 1)."""


def whitener(gram_BNN: Tensor, polynomials: Polynomials) -> Tensor:
    """G^-½ for the Gram matrices G = X Xᵀ, so that the singular values of G^-½ X are about 1.

    Newton-Schulz on X is products of X with polynomials of G, which commute: here they are
    multiplied with one another, and X once. Singular values are first divided by a bound on the
    largest: the Frobenius norm of X for Jordan's polynomials, and ‖G²‖^¼, which is nearer and costs
    nothing, for the others.
    """
    bound = gram_BNN.diagonal(dim1=1, dim2=2).sum(dim=1).clamp_min(1e-30)[:, None, None]
    gram = gram_BNN / bound  # a trace of 1, so that its square does not underflow
    square = gram @ gram
    if polynomials is not JORDAN:
        nearer = square.norm(dim=(1, 2), keepdim=True).sqrt().clamp_min(1e-7)
        gram, square, bound = gram / nearer, square / nearer.square(), bound * nearer
    product = None
    for i, (a, b, c) in enumerate(polynomials):
        if i:
            square = gram @ gram
        step = (b * gram).add_(square, alpha=c)
        step.diagonal(dim1=1, dim2=2).add_(a)
        product = step if product is None else step @ product
        if i + 1 < len(polynomials):
            gram = step @ (step @ gram)
    assert product is not None
    return product / bound.sqrt()


class MuonAdamW(torch.optim.AdamW):
    """Muon for the parameter groups that have its options under `muon`, AdamW for the others.

    The options are momentum; iterations, a key of POLYNOMIALS; every, s where the whitener of a
    matrix is computed at every s-th step; turn, the number of steps so far.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if "muon" not in group]
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if "muon" in group:
                self._move(group, **group["muon"])
                group["muon"]["turn"] += 1
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # AdamW's looks for its own in all states

    @torch.no_grad()
    def _move(
        self, group: dict[str, Any], momentum: float, iterations: int, every: int, turn: int
    ) -> None:
        """Moves the matrices whose turn it is; those of one smaller side are whitened together."""
        self._keep_up(group, momentum)
        rate, decay = every * group["lr"], 1 - every * group["lr"] * group["weight_decay"]
        due = defaultdict(list)
        n_before = 0
        for p in group["params"]:
            mine = slice((turn - n_before) % every, None, every)
            n_before += math.prod(p.shape[:-2])
            if p.grad is None or not len(stack(p)[mine]):
                continue
            momentum_BIO = stack(self.state[p]["momentum_buffer"])[mine].float()
            ahead_BIO = stack(p.grad)[mine].float().lerp(momentum_BIO, momentum)  # Nesterov's
            d_in, d_out = p.shape[-2:] if p.dim() > 2 else p.shape[::-1]
            by = -rate * math.sqrt(max(1.0, d_out / d_in))
            wide = p.shape[-2] <= p.shape[-1]
            gram_BNN = ahead_BIO @ ahead_BIO.mT if wide else ahead_BIO.mT @ ahead_BIO
            due[gram_BNN.shape[-1]].append((stack(p)[mine], ahead_BIO, gram_BNN, wide, by))
        for members in due.values():
            grams_BNN = torch.cat([gram_BNN for _, _, gram_BNN, _, _ in members])
            whiteners_BNN = whitener(grams_BNN, POLYNOMIALS[iterations])
            parts = whiteners_BNN.split([len(matrices) for matrices, *_ in members])
            for (matrices, ahead_BIO, _, wide, by), part in zip(members, parts, strict=True):
                factors = (part, ahead_BIO) if wide else (ahead_BIO, part)
                if matrices.dtype == torch.float32:
                    matrices.baddbmm_(*factors, beta=decay, alpha=by)
                else:
                    matrices.mul_(decay).add_(torch.bmm(*factors), alpha=by)

    def _keep_up(self, group: dict[str, Any], momentum: float) -> None:
        """Takes the gradients into the momentum."""
        trained = [p for p in group["params"] if p.grad is not None]
        for p in trained:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in trained]
        torch._foreach_lerp_(buffers, [p.grad for p in trained], 1 - momentum)


def stack(weight: Tensor) -> Tensor:
    """As a stack of matrices [B, I, O]."""
    return weight[None] if weight.dim() == 2 else weight.flatten(0, -3)
