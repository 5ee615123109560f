"""What every data source makes: tokens of a training and a validation split, memory-mapped.

numpy only, so that looking at data does not import torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from router_lab.errors import UserError


@dataclass(frozen=True)
class Split:
    """The training or the validation part of a corpus: N tokens.

    Attributes:
        tokens: [N] uint8, uint16 or uint32; documents follow each other without a mark.
        n_bytes: how many bytes of text the N tokens stand for.
        domain: [N] uint16, the kind of text, an index into `Corpus.domains`; None without labels.
        floor: [N] float32, nats: −log p of the token under the Bayes-optimal predictor, given the
            tokens before it in its window; None if it is unknown.
    """

    tokens: np.ndarray
    n_bytes: int
    domain: np.ndarray | None = None
    floor: np.ndarray | None = None


class _MappedFile(np.memmap[Any, Any]):
    """A whole file as an array. Pickled by its path: a worker process opens it again."""

    def __reduce__(self) -> Any:
        whole = self.filename and self.nbytes == Path(self.filename).stat().st_size
        return (map_file, (self.filename, self.dtype)) if whole else super().__reduce__()


def map_file(path: Path, dtype: np.typing.DTypeLike) -> np.ndarray:
    """A file as a memory-mapped, read-only array."""
    return _MappedFile(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


@dataclass(frozen=True, repr=False)
class Corpus:
    """A tokenised text with its vocabulary.

    Attributes:
        name: the source's name.
        fingerprint: hex, a hash of the tokens of both splits: equal where the data are.
        domains: names of the labels in `Split.domain`; empty without labels.
        token_bytes: [V] float32, bytes of text that each token stands for; None: one byte each.
        window: S + 1 if the corpus consists of independent sequences of that many tokens, each of
            which is a window; None for running text.
        unit: whether quality is in bits per byte, or per token because bytes are unknown.
    """

    name: str
    train: Split
    val: Split
    vocab_size: int
    fingerprint: str
    domains: tuple[str, ...] = ()
    token_bytes: np.ndarray | None = None
    window: int | None = None
    unit: Literal["byte", "token"] = "byte"

    def __repr__(self) -> str:
        sizes = f"{len(self.train.tokens):,} training tokens, {len(self.val.tokens):,} validation"
        return f"Corpus({self.name}: {sizes}, vocabulary {self.vocab_size:,})"

    def token_counts(self) -> list[int]:
        """How often each token of the vocabulary occurs in the training split [V]."""
        counts: list[int] = np.bincount(self.train.tokens, minlength=self.vocab_size).tolist()
        return counts

    def check_window(self, seq_len: int) -> None:
        """Raises UserError where a split is shorter than one window of seq_len + 1 tokens."""
        if self.window is not None and self.window != seq_len + 1:
            raise UserError(
                f"The data {self.name} are sequences of {self.window} tokens; model.seq_len must "
                f"be {self.window - 1}, it is {seq_len}."
            )
        for name, split in (("training", self.train), ("validation", self.val)):
            if len(split.tokens) < seq_len + 1:
                raise UserError(
                    f"The {name} text of data={self.name} has {len(split.tokens):,} tokens, less "
                    f"than one window of {seq_len + 1}; give more text or a smaller model.seq_len."
                )


class CorpusSource(ABC):
    """Where a corpus comes from: a dataclass whose fields are its options.

    A source with a field `seq_len` is given the model's sequence length; it is not an option.
    """

    @abstractmethod
    def corpus(self) -> Corpus:
        """Makes the corpus, or opens it from the cache."""
