"""The LightningDataModule: batches of windows of a corpus.

A training window is a pure function of (seed, its index in the run). So arms of one seed see the
same windows in the same order for any batch size, accumulation and number of ranks, and a resumed
run sees what it would have seen.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from router_lab.data.corpus import Corpus
from router_lab.data.windows import Batch, batch_at, random_words, spread_windows


class WindowsDataModule(LightningDataModule):
    """Windows of S + 1 tokens: the first S are the input, the last S are the targets.

    A batch is a dict with
        tokens  [B, S + 1] int64
        domain  [B, S] int64: of the input token, which is the one that is routed; if labelled
        floor   [B, S] float32, nats: Bayes-optimal −log p of the target; if known
        noise   [B] int64: 32 random bits for each training window, from its seed and index

    Training windows are drawn with replacement from anywhere in the text, without end. Validation
    windows are fixed, evenly spread and disjoint, the same for every arm and seed. So is the size
    of validation batches, as a capacity limit is shared by the tokens of a batch.

    Under DDP with R ranks, rank r trains on batches r, r + R, … of the run (those that a single
    rank sees if it accumulates over R), and validates on every R-th batch.

    Args:
        seq_len: S.
        batch_size: B, windows in a training batch of one rank.
        seed: of the training windows.
        val_windows: validation windows, at most.
        val_batch: windows in a validation batch.
        workers: processes that make batches; 0: this one, which is fast enough for memory maps.
    """

    def __init__(
        self,
        corpus: Corpus,
        seq_len: int,
        batch_size: int,
        seed: int = 0,
        val_windows: int = 64,
        val_batch: int = 8,
        workers: int = 0,
    ) -> None:
        super().__init__()
        corpus.check_window(seq_len)
        self.corpus = corpus
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.seed = seed
        self.val_starts = spread_windows(corpus, seq_len, val_windows)
        self.val_size = val_batch
        self.workers = workers
        self.trained = 0
        """Batches that this rank has trained on, according to the checkpoint."""

    def train_batch(self, index: int) -> Batch:
        """Windows index · B … index · B + B − 1 of the seed, for any B."""
        train, between = self.corpus.train, self.corpus.window or 1
        n_starts = (len(train.tokens) - self.seq_len - 1) // between + 1
        draws_B = random_words(self.seed, index * self.batch_size, self.batch_size)
        starts_B = (draws_B % np.uint64(n_starts)).astype(np.int64) * between
        noise_B = (draws_B >> np.uint64(32)).astype(np.int64)
        return batch_at(train, starts_B, self.seq_len) | {"noise": torch.from_numpy(noise_B)}

    def val_batch(self, index: int) -> Batch:
        starts_B = self.val_starts[index * self.val_size :][: self.val_size]
        return batch_at(self.corpus.val, starts_B, self.seq_len)

    def train_dataloader(self) -> DataLoader[Any]:
        rank, ranks = self._rank()
        indices = itertools.count(rank + self.trained * ranks, ranks)
        return self._loader(self.train_batch, indices)

    def val_dataloader(self) -> DataLoader[Any]:
        rank, ranks = self._rank()
        n_batches = -(-len(self.val_starts) // self.val_size)
        return self._loader(self.val_batch, range(rank, n_batches, ranks))

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _loader(self, make: Callable[[Any], Batch], indices: Iterable[int]) -> DataLoader[Any]:
        return DataLoader(
            range(sys.maxsize),  # type: ignore[arg-type] # item i is i; make turns it into batch i
            batch_size=None,
            sampler=indices,
            collate_fn=make,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
        )

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint. A batch counts once the weights have been updated with it."""
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        return {"trained": progress.total.processed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.trained = state_dict["trained"]
