"""What many tests need: a context, a layer, a tiny run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from router_lab.commands.main import main
from router_lab.model.ffn import FFN, build_ffn
from router_lab.routing import RouterContext, Routing

L = TypeVar("L", bound=FFN)

MODEL = ("model=nano", "model.d_model=32", "model.d_ffn=64", "model.seq_len=32")
LANGUAGES = ("data=languages", "data.n_tokens=20000", "data.alphabet=16")
TRAINER = ("trainer.batch_size=4", "trainer.validations=1", "trainer.val_windows=8")


def context_of(B: int, S: int, **fields: Any) -> RouterContext:
    """Of B full sequences of S tokens, all of id 0. `fields`: others of the context."""
    return RouterContext.of_batch(torch.zeros(B, S, dtype=torch.long), **fields)


def build_layer(kind: type[L], d_model: int, d_hidden: int, **config: Any) -> L:
    """A layer by its configuration, `name` included, with the type that the test expects."""
    layer = build_ffn(config, d_model, d_hidden)
    assert isinstance(layer, kind)
    return layer


def tiny(*overrides: str) -> list[str]:
    """Options of a run of seconds; later ones win."""
    return [*MODEL, *LANGUAGES, *TRAINER, *overrides]


def train(folder: Path, *overrides: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The result and the weights of a tiny run, the only one in the folder."""
    main(["train", f"out={folder}", *tiny(*overrides)])
    (path,) = folder.glob("*/*/result.json")
    return json.loads(path.read_text()), torch.load(path.parent / "final.ckpt")


def routed(logits_TE: Tensor, k: int = 1, n_sequences: int = 1) -> Routing:
    """Softmax top-k, not renormalised, over sequences of equal length."""
    T, _ = logits_TE.shape
    context = context_of(n_sequences, T // n_sequences)
    probs_TE = logits_TE.softmax(dim=-1)
    index_TK = logits_TE.topk(k, dim=-1).indices
    weight_TK = probs_TE.gather(1, index_TK)
    return Routing.from_topk(
        index_TK, weight_TK, logits_TE=logits_TE, probs_TE=probs_TE, context=context
    )


def collapsed(E: int, T: int, sure: float = 1e4) -> Tensor:
    return sure * torch.eye(E)[torch.zeros(T, dtype=torch.long)]
