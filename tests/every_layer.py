"""A configuration of every kind of feed-forward layer, and the sizes of the model around it."""

from __future__ import annotations

from typing import Any

V, D, F, L, B, S = 50, 32, 24, 2, 2, 16
LAYERS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp"},
    "mlp with bias": {"name": "mlp", "bias": True},
    "mistral": {"name": "mistral"},
    "moe": {"name": "moe"},
    "shared added": {"name": "moe", "n_shared": 2},
    "shared gated": {"name": "moe", "n_shared": 1, "shared_combine": "gate"},
    "special": {"name": "moe", "n_experts": 4, "special": {"zero": 1, "copy": 1, "constant": 2}},
    "moepp": {
        "name": "moe",
        "special": {"zero": 1, "copy": 1, "constant": 2},
        "router": {"name": "moepp"},
    },
    "longcat": {"name": "moe", "special": {"copy": 4}, "router": {"name": "longcat"}},
    "list": {"name": "moe", "n_experts": 4, "expert": {"name": "mistral"}},
    "hierarchical": {
        "name": "moe",
        "n_experts": 3,
        "expert": {"name": "moe", "n_experts": 4, "router": {"name": "switch", "factor": 0.75}},
    },
    "half the room": {"name": "moe", "capacity": {"factor": 0.5}},
    "probes": {"name": "moe", "n_experts": 4, "router": {"name": "densemixer"}},
    "mixture_of_depths": {"name": "mixture_of_depths", "share": 0.25},
    "depths of experts": {"name": "mixture_of_depths", "share": 0.5, "expert": {"name": "moe"}},
    "soft_moe": {"name": "soft_moe", "seq_len": S},
    "autonomy": {"name": "autonomy"},
}
