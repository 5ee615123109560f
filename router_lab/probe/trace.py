"""Forward passes of a trained model, and the same with another record in one layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from router_lab.model.ffns.moe import MoE
from router_lab.model.transformer import Block, Transformer
from router_lab.routing import Assignments, RouterContext, Routing


@dataclass(frozen=True, eq=False)
class Trace:
    """A forward pass over some windows.

    Attributes:
        inputs: the residual stream at the input of each block [B, S, D].
        routings: the record of each routed layer by name.
        output: the residual stream after the last block [B, S, D].
    """

    inputs: list[Tensor]
    routings: dict[str, Routing]
    output: Tensor


def trace(model: Transformer, tokens_BS: Tensor, step: int = 0) -> Trace:
    """Runs the model and keeps what `resume` needs.

    Args:
        model: in evaluation mode.
        step: optimiser steps that it was trained for.
    """
    context = RouterContext.of_batch(tokens_BS, step=step)
    inputs = [model.embedding(tokens_BS)]
    routings: dict[str, Routing] = {}
    for layer in range(len(model.blocks)):
        x_BSD, context = forward_block(model, layer, inputs[-1], context)
        inputs.append(x_BSD)
        if context.previous is not None and context.previous.context.layer == layer:
            routings[f"layer{layer}"] = context.previous
    return Trace(inputs[:-1], routings, inputs[-1])


def resume(model: Transformer, base: Trace, layer: int, changed: Routing) -> Tensor:
    """The output [B, S, D] of the pass in which a layer carries out another record.

    Args:
        model: in evaluation mode.
        changed: what the layer carries out, over the windows of the trace, or over N copies of them
            (see `repeat`; the output is then [N · B, S, D]).
    """
    block, ffn = model.blocks[layer], routed_layers(model)[f"layer{layer}"][1]
    assert isinstance(block, Block)
    x_BSD = block.attend(base.inputs[layer], None)
    x_BSD = x_BSD.repeat(changed.n_tokens // x_BSD[..., 0].numel(), 1, 1)
    y_TD, _ = ffn.carry_out(block.ffn_norm(x_BSD).flatten(0, 1), changed)
    x_BSD, context = x_BSD + y_TD.view_as(x_BSD), replace(changed.context, previous=changed)
    for above in range(layer + 1, len(model.blocks)):
        x_BSD, context = forward_block(model, above, x_BSD, context)
    return x_BSD


def forward_block(
    model: Transformer, layer: int, x_BSD: Tensor, context: RouterContext
) -> tuple[Tensor, RouterContext]:
    """The output of a block, and the context of the next one."""
    x_BSD, records = model.blocks[layer](x_BSD, None, replace(context, layer=layer))
    return x_BSD, replace(context, previous=records.get("", context.previous))


def repeat(routing: Routing, copies: int) -> Routing:
    """The record of N copies of the same windows, each copy with its own sequences."""
    T, context = routing.n_tokens, routing.context
    first_N = torch.arange(copies, device=routing.probs_TE.device)

    def several(assignments: Assignments) -> Assignments:
        shift_A = T * first_N.repeat_interleave(len(assignments))
        return replace(
            assignments,
            token_A=assignments.token_A.repeat(copies) + shift_A,
            expert_A=assignments.expert_A.repeat(copies),
            weight_A=assignments.weight_A.repeat(copies),
            rank_A=assignments.rank_A.repeat(copies),
        )

    state = routing.state
    shift_T = context.n_sequences * first_N.repeat_interleave(T)
    return replace(
        routing,
        asked=several(routing.asked),
        taken=several(routing.taken),
        logits_TE=routing.logits_TE.repeat(copies, 1),
        probs_TE=routing.probs_TE.repeat(copies, 1),
        state=None if state is None else state.repeat(copies, *[1] * (state.dim() - 1)),
        context=replace(
            context,
            token_id_T=context.token_id_T.repeat(copies),
            sequence_T=context.sequence_T.repeat(copies) + shift_T,
            position_T=context.position_T.repeat(copies),
            n_sequences=context.n_sequences * copies,
            previous=None,
        ),
    )


def nats(model: Transformer, x_BSD: Tensor, target_BS: Tensor) -> Tensor:
    """Cross-entropy of each token [B, S], float64."""
    logits_BSV = model.head(x_BSD).float()
    loss = F.cross_entropy(logits_BSV.flatten(0, 1), target_BS.flatten(), reduction="none")
    return loss.view(target_BS.shape).double()


def routed_layers(model: Transformer) -> dict[str, tuple[int, MoE]]:
    """The layers whose record can be changed: index and layer, by name."""
    return {
        name: (int(name.removeprefix("layer")), ffn)
        for name, ffn in model.ffns().items()
        if isinstance(ffn, MoE)
    }


def sequences_meet(model: Transformer) -> bool:
    """Whether, in evaluation, sequences of a batch affect each other."""
    return model.lookahead == "always"
