from __future__ import annotations

from router_lab.metrics.agreement import Agreement


class Saturation(Agreement):
    """|S^t ∩ S^final| / k: how much of the final choice was already made at time t.

    `update(final, earlier_TE)` takes the final router's record of a batch and the `selection` that
    the router made of it at time t. OLMoE, arXiv:2409.02060, section 5.1.
    """
