"""Windows of a corpus as batches, by index."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from router_lab.data.corpus import Corpus, Split

Batch = dict[str, Tensor]


def batch_at(split: Split, starts_B: np.ndarray, seq_len: int) -> Batch:
    """The windows of a split that begin at these tokens; see `WindowsDataModule`."""
    index = starts_B[:, None] + np.arange(seq_len + 1)
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
