from __future__ import annotations

from router_lab.metrics.agreement import Agreement


class LayerOverlap(Agreement):
    """|S^l ∩ S^{l+1}| / k: how often a token keeps its expert numbers from one layer to the next.

    `update(routing, below_TE)` takes a layer's record and the `selection` of the layer below it.
    Numbers mean nothing across layers unless the routers share something (a state carried up, as
    ZAYA's or MoE++'s; experts in common): chance is k/E. As in LibMoE, after Csordás et al. 2023.
    """
