"""The dense gated layer of Mistral and Llama, with any activation."""

from collections.abc import Iterator

import torch
from torch import Tensor

from router_lab.model.ffn import FFN, Gated, Linear, activation
from router_lab.registry import register
from router_lab.routing import RouterContext, Routing


@register("mistral")
class MistralMLP(FFN):
    """y = down_proj(act(gate_proj x) · up_proj x), no bias.

    Args:
        hidden_act: the activation by name.
    """

    paper = "Mistral 7B, Jiang et al. 2023, arXiv:2310.06825"
    reference = "transformers: MistralMLP"

    def __init__(self, d_model: int, d_hidden: int, hidden_act: str = "silu") -> None:
        super().__init__(d_model, d_hidden)
        self.hidden_act = hidden_act
        self.act = activation(hidden_act)
        self.gate_proj = Linear(d_model, d_hidden, bias=False)
        self.up_proj = Linear(d_model, d_hidden, bias=False)
        self.down_proj = Linear(d_hidden, d_model, bias=False)

    def gated(self) -> Gated:
        up_DF = torch.cat([self.gate_proj.weight, self.up_proj.weight]).T
        return Gated(self.hidden_act, up_DF, self.down_proj.weight.T)

    def forward(self, x_TD: Tensor, context: RouterContext) -> tuple[Tensor, dict[str, Routing]]:
        return self.down_proj(self.act(self.gate_proj(x_TD)) * self.up_proj(x_TD)), {}

    def output_weights(self) -> Iterator[Tensor]:
        yield self.down_proj.weight
