"""Options that a router cannot have are refused when it is built, in a sentence that names them."""

from __future__ import annotations

from typing import Any

import pytest

from router_lab.errors import UserError
from router_lab.routing import ROUTERS

KINDS = ["ffn"] * 4 + ["copy"] * 4
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("base_layer", {"epsilon": 0.0}, "epsilon=0.0"),
    ("capacity", {"factor": 0.0}, "factor=0.0"),
    ("capacity", {"eval_factor": -1.0}, "eval_factor=-1.0"),
    ("cosine", {"proj_dim": 0}, "proj_dim=0"),
    ("cosine", {"temperature": 0.0}, "temperature=0.0"),
    ("cosine", {"k": 1, "norm_topk_prob": True}, "k=1"),
    ("dynmoe", {"coef": -1.0}, "coef=-1.0"),
    ("expert_threshold", {"beta": 1.0}, "beta=1.0"),
    ("expert_threshold", {"beta": -0.1}, "beta=-0.1"),
    ("expert_threshold", {"warmup": -1}, "warmup=-1"),
    ("expert_threshold", {"k": 0.0}, "k=0.0"),
    ("group_limited", {"n_groups": 3}, "n_groups=3"),
    ("group_limited", {"n_groups": 0}, "n_groups=0"),
    ("group_limited", {"topk_groups": 0}, "topk_groups=0"),
    ("group_limited", {"n_groups": 8, "topk_groups": 3, "group_score": "top2"}, "group_score=top2"),
    ("group_limited", {"k": 1, "norm_topk_prob": True}, "k=1"),
    ("group_limited", {"k": 5}, "k=5"),
    ("group_limited", {"n_groups": 2, "topk_groups": 1, "k": 5, "group_score": "topk"}, "k=5"),
    ("gshard", {"coef": -1.0}, "coef=-1.0"),
    ("hash", {"vocab_size": 0}, "vocab_size=0"),
    ("hash", {"learned_weight": True}, "k=1"),
    ("hash", {"k": 9}, "k=9"),
    ("longcat", {"k_ffn": 3.5, "kinds": KINDS}, "k_ffn=3.5"),
    ("longcat", {"k_ffn": 0.0, "kinds": KINDS}, "k_ffn=0.0"),
    ("longcat", {"k_ffn": 1.0}, "k_ffn=1.0"),
    ("longcat", {"u": -1.0}, "u=-1.0"),
    ("loss_free", {"k": 1}, "k=1"),
    ("loss_free", {"u": -1.0}, "u=-1.0"),
    ("loss_free", {"n_groups": 3}, "n_groups=3"),
    ("loss_free", {"n_groups": 4, "topk_groups": 5}, "topk_groups=5"),
    # One expert in a group has no two largest.
    ("loss_free", {"n_groups": 8, "topk_groups": 4}, "group_score=top2"),
    ("loss_free", {"n_groups": 4, "topk_groups": 1, "k": 3}, "k=3"),
    ("moepp", {"tau": 0.0}, "tau=0.0"),
    ("moepp", {"k": 1, "norm_topk_prob": True}, "k=1"),
    ("noisy_topk", {"k": 1}, "k=1"),
    ("noisy_topk", {"w_load": -1.0}, "w_load=-1.0"),
    ("quantile_balancing", {"k": 1}, "k=1"),
    ("quantile_balancing", {"ema": 1.0}, "ema=1.0"),
    ("quantile_balancing", {"ema": -0.1}, "ema=-0.1"),
    ("relu", {"lambda_init": 0.0}, "lambda_init=0.0"),
    ("relu", {"multiplier": 1.0}, "multiplier=1.0"),
    ("relu", {"k": 0.0}, "k=0.0"),
    ("sinkhorn", {"tolerance": 0.0}, "tolerance=0.0"),
    ("sinkhorn", {"max_iterations": 0}, "max_iterations=0"),
    ("sparsemixer", {"eps": -0.1}, "eps=-0.1"),
    ("switch", {"jitter": 1.5}, "jitter=1.5"),
    ("top_p", {"p": 0.0}, "p=0.0"),
    ("top_p", {"p": 1.1}, "p=1.1"),
    ("top_p", {"dynamic_coef": -1.0}, "dynamic_coef=-1.0"),
    ("top_p", {"k": 9.0}, "k=9.0"),
    ("two_level", {"n_groups": 5}, "n_groups=5"),
    ("two_level", {"k_groups": 3}, "k_groups=3"),
    # One expert in a group, renormalised, has no gradient.
    ("two_level", {"k": 2, "k_groups": 2}, "norm_topk_prob=True"),
    ("two_level", {"k": 2, "k_groups": 1}, "norm_topk_prob=True"),
    ("two_level", {"k": 8, "k_groups": 2}, "k=8"),
    ("vmoe", {"noise": -1.0}, "noise=-1.0"),
    ("zaya", {"d_router": 0}, "d_router=0"),
    ("zaya", {"u": -0.1}, "u=-0.1"),
]


@pytest.mark.parametrize(("name", "options", "words"), REFUSED, ids=str)
def test_refused(name: str, options: dict[str, Any], words: str) -> None:
    config = {"name": name, **options}
    kinds = config.pop("kinds", None)
    with pytest.raises(UserError, match=f"{words} is not possible; it must be "):
        ROUTERS.build(config, d_model=16, n_experts=8, kinds=kinds)
