"""Windows of a corpus as batches, by their index and without any state."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from router_lab.data.corpus import Corpus, Split

Batch = dict[str, Tensor]


class Windows:
    """Batches by their index, without any state."""

    def __init__(
        self, corpus: Corpus, seq_len: int, batch_size: int, seed: int, val_windows: int
    ) -> None:
        self.corpus = corpus
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.seed = seed
        self.val_starts = spread_windows(corpus, seq_len, val_windows)
        self.n_val_batches = -(-len(self.val_starts) // batch_size)

    def train_batch(self, index: int) -> Batch:
        rng = np.random.default_rng([self.seed, index])
        between = self.corpus.window or 1
        n_starts = (len(self.corpus.train.tokens) - self.seq_len - 1) // between + 1
        starts = rng.integers(0, n_starts, self.batch_size) * between
        return self._cut(self.corpus.train, starts)

    def val_batch(self, index: int) -> Batch:
        starts = self.val_starts[index * self.batch_size :][: self.batch_size]
        return self._cut(self.corpus.val, starts)

    def _cut(self, split: Split, starts: np.ndarray) -> Batch:
        index = starts[:, None] + np.arange(self.seq_len + 1)
        batch = {"tokens": torch.from_numpy(_take(split.tokens, index).astype(np.int64))}
        if split.domain is not None:
            batch["domain"] = torch.from_numpy(_take(split.domain, index[:, :-1]).astype(np.int64))
        if split.floor is not None:
            batch["floor"] = torch.from_numpy(_take(split.floor, index[:, 1:]))
        return batch


def _take(array: np.ndarray, index: np.ndarray) -> np.ndarray:
    """array[index] as a plain array: an index into np.memmap gives another memmap, slowly."""
    return np.asarray(array)[index]


def spread_windows(corpus: Corpus, seq_len: int, n: int) -> np.ndarray:
    """Where n validation windows begin, or as many as fit, evenly spread: [n].

    No token is a target twice; in running text a window may begin with the last target of another.
    """
    if corpus.window is not None:
        between, fit = corpus.window, len(corpus.val.tokens) // corpus.window
    else:
        between, fit = seq_len, (len(corpus.val.tokens) - 1) // seq_len
    n = min(n, fit)
    return np.arange(n) * fit // n * between
