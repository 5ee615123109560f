"""How text becomes tokens: bytes, or byte-pair encoding by a tokenizer.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from router_lab.data.cache import CorpusWriter, SplitName
from router_lab.errors import UserError

Piece = tuple[SplitName, int | None, bytes]  # split, domain, UTF-8 text
BATCH_BYTES = 4 * 2**20  # text encoded at a time: enough for all cores, little memory


@dataclass(frozen=True)
class Tokenizer:
    """Turns text into token ids.

    Attributes:
        encode: the token ids of each piece of UTF-8 text.
        key: identifies the tokenizer in the cache.
        vocab_size: V.
        token_bytes: [V], bytes of text that each token stands for; None if that is not exact.
        special: tokens that are marks rather than text, such as <|endoftext|>.
    """

    encode: Callable[[list[bytes]], list[np.ndarray]]
    key: str
    vocab_size: int
    token_bytes: np.ndarray | None = None
    special: tuple[int, ...] = ()


def load_tokenizer(spec: str) -> Tokenizer:
    """`bytes` (every byte is a token), or the path of a tokenizer.json.

    A tokenizer.json is what `tokenizers` and `transformers` save. No special tokens are added.
    Raises UserError if it can't be read.
    """
    if spec == "bytes":
        return Tokenizer(lambda pieces: [np.frombuffer(p, np.uint8) for p in pieces], spec, 256)
    path = Path(spec).expanduser()
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            "data.tokenizer is a file, which needs the tokenizers library: "
            "pip install 'router-lab[hub]'."
        ) from error
    if not path.is_file():
        raise UserError(
            f"data.tokenizer is {str(path)!r}, which is not a file; give 'bytes' or the path of a "
            "tokenizer.json."
        )
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises no class of its own
        raise UserError(
            f"The tokenizer {path} can't be read ({error}); give a tokenizer.json as the "
            "tokenizers library saves it."
        ) from error
    config = json.loads(text)
    vocab = library.get_vocab()

    def encode(pieces: list[bytes]) -> list[np.ndarray]:
        texts = [piece.decode(errors="replace") for piece in pieces]
        encodings = library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    return Tokenizer(
        encode,
        key=hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
        vocab_size=max(vocab.values()) + 1,
        token_bytes=_byte_lengths(vocab, config),
        special=tuple(token["id"] for token in config["added_tokens"] if token["special"]),
    )


def _byte_lengths(vocab: dict[str, int], config: dict[str, Any]) -> np.ndarray | None:
    """A byte-level BPE writes each byte as one character, so a token's name is as long as its text.

    None for other kinds, and if a normalizer changes the text before it is split.
    """
    if "ByteLevel" not in json.dumps(config["pre_tokenizer"]) or config["normalizer"] is not None:
        return None
    lengths = np.zeros(max(vocab.values()) + 1, np.float32)
    for name, token in vocab.items():
        lengths[token] = len(name)
    for added in config["added_tokens"]:  # these are written as they are
        lengths[added["id"]] = len(added["content"].encode())
    return lengths


def write_text(out: CorpusWriter, tokenizer: Tokenizer, pieces: Iterable[Piece]) -> None:
    """Tokenises pieces of text and appends them in their order."""
    batch: list[Piece] = []

    def flush() -> None:
        tokens = tokenizer.encode([text for _, _, text in batch])
        for (split, domain, text), ids in zip(batch, tokens, strict=True):
            out.append(split, ids, domain=domain, n_bytes=len(text))
        batch.clear()

    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[2])
        if size >= BATCH_BYTES:
            flush()
            size = 0
    flush()
