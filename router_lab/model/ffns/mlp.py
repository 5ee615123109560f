"""A dense SwiGLU layer with gate and up in one projection."""

from collections.abc import Iterator

from torch import Tensor

from router_lab.model.ffn import FFN, Gated, Linear
from router_lab.model.fused import swiglu
from router_lab.registry import register
from router_lab.routing import RouterContext, Routing


@register("mlp")
class MLP(FFN):
    """y = down(SiLU(g) · u) with [g, u] = gate_up(x): SwiGLU, arXiv:2002.05202, eq. 6.

    Args:
        bias: whether the two projections have one.
    """

    paper = "SwiGLU, Shazeer 2020, arXiv:2002.05202, eq. 6"
    reference = "transformers: MistralMLP"

    def __init__(self, d_model: int, d_hidden: int, bias: bool = False) -> None:
        super().__init__(d_model, d_hidden)
        self.gate_up = Linear(d_model, 2 * d_hidden, bias=bias)
        self.down = Linear(d_hidden, d_model, bias=bias)

    def gated(self) -> Gated:
        up, down = self.gate_up, self.down
        return Gated("silu", up.weight.T, down.weight.T, up.bias, down.bias)

    def forward(self, x_TD: Tensor, context: RouterContext) -> tuple[Tensor, dict[str, Routing]]:
        return self.down(swiglu(self.gate_up(x_TD))), {}

    def output_weights(self) -> Iterator[Tensor]:
        yield self.down.weight
