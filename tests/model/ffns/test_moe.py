"""The MoE layer against a loop over assignments, and its parts against autograd in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import build_layer, context_of
from torch import Tensor, nn

from router_lab.errors import UserError
from router_lab.model.dispatch import Plan, combine, dispatch
from router_lab.model.experts import ExpertList, StackedExperts
from router_lab.model.ffn import ACTIVATIONS
from router_lab.model.ffns.mistral import MistralMLP
from router_lab.model.ffns.mlp import MLP
from router_lab.model.ffns.moe import MoE
from router_lab.routing import RouterContext, Routing

D, F_ = 12, 8
TOLERANCE = 2e-6  # float32 rounding of sums of about 20 terms of size 1


def build(**config: Any) -> MoE:
    config.setdefault("router", {"name": "softmax_topk", "k": 2})
    return build_layer(MoE, D, F_, **{"name": "moe", "n_experts": 4, **config})


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    half = gate_up.shape[1] // 2
    gate, up = x @ gate_up[:, :half], x @ gate_up[:, half:]
    return (gate / (1 + (-gate).exp()) * up) @ down


def expert_output(moe: MoE, e: int, x: Tensor, context: RouterContext, token: int) -> Tensor:
    """What expert e makes of one token."""
    n = moe.experts.n_experts
    if e >= n:
        kind, special = moe.kinds[e], moe.special[e - n]
        if kind == "zero":
            return torch.zeros_like(x)
        if kind == "copy":
            return x
        mix = (special.mix.weight @ x).exp()
        return (mix[0] * x + mix[1] * special.value_D) / mix.sum()
    if isinstance(moe.experts, StackedExperts):
        weights = moe.experts.weights()
        gate_up, down, up_bias, down_bias = (0 if t is None else t[e] for t in weights.tensors)
        gate, up = (x @ gate_up + up_bias).chunk(2, dim=-1)
        out: Tensor = (ACTIVATIONS[weights.act](gate) * up) @ down + down_bias
        return out
    assert isinstance(moe.experts, ExpertList)
    expert = moe.experts.experts[e]
    if isinstance(expert, MoE):
        return naive(expert, x[None], context.select(torch.tensor([token])))[0]
    return expert(x[None], context)[0][0]


def naive(moe: MoE, x_TD: Tensor, context: RouterContext) -> Tensor:
    """The whole layer, one assignment at a time."""
    routing = replace(moe.router(x_TD, context), context=context)
    if moe.capacity is not None:
        routing = moe.capacity(routing)
    asked, taken = routing.asked, routing.taken
    y = [torch.zeros(D) for _ in x_TD]
    for token, e, weight in zip(
        taken.token_A.tolist(), taken.expert_A.tolist(), taken.weight_A, strict=True
    ):
        if moe.router.weight_on == "input":
            y[token] = y[token] + expert_output(moe, e, weight * x_TD[token], context, token)
        else:
            y[token] = y[token] + weight * expert_output(moe, e, x_TD[token], context, token)
    y_TD = torch.stack(y)
    if moe.router.keeps_rest:
        rest = [1.0 - asked.weight_A[asked.token_A == t].sum() for t in range(len(x_TD))]
        y_TD = y_TD + torch.stack(rest)[:, None] * x_TD
    if moe.shared is not None:
        shared_TD = swiglu(x_TD, moe.shared.gate_up.weight.T, moe.shared.down.weight.T)
        if moe.shared_combine == "gate":
            y_TD = y_TD + torch.sigmoid(x_TD @ moe.shared_gate.weight.T) * shared_TD
        elif moe.shared_combine == "average":
            y_TD = (moe.router.mean_k * y_TD + shared_TD) / (moe.router.mean_k + 1)
        else:
            y_TD = y_TD + shared_TD
    return y_TD


def gradients(moe: MoE, y_TD: Tensor, x_TD: Tensor, probe_TD: Tensor) -> list[Tensor]:
    """Of x and of each parameter; zeros where there is none."""
    inputs = [x_TD, *moe.parameters()]
    grads = torch.autograd.grad((y_TD * probe_TD).sum(), inputs, allow_unused=True)
    return [torch.zeros(1) if grad is None else grad for grad in grads]


def check_against_loop(moe: MoE, context: RouterContext) -> None:
    T = len(context.position_T)
    x_TD = torch.randn(T, D, requires_grad=True)
    probe_TD = torch.randn(T, D)
    got, want = moe(x_TD, context)[0], naive(moe, x_TD, context)
    assert (got - want).abs().max() <= TOLERANCE * max(1, want.abs().max().item())
    largest = 0.0
    names = ["x", *(name for name, _ in moe.named_parameters())]
    pairs = zip(
        names,
        gradients(moe, got, x_TD, probe_TD),
        gradients(moe, want, x_TD, probe_TD),
        strict=True,
    )
    for name, ours, theirs in pairs:
        assert (ours - theirs).abs().max() <= 10 * TOLERANCE * max(1, theirs.abs().max()), name
        largest = max(largest, theirs.abs().max().item())
    assert largest > 0.01


CAPPED = {"capacity": {"factor": 0.6}}
INNER = {"name": "moe", "n_experts": 3, "router": {"name": "softmax_topk", "k": 2}}


@pytest.mark.parametrize(
    "config",
    [
        {},
        CAPPED,
        {"capacity": {"factor": 0.6, "order": "probability", "renormalize": True}},
        {"capacity": {"factor": 0.6, "order": "priority", "scope": "sequence"}},
        {"expert": {"name": "mlp", "bias": True}},
        {"expert": {"name": "mistral", "hidden_act": "gelu"}, **CAPPED},
        {"expert": {"name": "mlp", "d_hidden": 5}},
        {"expert": INNER},
        {"expert": INNER, **CAPPED},
        {"n_shared": 2},
        {"n_shared": 1, "shared_combine": "average", **CAPPED},
        {"n_shared": 1, "shared_combine": "gate"},
        {"special": {"zero": 1, "copy": 2, "constant": 1}},
        {"special": {"constant": 2}, "expert": {"name": "mistral"}, **CAPPED},
        {"router": {"name": "softmax_topk", "k": 1, "norm_topk_prob": False}},
        {"router": {"name": "softmax_topk", "k": 4}},
        {"n_experts": 1, "router": {"name": "softmax_topk", "k": 1}},
    ],
    ids=str,
)
def test_layer_is_the_loop_over_assignments(config: Any) -> None:
    check_against_loop(build(**config), context_of(3, 7))


class Odd(nn.Module):
    """A routing with everything that no softmax router has, in no order at all."""

    def __init__(self, **extra: Any) -> None:
        super().__init__()
        self.mean_k = 1.5
        self.gate = nn.Linear(D, 4)
        self.weight_on = extra.get("weight_on", "output")
        self.keeps_rest = extra.get("keeps_rest", False)

    def forward(self, x_TD: Tensor, context: RouterContext) -> Routing:
        logits_TE = self.gate(x_TD)
        probs_TE = logits_TE.softmax(-1)
        generator = torch.Generator().manual_seed(1)
        mask_TE = torch.rand(len(x_TD), 4, generator=generator) < 0.4  # some tokens have no expert
        mask_TE[:, 2] = False  # and one expert no token
        routing = Routing.from_mask(mask_TE, probs_TE, logits_TE=logits_TE, probs_TE=probs_TE)
        asked = routing.asked.keep(torch.randperm(len(routing.asked), generator=generator))
        return replace(routing, asked=asked, taken=asked)


@pytest.mark.parametrize("extra", [{}, {"weight_on": "input"}, {"keeps_rest": True}], ids=str)
@pytest.mark.parametrize("expert", ["mlp", "mistral"])
def test_any_number_of_experts_a_token(extra: Any, expert: str) -> None:
    moe = build(expert={"name": expert})
    moe.router = Odd(**extra)  # type: ignore[assignment]
    check_against_loop(moe, context_of(3, 7))


def test_no_assignment_at_all() -> None:
    """Of an expert list, too, which has nothing to concatenate."""

    def drop_all(routing: Routing) -> Routing:
        return replace(routing, taken=routing.asked.keep(torch.zeros(0, dtype=torch.long)))

    no_room: Any = drop_all
    for expert in ("mlp", "mistral"):
        moe = build(expert={"name": expert}, n_shared=0)
        context = context_of(1, 1)
        x_TD = torch.randn(1, D, requires_grad=True)
        moe.capacity = no_room
        y_TD, _ = moe(x_TD, context)
        assert y_TD.tolist() == [[0.0] * D]
        y_TD.sum().backward()


def test_room_for_all_drops_nothing() -> None:
    """A factor of E/k lets every token go to one expert."""
    context = context_of(3, 7)
    x_TD = torch.randn(21, D)
    moe = build()
    dropless, record = moe(x_TD, context)
    for order in ("position", "probability", "priority"):
        moe.capacity = build(capacity={"factor": 4 / 2, "order": order}).capacity
        limited, limited_record = moe(x_TD, context)
        assert torch.equal(limited, dropless)
        assert torch.equal(limited_record[""].load_E, record[""].load_E)


def routed(T: int, k: int, E: int, drop: bool = False) -> Any:
    index_TK = torch.rand(T, E).argsort(1)[:, :k]
    probs_TE = torch.rand(T, E)
    asked = Routing.from_topk(
        index_TK, probs_TE.gather(1, index_TK), logits_TE=probs_TE, probs_TE=probs_TE
    ).asked
    return asked.keep(torch.arange(0, T * k, 2)) if drop else asked


@pytest.mark.parametrize("drop", [False, True])
def test_gradients_in_float64(drop: bool) -> None:
    plan = Plan(routed(5, 2, 4, drop), 5, 4)
    R = len(plan.token_R)
    x_TD, rows_RD, weight_R = torch.randn(5, 3), torch.randn(R, 3), torch.rand(R)
    inputs = [t.double().requires_grad_() for t in (x_TD, rows_RD, weight_R)]
    assert torch.autograd.gradcheck(lambda x: dispatch(x, plan), inputs[:1])
    assert torch.autograd.gradcheck(lambda r, w: combine(r, w, plan), inputs[1:])


def test_autocast_leaves_the_gate_in_float32() -> None:
    moe, context = build(n_shared=1), context_of(3, 7)
    x_TD = torch.randn(21, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_TD, records = moe(x_TD, context)
    assert y_TD.dtype == x_TD.dtype
    assert torch.equal(records[""].logits_TE, moe.router(x_TD, context).logits_TE)
    exact, _ = moe(x_TD, context)
    assert 0 < (y_TD - exact).abs().max() < 0.1 * exact.abs().max()


def test_padding_of_a_batch_is_never_seen() -> None:
    """Tokens selected from a batch route as they would alone, each in its own sequence."""
    whole = context_of(2, 4)
    part = whole.select(torch.tensor([0, 1, 4, 5, 6]))
    assert part.sequence_T.tolist() == [0, 0, 1, 1, 1]
    assert part.position_T.tolist() == [0, 1, 0, 1, 2]


def test_dense_layers_by_hand() -> None:
    """SwiGLU of (1, −2) with weights of small whole numbers; SiLU(v) = v / (1 + e^−v)."""
    x = torch.tensor([[1.0, -2.0]])
    gate, up, down = [[1.0, 0.0]], [[0.0, -1.0]], [[3.0], [-1.0]]
    hidden = (1 / (1 + torch.tensor(-1.0).exp())) * 2  # SiLU(1) · 2
    mlp, mistral = MLP(2, 1), MistralMLP(2, 1)
    mlp.gate_up.weight.data = torch.tensor(gate + up)
    mlp.down.weight.data = torch.tensor(down)
    mistral.gate_proj.weight.data = torch.tensor(gate)
    mistral.up_proj.weight.data = torch.tensor(up)
    mistral.down_proj.weight.data = torch.tensor(down)
    want = torch.stack([3 * hidden, -hidden])[None]
    torch.testing.assert_close(mlp(x, context_of(1, 1))[0], want)
    torch.testing.assert_close(mistral(x, context_of(1, 1))[0], want)
    mistral.act = MistralMLP(2, 1, hidden_act="relu2").act
    mistral.gate_proj.weight.data = torch.tensor([[-1.0, 1.0]])  # −3: ReLU² gives 0
    assert mistral(x, context_of(1, 1))[0].tolist() == [[0.0, 0.0]]


def test_look_ahead_of_a_layer() -> None:
    assert build().lookahead == build(expert=INNER).lookahead == "never"
    assert build(router={"name": "expert_choice"}).lookahead == "always"
    assert build(router={"name": "sinkhorn"}).lookahead == "in training"
    assert build(capacity={"factor": 1.0}).lookahead == "always"
    assert build(expert={**INNER, "capacity": {"factor": 1.0}}).lookahead == "always"
    assert build(expert={**INNER, "router": {"name": "sinkhorn"}}).lookahead == "in training"
    # A limit of the layer takes the place of the router's own.
    assert build(router={"name": "vmoe"}, capacity={"factor": 2.0}).lookahead == "never"


def test_parameters_a_token_meets() -> None:
    """8 × 2 experts, a gate of 12 × 6 and a shared expert, counted by hand."""
    moe = build(special={"copy": 1, "constant": 1}, n_shared=1)
    expert, gate = 3 * D * F_, D * 6
    constant = 3 * D
    assert moe.active_params() == 2 / 6 * (4 * expert + constant) + gate + expert
    assert moe.matmul_params() == 2 / 6 * (4 * expert + 2 * D) + gate + expert


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_experts": 0}, "MoE: n_experts=0"),
        ({"special": {"mirror": 1}}, "'mirror'"),
        ({"special": {"copy": -1}}, "ffn.special.copy=-1"),
        ({"capacity": {"size": 2}}, "no option size"),
        ({"capacity": {"factor": 0}}, "factor=0"),
        ({"capacity": {"order": "luck"}}, "position, probability, priority"),
        ({"expert": {"name": "mlp", "width": 3}}, "no option width"),
        ({"expert": {"name": "mistral", "hidden_act": "snake"}}, "hidden_act=snake"),
        ({"n_shared": -1}, "MoE: n_shared=-1"),
    ],
    ids=str,
)
def test_refused(config: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**config)
