"""A decoder-only transformer: pre-norm RMSNorm, rotary positions, causal attention, an FFN slot.

B batch, S sequence, T real tokens (B·S if there is no padding), D width, V vocabulary, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from router_lab.check import ABOVE_0, BELOW_1, Count
from router_lab.errors import UserError
from router_lab.model.ffn import DENSE, FFN, Linear, build_ffn
from router_lab.model.fused import RMSNorm, split_heads
from router_lab.registry import Registry, register
from router_lab.routing import (
    Lookahead,
    Router,
    RouterContext,
    Routing,
    TokenCounts,
    furthest,
)
from router_lab.runs.layers import qualified


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """logits_BSV, and the record of every routed layer by name: "layer0", "layer0.expert3"."""

    logits_BSV: Tensor
    routings: dict[str, Routing]


class Attention(nn.Module):
    """Causal self-attention with rotary positions (arXiv:2104.09864)."""

    def __init__(self, d_model: int, n_heads: int, seq_len: int, qk_norm: bool = False) -> None:
        super().__init__()
        if d_model % (2 * n_heads):
            raise UserError(
                f"model.n_heads={n_heads} does not divide model.d_model={d_model} into heads of "
                f"even width; choose a number of heads that does."
            )
        self.n_heads = n_heads
        self.qk_norm = qk_norm
        self.qkv = Linear(d_model, 3 * d_model, bias=False)
        self.out = Linear(d_model, d_model, bias=False)
        self.cos_SD: Tensor
        self.sin_SD: Tensor
        half = d_model // n_heads // 2
        frequency = 10000.0 ** -(torch.arange(half) / half)
        angle_SD = torch.outer(torch.arange(seq_len).float(), frequency)
        self.register_buffer("cos_SD", angle_SD.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin_SD", angle_SD.sin(), persistent=False)

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
        B, S, D = x_BSD.shape
        q, k, v = split_heads(self.qkv(x_BSD), self.n_heads, self.cos_SD[:S], self.sin_SD[:S])
        if self.qk_norm:  # a rotation does not change the length
            q, k = (F.rms_norm(x, x.shape[-1:], eps=1e-6) for x in (q, k))
        allowed = None
        if mask_BS is not None:
            causal_SS = torch.ones(S, S, dtype=torch.bool, device=x_BSD.device).tril()
            # The diagonal stays open, so that a padded row has something to attend to.
            own_SS = torch.eye(S, dtype=torch.bool, device=x_BSD.device)
            allowed = causal_SS & mask_BS[:, None, None, :] | own_SS
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=allowed is None)
        out_BSD: Tensor = self.out(y.transpose(1, 2).reshape(B, S, D))
        return out_BSD


class Head(nn.Linear):
    """Logits by weights of their own, which start at 0."""

    def __init__(self, d_model: int, vocab_size: int) -> None:
        super().__init__(d_model, vocab_size, bias=False)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class Block(nn.Module):
    """x + attention(norm x), then x + ffn(norm x)."""

    def __init__(self, attention: Attention, ffn: FFN, d_model: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(d_model)
        self.attention = attention
        self.ffn_norm = RMSNorm(d_model)
        self.ffn = ffn
        self.dropout = nn.Dropout(dropout)

    def attend(self, x_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
        y_BSD: Tensor = x_BSD + self.dropout(self.attention(self.attention_norm(x_BSD), mask_BS))
        return y_BSD

    def forward(
        self, x_BSD: Tensor, mask_BS: Tensor | None, context: RouterContext
    ) -> tuple[Tensor, dict[str, Routing]]:
        x_BSD = self.attend(x_BSD, mask_BS)
        h_BSD = self.ffn_norm(x_BSD)
        if mask_BS is None:
            y_TD, routings = self.ffn(h_BSD.flatten(0, 1), context)
            y_BSD = y_TD.view_as(x_BSD)
        else:  # padding takes no expert, no capacity, no share of any loss
            y_TD, routings = self.ffn(h_BSD[mask_BS], context)
            y_BSD = torch.zeros_like(x_BSD).masked_scatter(mask_BS[..., None], y_TD.to(x_BSD.dtype))
        return x_BSD + self.dropout(y_BSD), routings


@dataclass(frozen=True)
class ModelOptions:
    """A decoder-only transformer with an FFN slot; presets of its size are in conf/model.

    Args:
        d_model: width D of the residual stream.
        n_layers: blocks.
        n_heads: attention heads, each of an even width D / n_heads.
        d_ffn: width of the dense reference that `match` aims at, and of layers without the slot.
        seq_len: tokens in a sequence, at most.
        ffn_layers: layers that have the slot: `all`, n for every n-th (the last of each n), or a
            list of indices. The others have a dense `mlp` of width d_ffn.
        dropout: probability on the outputs of attention and FFN.
        checkpoint: recompute each block in the backward pass instead of keeping its activations.
        qk_norm: divide each head's queries and keys by their root mean square (arXiv:2010.04245).
        zero_outputs: start the output projections of attention and FFNs at 0, so that each block
            begins as the identity.
        tied: the head is the embedding; false: weights of its own, which start at 0.
        embedding_std: standard deviation of the initial embedding.
        logit_cap: c of c · tanh(logits / c), which keeps logits within ±c; null: no cap.
    """

    d_model: Count = 128
    n_layers: Count = 4
    n_heads: Count = 4
    d_ffn: Count = 384
    seq_len: Count = 256
    ffn_layers: str | int | Sequence[int] = "all"
    dropout: Annotated[float, BELOW_1] = 0.0
    checkpoint: bool = False
    qk_norm: bool = False
    zero_outputs: bool = False
    tied: bool = True
    embedding_std: Annotated[float, ABOVE_0] = 0.02
    logit_cap: Annotated[float | None, ABOVE_0] = None


MODELS: Registry[ModelOptions] = Registry(
    "model", ModelOptions, "router_lab.model.transformer", "models"
)
register("transformer")(ModelOptions)


class Transformer(nn.Module):
    """A language model whose feed-forward layers are configured.

    The initial weights of embedding and attention depend only on the seed and their place, so all
    arms with one seed start from the same weights, whatever their FFN.

    Args:
        vocab_size: V.
        ffn: config node of the FFN slot.
        options: the sizes.
        d_hidden: width of the slot's FFN if its node has none.
        seed: seed of the initial weights.
        token_counts: counts in the training text, for routers that use them.
    """

    def __init__(
        self,
        vocab_size: int,
        ffn: Mapping[str, Any],
        options: ModelOptions,
        d_hidden: int | None = None,
        seed: int = 0,
        token_counts: TokenCounts | None = None,
    ) -> None:
        super().__init__()
        d_model = options.d_model
        self.seq_len = options.seq_len
        self.checkpoint = options.checkpoint
        self.slots = slot_layers(options.ffn_layers, options.n_layers)
        with seeded(seed, "embedding"):
            self.embedding = nn.Embedding(vocab_size, d_model)
            nn.init.normal_(self.embedding.weight, std=options.embedding_std)
        blocks = []
        for layer in range(options.n_layers):
            with seeded(seed, f"attention{layer}"):
                attention = Attention(d_model, options.n_heads, options.seq_len, options.qk_norm)
            with seeded(seed, f"ffn{layer}"):
                node, width = ffn, d_hidden
                if layer not in self.slots:
                    node, width = DENSE, options.d_ffn
                slot = build_ffn(node, d_model, width, token_counts)
                blocks.append(Block(attention, slot, d_model, options.dropout))
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(d_model)
        self.unembedding = None if options.tied else Head(d_model, vocab_size)
        self.logit_cap = options.logit_cap
        if options.zero_outputs:
            for block in blocks:
                for weight in (block.attention.out.weight, *block.ffn.output_weights()):
                    nn.init.zeros_(weight)

    def forward(
        self,
        tokens_BS: Tensor,
        mask_BS: Tensor | None = None,
        step: int = 0,
        noise_B: Tensor | None = None,
    ) -> ModelOutput:
        """Args: tokens_BS: ids, long. mask_BS: True at real tokens; None where all are real.
        noise_B: a random key of each sequence, see RouterContext.

        Raises UserError where a sequence is longer than seq_len."""
        if tokens_BS.shape[1] > self.seq_len:
            raise UserError(
                f"model.seq_len={self.seq_len} is too short for a sequence of {tokens_BS.shape[1]} "
                f"tokens; make it at least as long."
            )
        context = RouterContext.of_batch(tokens_BS, step=step, noise_B=noise_B)
        if mask_BS is not None:
            context = context.select(mask_BS.flatten().nonzero().squeeze(1))
        x_BSD = self.embedding(tokens_BS)
        previous: Routing | None = None
        routings: dict[str, Routing] = {}
        for layer, block in enumerate(self.blocks):
            here = replace(context, layer=layer, previous=previous)
            if self.checkpoint and self.training:
                x_BSD, records = checkpoint(block, x_BSD, mask_BS, here, use_reentrant=False)
            else:
                x_BSD, records = block(x_BSD, mask_BS, here)
            previous = records.get("", previous)
            routings.update({qualified(f"layer{layer}", name): r for name, r in records.items()})
        return ModelOutput(self.head(x_BSD), routings)

    def head(self, x_BSD: Tensor) -> Tensor:
        """Logits [B, S, V]."""
        head = self.unembedding or self.embedding
        logits_BSV = F.linear(self.norm(x_BSD), head.weight)
        if self.logit_cap is not None:
            logits_BSV = self.logit_cap * (logits_BSV / self.logit_cap).tanh()
        return logits_BSV

    def ffns(self) -> dict[str, FFN]:
        """The FFNs of the slot, by layer name."""
        ffns = {f"layer{i}": block.ffn for i, block in enumerate(self.blocks) if i in self.slots}
        return {name: ffn for name, ffn in ffns.items() if isinstance(ffn, FFN)}

    def routers(self) -> dict[str, Router]:
        """Every router, under the name of its records."""
        return {
            qualified(layer, name): router
            for layer, ffn in self.ffns().items()
            for name, router in ffn.routers().items()
        }

    @property
    def lookahead(self) -> Lookahead:
        """Whether the logits of a token depend on later tokens or on other sequences."""
        return furthest(*(ffn.lookahead for ffn in self.ffns().values()))


def slot_layers(ffn_layers: str | int | Sequence[int], n_layers: int) -> list[int]:
    """Indices of the layers that have the FFN slot."""
    if ffn_layers == "all":
        return list(range(n_layers))
    layers: list[Any] = []
    if isinstance(ffn_layers, int) and not isinstance(ffn_layers, bool) and ffn_layers >= 1:
        layers = list(range(ffn_layers - 1, n_layers, ffn_layers))
    elif isinstance(ffn_layers, Sequence) and not isinstance(ffn_layers, str):
        layers = sorted(set(ffn_layers))
    if layers and all(isinstance(i, int) and 0 <= i < n_layers for i in layers):
        return layers
    raise UserError(
        f"model.ffn_layers={ffn_layers} is not possible; it must be all, a number n for every n-th "
        f"layer, or a list of layers from 0 to {n_layers - 1}."
    )


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Random numbers that depend on the seed and a name; the global state is not touched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(crc32(f"{seed}/{name}".encode()))
        yield
