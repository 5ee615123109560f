"""Windows of a corpus as batches, by index."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from router_lab.data.corpus import Corpus, Split

Batch = dict[str, Tensor]


class Windows:
    """Training and validation batches by index, without any state; see `WindowsDataModule`."""

    def __init__(
        self,
        corpus: Corpus,
        seq_len: int,
        batch_size: int,
        seed: int,
        val_windows: int,
        val_batch: int = 8,
    ) -> None:
        self.corpus = corpus
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.seed = seed
        self.val_starts = spread_windows(corpus, seq_len, val_windows)
        self.val_size = val_batch
        self.n_val_batches = -(-len(self.val_starts) // val_batch)

    def train_batch(self, index: int) -> Batch:
        """Windows index · B … index · B + B − 1 of the seed, whatever B is."""
        first = index * self.batch_size
        between = self.corpus.window or 1
        n_starts = (len(self.corpus.train.tokens) - self.seq_len - 1) // between + 1
        draws_B = random_words(self.seed, first, self.batch_size)
        starts_B = (draws_B % np.uint64(n_starts)).astype(np.int64) * between
        noise_B = (draws_B >> np.uint64(32)).astype(np.int64)
        return {**self._cut(self.corpus.train, starts_B), "noise": torch.from_numpy(noise_B)}

    def val_batch(self, index: int) -> Batch:
        starts = self.val_starts[index * self.val_size :][: self.val_size]
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
    """array[index] as a plain array: indexing np.memmap makes another memmap, which is slow."""
    plain: np.ndarray = np.asarray(array)[index]
    return plain


def random_words(seed: int, first: int, n: int) -> np.ndarray:
    """Words first … first + n − 1 of the seed's random stream [n], uint64.

    Philox is a counter in blocks of four words, so every part of its stream costs the same.
    """
    skipped = first % 4
    return np.random.Philox(key=seed, counter=first // 4).random_raw(skipped + n)[skipped:]


def spread_windows(corpus: Corpus, seq_len: int, n: int) -> np.ndarray:
    """Starts of n evenly spread validation windows, or of as many as fit: [n].

    No token is a target twice; in running text a window may begin with the last target of another.
    """
    if corpus.window is not None:
        between, fit = corpus.window, len(corpus.val.tokens) // corpus.window
    else:
        between, fit = seq_len, (len(corpus.val.tokens) - 1) // seq_len
    n = min(n, fit)
    return np.arange(n) * fit // n * between
