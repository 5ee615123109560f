"""The loss-free bias: its update, what it may touch, and the sequence-wise loss of DeepSeek-V3."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers import context_of

from router_lab.losses import LoadBalance
from router_lab.routers.loss_free import LossFree
from router_lab.routing import StepTotals

CONTEXT = context_of(4, 16)
TOTALS = StepTotals(n_tokens=64, density=0.25)


@pytest.mark.parametrize("update", ["sign", "error"])
@pytest.mark.parametrize("centre", [False, True])
def test_update_equals_a_loop(
    reference_check: Callable[..., None], update: str, centre: bool
) -> None:
    """Three steps; expert 3 has the mean load exactly, where the sign is 0."""
    router = LossFree(8, 4, u=0.01, update=update, centre=centre)  # type: ignore[arg-type]
    bias = [0.0] * 4
    for load in ([10, 50, 30, 30], [0, 119, 1, 0], [70, 5, 5, 40]):
        mean = sum(load) / 4
        change = []
        for tokens in load:
            if update == "error":
                change.append(0.01 * (mean - tokens) / mean)
            elif tokens < mean:
                change.append(0.01)
            elif tokens > mean:
                change.append(-0.01)
            else:
                change.append(0.0)
        shift = sum(change) / 4 if centre else 0.0
        bias = [b + c - shift for b, c in zip(bias, change, strict=True)]
        router.after_step(torch.tensor(load), TOTALS)
    reference_check(
        router="loss_free",
        against=f"a loop over experts: update={update}" + (", centred" if centre else ""),
        kind="own loop",
        tolerance=1e-7,
        error=(router.bias_E - torch.tensor(bias)).abs().max(),
    )


def test_no_load_no_change() -> None:
    for update in ("sign", "error"):
        router = LossFree(8, 4, update=update)  # type: ignore[arg-type]
        router.after_step(torch.zeros(4, dtype=torch.long), TOTALS)
        assert router.bias_E.tolist() == [0.0] * 4


def test_the_bias_chooses_and_does_not_weigh() -> None:
    """With a bias that forces experts 0 and 1, their weights are still σ(z) renormalised."""
    router = LossFree(8, 4, k=2, scale=3.0)
    router.bias_E.copy_(torch.tensor([9.0, 8.0, 0.0, 0.0]))
    x_TD = torch.randn(64, 8)
    routing = router(x_TD, CONTEXT)
    assert routing.taken.expert_A.view(64, 2).tolist() == [[0, 1]] * 64
    s_TE = (x_TD @ router.gate.weight.T).sigmoid()
    expected_TK = 3 * s_TE[:, :2] / (s_TE[:, 0] + s_TE[:, 1])[:, None]
    torch.testing.assert_close(
        routing.taken.weight_A.view(64, 2), expected_TK, rtol=1e-5, atol=1e-6
    )
    routing.taken.weight_A[::2].sum().backward()
    assert router.gate.weight.grad is not None and not router.bias_E.requires_grad


@pytest.mark.parametrize("update", ["sign", "error"])
def test_steps_balance_a_skewed_gate(update: str) -> None:
    """A gate that likes one expert: MaxVio falls to a tenth, on tokens never seen before."""
    router = LossFree(8, 8, u=0.01, update=update)  # type: ignore[arg-type]
    with torch.no_grad():
        router.gate.weight[0] = 0
        router.gate.weight[0, 0] = 2.0

    def load_of_a_batch() -> torch.Tensor:
        x_TD = torch.randn(2048, 8)
        x_TD[:, 0] += 1.5
        context = context_of(8, 256)
        return router(x_TD, context).demand_E.float()

    def max_vio(load_E: torch.Tensor) -> float:
        return float(load_E.max() / load_E.mean() - 1)

    before = max_vio(load_of_a_batch())
    for _ in range(150):
        router.after_step(load_of_a_batch(), TOTALS)
    assert before > 1.5
    assert max_vio(load_of_a_batch()) < before / 10


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_sequence_loss_by_the_equations(reference_check: Callable[..., None], score: str) -> None:
    """DeepSeek-V3, eq. 17–20, summed by hand; without bias its f counts what was chosen."""
    k, E, B, S = 2, 6, 4, 16
    router = LossFree(8, E, k=k, score=score)  # type: ignore[arg-type]
    x_TD = torch.randn(B * S, 8)
    z_TE = x_TD @ router.gate.weight.detach().T
    losses = []
    for b in range(B):
        f, P = [0.0] * E, [0.0] * E
        for t in range(b * S, b * S + S):
            s = [
                float(v) for v in (z_TE[t].sigmoid() if score == "sigmoid" else z_TE[t].softmax(0))
            ]
            top = sorted(s)[-k:]
            for i in range(E):
                f[i] += E / (k * S) * (s[i] in top)  # eq. 18
                P[i] += s[i] / sum(s) / S  # eq. 19, 20
        losses.append(sum(a * b for a, b in zip(f, P, strict=True)))  # eq. 17, α left out
    routing = replace(router(x_TD, CONTEXT), context=CONTEXT)
    loss = LoadBalance(coef=1e-4, scope="sequence")(routing, routing.demand_E)
    reference_check(
        router="loss_free",
        against=f"DeepSeek-V3 eq. 17–20 in loops, {score}",
        kind="own loop",
        tolerance=1e-6,
        error=abs(float(loss.detach()) - sum(losses) / B),
    )
    loss.backward()
    assert router.gate.weight.grad is not None and router.gate.weight.grad.abs().sum() > 0


def test_one_expert_a_token_without_normalising() -> None:
    router = LossFree(8, 4, k=1, norm_topk_prob=False)
    routing = router(torch.randn(64, 8), CONTEXT)
    routing.taken.weight_A.sum().backward()
    assert router.gate.weight.grad is not None and router.gate.weight.grad.abs().sum() > 0
