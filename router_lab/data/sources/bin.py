"""`data=bin data.path=…`: files of tokens in nanoGPT's layout (train.bin, val.bin)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from router_lab.data.cache import cached, progress_bar, stamps
from router_lab.data.corpus import Corpus, CorpusSource, Split, map_file
from router_lab.data.tokenizer import Tokenizer, load_tokenizer
from router_lab.errors import UserError
from router_lab.registry import register

DTYPE = np.dtype("<u2")
CHUNK = 2**24  # tokens counted at a time


@register("bin")
@dataclass(frozen=True)
class Bin(CorpusSource):
    """A folder with train.bin and val.bin: little-endian uint16 tokens, read in place.

    Attributes:
        path: the folder.
        vocab_size: V; null: the largest token + 1.
        tokenizer: path of the tokenizer.json that made the tokens, for the bytes of text that each
            stands for; null: unknown, and quality is in bits per token.
    """

    path: str | None = None
    vocab_size: int | None = None
    tokenizer: str | None = None

    def corpus(self) -> Corpus:
        if not self.path:
            raise UserError("data=bin needs data.path: a folder with train.bin and val.bin.")
        folder = Path(self.path).expanduser()
        files = [folder / "train.bin", folder / "val.bin"]
        for file in files:
            if not file.is_file():
                raise UserError(f"data.path is {self.path!r}, where there is no {file.name}.")
            if file.stat().st_size % DTYPE.itemsize or not file.stat().st_size:
                raise UserError(f"{file} must be uint16 tokens; its size is {file.stat().st_size}.")

        scanned = cached("bin", stamps(files), partial(scan, files))
        counts_2V = np.load(scanned / "counts.npy")
        largest = int(counts_2V.any(0).nonzero()[0][-1])
        tokenizer = load_tokenizer(self.tokenizer) if self.tokenizer else None
        vocab_size = self.vocab_size or max(largest + 1, tokenizer.vocab_size if tokenizer else 0)
        if largest >= vocab_size:
            raise UserError(
                f"{self.path} holds the token {largest}, so data.vocab_size must be "
                f"{largest + 1} or more; it is {vocab_size}."
            )
        token_bytes = self._token_bytes(tokenizer, vocab_size) if tokenizer else None
        lengths = np.ones(vocab_size) if token_bytes is None else token_bytes
        n_bytes = counts_2V[:, :vocab_size] @ lengths[: counts_2V.shape[1]]
        train, val = (
            Split(map_file(file, DTYPE), int(n)) for file, n in zip(files, n_bytes, strict=True)
        )
        fingerprint = (scanned / "fingerprint").read_text()
        unit: Literal["byte", "token"] = "token" if tokenizer is None else "byte"
        return Corpus(
            "bin", train, val, vocab_size, fingerprint, token_bytes=token_bytes, unit=unit
        )

    def _token_bytes(self, tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
        if tokenizer.token_bytes is None:
            raise UserError(
                f"data.tokenizer is {self.tokenizer!r}, which does not say how many bytes its "
                "tokens stand for; give a byte-level BPE, or null."
            )
        lengths = tokenizer.token_bytes.copy()
        lengths[list(tokenizer.special)] = 0  # marks between documents are not text
        return np.pad(lengths, (0, max(0, vocab_size - len(lengths))))[:vocab_size]


def scan(files: list[Path], folder: Path) -> None:
    """Writes how often each token occurs, counts.npy [files, 65536], and a hash of all tokens."""
    counts = np.zeros((len(files), 2**16), np.int64)
    digests = []
    with progress_bar("bin: counting tokens", sum(file.stat().st_size for file in files)) as bar:
        for count_V, file in zip(counts, files, strict=True):
            digest = hashlib.blake2b(digest_size=16)
            tokens = np.memmap(file, DTYPE, mode="r")
            for start in range(0, len(tokens), CHUNK):
                chunk = np.asarray(tokens[start : start + CHUNK])
                count_V += np.bincount(chunk, minlength=2**16)
                digest.update(chunk.tobytes())
                bar.update(chunk.nbytes)
            digests.append(digest.hexdigest())
    np.save(folder / "counts.npy", counts)
    combined = hashlib.blake2b(" ".join(digests).encode(), digest_size=16)
    (folder / "fingerprint").write_text(combined.hexdigest())
