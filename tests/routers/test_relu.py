"""ReMoE's router: its loss by hand, its steering of λ, and the density it settles at."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import context_of

from router_lab.model.transformer import ModelOptions, Transformer
from router_lab.routers.relu import ReLURouter
from router_lab.routing import StepTotals

CONTEXT = context_of(2, 16)


def test_weights_and_loss_equal_loops(reference_check: Callable[..., None]) -> None:
    """ReMoE: λ · E / (k T²) · Σ_i (tokens of i) · Σ_t w_ti, the gradient through w alone."""
    router = ReLURouter(8, 6, k=1.5, lambda_init=0.3).train()
    x_TD = torch.randn(32, 8)
    routing = router(x_TD, CONTEXT)
    z = (x_TD @ router.gate.weight.T).detach().tolist()
    pairs = [(t, e) for t in range(32) for e in range(6) if z[t][e] > 0]
    assert (
        list(zip(routing.taken.token_A.tolist(), routing.taken.expert_A.tolist(), strict=True))
        == pairs
    )
    torch.testing.assert_close(routing.taken.weight_A, torch.tensor([z[t][e] for t, e in pairs]))
    tokens = [sum(z[t][e] > 0 for t in range(32)) for e in range(6)]
    loss = sum(0.3 * 6 / (1.5 * 32**2) * tokens[e] * z[t][e] for t, e in pairs)
    reference_check(
        router="relu",
        against="thu-ml/ReMoE's L1 loss in loops",
        kind="own loop",
        tolerance=1e-5,
        error=abs(float(routing.losses["l1"].detach()) - loss),
    )
    routing.losses["l1"].backward()
    expected_ED = torch.zeros(6, 8)
    for t, e in pairs:
        expected_ED[e] += 0.3 * 6 / (1.5 * 32**2) * tokens[e] * x_TD[t]
    reference_check(
        router="relu",
        against="gradient of the L1 loss by hand",
        kind="own loop",
        tolerance=1e-5,
        error=(router.gate.weight.grad - expected_ED).abs().max(),
    )


def test_lambda_follows_the_density_of_the_model(reference_check: Callable[..., None]) -> None:
    """Target 2/8: up above it, down at and under it; the layer's own load does not count."""
    router = ReLURouter(8, 8, k=2, lambda_init=1e-8)
    expected = 1e-8
    for density in (0.5, 0.3, 0.26, 0.25, 0.1, 0.4):
        expected = expected * 1.2 if 1 - density < 1 - 2 / 8 else expected / 1.2
        router.after_step(torch.zeros(8, dtype=torch.long), StepTotals(32, density))
    reference_check(
        router="relu",
        against="thu-ml/ReMoE's update of λ (relative)",
        kind="own loop",
        tolerance=1e-6,
        error=abs(float(router.coef) / expected - 1),
    )


def experts_a_token_while_training(seed: int, steps: int) -> list[float]:
    """Of a one-layer language model that learns a random Markov chain, step by step."""
    torch.manual_seed(seed)
    chain_VV = (2 * torch.randn(64, 64)).softmax(1)
    ffn = {"name": "moe", "n_experts": 8, "router": {"name": "relu", "k": 2.0}}
    model = Transformer(64, ffn, ModelOptions(32, 1, n_heads=2, seq_len=32), 32, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    seen = []
    for _ in range(steps):
        rows = [torch.randint(64, (8,))]
        for _ in range(32):
            rows.append(torch.multinomial(chain_VV[rows[-1]], 1)[:, 0])
        tokens_BS = torch.stack(rows, dim=1)
        out = model(tokens_BS[:, :-1])
        loss = F.cross_entropy(out.logits_BSV.flatten(0, 1), tokens_BS[:, 1:].flatten())
        routing = out.routings["layer0"]
        (loss + routing.losses["l1"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(float(routing.demand_E.sum()) / routing.n_tokens)
        model.routers()["layer0"].after_step(
            routing.demand_E, StepTotals(routing.n_tokens, seen[-1] / 8)
        )
    return seen


def test_density_settles_at_k() -> None:
    """From half of 8 experts to k = 2 on average, once λ has grown to take hold."""
    seen = experts_a_token_while_training(seed=0, steps=250)
    assert seen[0] > 3
    assert sum(seen[150:]) / 100 == pytest.approx(2, abs=0.2)


def test_a_token_may_get_no_expert() -> None:
    router = ReLURouter(4, 3)
    with torch.no_grad():
        router.gate.weight.copy_(torch.ones(3, 4))
    context = replace(CONTEXT, n_sequences=1).select(torch.tensor([0, 1]))
    routing = router(torch.tensor([[-1.0] * 4, [1.0] * 4], requires_grad=True), context)
    assert routing.taken.token_A.tolist() == [1, 1, 1]
    assert routing.probs_TE.sum(1).tolist() == [0.0, 1.0]
    routing.probs_TE[:, 0].sum().backward()
    assert router.gate.weight.grad is not None and router.gate.weight.grad.isfinite().all()


def test_the_loss_is_the_same_in_both_modes() -> None:
    router, x_TD = ReLURouter(8, 4), torch.randn(32, 8)
    in_training = router.train()(x_TD, CONTEXT).losses["l1"]
    assert router.eval()(x_TD, CONTEXT).losses["l1"] == in_training > 0
