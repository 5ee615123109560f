"""What of Switch the comparison with transformers (test_hf_capacity.py) doesn't see."""

from __future__ import annotations

import torch
from helpers import context_of

from router_lab.model.ffn import FFNS


def test_jitter_touches_the_router_s_input_alone() -> None:
    """The layer's output is the weight, which jitters, times the expert of the clean token."""
    moe = FFNS.build(
        {"name": "moe", "n_experts": 2, "router": {"name": "switch", "jitter": 0.5, "factor": 2.0}},
        d_model=4,
        d_hidden=3,
    )
    context = context_of(1, 6)
    x_TD = torch.randn(6, 4)
    before = x_TD.clone()
    y_TD, records = moe(x_TD, context)
    assert torch.equal(x_TD, before)
    routing = records[""]
    assert not torch.equal(routing.logits_TE, moe.router.gate(x_TD))
    for t in range(6):
        gate_up, down = moe.experts.gate_up_EDF, moe.experts.down_EFD
        e = routing.taken.expert_A[t]
        gate, up = (x_TD[t] @ gate_up[e]).chunk(2)
        want_D = routing.taken.weight_A[t] * ((gate * gate.sigmoid() * up) @ down[e])
        torch.testing.assert_close(y_TD[t], want_D)
