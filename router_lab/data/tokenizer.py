"""How text becomes tokens: bytes, or byte-pair encoding by a tokenizer.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from router_lab.data.cache import CorpusWriter, SplitName
from router_lab.errors import UserError

Piece = tuple[SplitName, int | None, bytes]  # split, domain, UTF-8 text
BATCH_BYTES = 4 * 2**20  # text encoded at a time: enough for all cores, little memory


class Tokenizer(Protocol):
    """Turns pieces of UTF-8 text into token ids.

    Attributes:
        key: what the cache tells tokenizers apart by.
        vocab_size: V.
        token_bytes: [V], bytes of text that each token stands for, where that is exact; else None.
        special: tokens that are marks rather than text, such as <|endoftext|>.
    """

    key: str
    vocab_size: int
    token_bytes: np.ndarray | None
    special: list[int]

    def encode(self, pieces: Sequence[bytes]) -> list[np.ndarray]: ...


class ByteTokenizer:
    """Every byte is a token."""

    key: str = "bytes"
    vocab_size: int = 256
    token_bytes: np.ndarray | None = None
    special: list[int] = []

    def encode(self, pieces: Sequence[bytes]) -> list[np.ndarray]:
        return [np.frombuffer(piece, np.uint8) for piece in pieces]


class BPETokenizer:
    """A tokenizer.json as `tokenizers` and `transformers` save it; no special tokens are added."""

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise UserError(
                "data.tokenizer is a file, which needs the tokenizers library: "
                "pip install 'router-lab[hub]'."
            ) from error
        if not path.is_file():
            raise UserError(
                f"data.tokenizer is {str(path)!r}, which is no file; give 'bytes' or the path of a "
                "tokenizer.json."
            )
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises no class of its own
            raise UserError(
                f"The tokenizer {path} can't be read ({error}); give a tokenizer.json as the "
                "tokenizers library saves it."
            ) from error
        self.key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self.vocab_size: int = max(self._tokenizer.get_vocab().values()) + 1
        config = json.loads(text)
        self.special = [token["id"] for token in config["added_tokens"] if token["special"]]
        self.token_bytes = _byte_lengths(self._tokenizer.get_vocab(), config)

    def encode(self, pieces: Sequence[bytes]) -> list[np.ndarray]:
        texts = [piece.decode(errors="replace") for piece in pieces]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]


def load_tokenizer(spec: str) -> Tokenizer:
    """`bytes`, or the path of a tokenizer.json. Raises UserError for anything else."""
    return ByteTokenizer() if spec == "bytes" else BPETokenizer(Path(spec).expanduser())


def _byte_lengths(vocab: dict[str, int], config: dict[str, Any]) -> np.ndarray | None:
    """A byte-level BPE writes each byte as one character, so a token's name is as long as its text.

    None for other kinds, and where a normalizer changes the text before it is split.
    """
    if "ByteLevel" not in json.dumps(config["pre_tokenizer"]) or config["normalizer"] is not None:
        return None
    lengths = np.zeros(max(vocab.values()) + 1, np.float32)
    for name, token in vocab.items():
        lengths[token] = len(name)
    for added in config["added_tokens"]:  # these are written as they are
        lengths[added["id"]] = len(added["content"].encode())
    return lengths


def write_text(
    out: CorpusWriter,
    tokenizer: Tokenizer,
    pieces: Iterable[Piece],
    advance: Callable[[float], None],
) -> None:
    """Tokenises pieces of text and appends them in their order."""
    batch: list[Piece] = []
    size = 0

    def flush() -> None:
        tokens = tokenizer.encode([data for _, _, data in batch])
        for (split, domain, data), ids in zip(batch, tokens, strict=True):
            out.append(split, ids, domain=domain, n_bytes=len(data))
        advance(size)

    for piece in pieces:
        batch.append(piece)
        size += len(piece[2])
        if size >= BATCH_BYTES:
            flush()
            batch, size = [], 0
    flush()
