"""A tiny dense model on two languages: it comes close to the floor and never falls below it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from router_lab.data import load_corpus
from router_lab.data.module import WindowsDataModule
from router_lab.data.windows import Batch
from router_lab.model.ffn import DENSE
from router_lab.model.transformer import ModelOptions, Transformer

STEPS = 250


def nats(model: Transformer, batch: Batch) -> torch.Tensor:
    """−log p of each target: [B, S]."""
    tokens = batch["tokens"]
    logits = model(tokens[:, :-1]).logits_BSV
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


def test_a_tiny_model_comes_close_to_the_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUTER_LAB_CACHE", str(tmp_path))
    config = {"name": "languages", "n_languages": 2, "alphabet": 8, "n_tokens": 1_000_000}
    corpus = load_corpus(config, seq_len=32)
    windows = WindowsDataModule(corpus, seq_len=32, batch_size=32, seed=0, val_windows=512)
    model = Transformer(
        8, DENSE, ModelOptions(d_model=32, n_layers=2, n_heads=2, seq_len=32), d_hidden=64
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(step / 20, math.cos(step / STEPS * 1.57))
        optimizer.zero_grad()
        nats(model, windows.train_batch(step)).mean().backward()
        optimizer.step()

    batches = list(windows.val_dataloader())
    with torch.no_grad():
        excess = torch.cat([(nats(model, batch) - batch["floor"]).mean(1) for batch in batches])
    error = excess.std() / len(excess) ** 0.5
    assert excess.mean() > -3 * error

    # The best that knows the last token alone, counted on the very text it is tested on.
    tokens = torch.cat([batch["tokens"] for batch in batches]).numpy()
    floor = torch.cat([batch["floor"] for batch in batches]).mean().item()
    pair = tokens[:, :-1].ravel(), tokens[:, 1:].ravel()
    counts = np.zeros((8, 8))
    np.add.at(counts, pair, 1)
    bigram = -np.log((counts / counts.sum(1, keepdims=True))[pair]).mean() - floor
    assert bigram > 0.2  # so there is much to gain from telling the languages apart,
    assert excess.mean() < bigram / 4  # and the model does
