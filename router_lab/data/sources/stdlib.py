"""`data=stdlib`: the text of Python's own standard library, which needs no download.

About 12 MB. Every token is labelled as code, docstring, comment or another string. Versions of
Python differ in their text, and so in the fingerprint.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from router_lab.data.cache import CorpusWriter, SplitName, cached_corpus, stamps
from router_lab.data.corpus import Corpus, CorpusSource
from router_lab.errors import UserError
from router_lab.registry import register

DOMAINS = ("code", "docstring", "comment", "string")
CODE, DOCSTRING, COMMENT, STRING = range(4)
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
OF_THIS_MACHINE = ("_sysconfigdata", "sitecustomize", "usercustomize")
VAL_SHARE = 0.08


@register("stdlib")
@dataclass(frozen=True)
class Stdlib(CorpusSource):
    """Bytes as tokens; 8% of the files, chosen by a hash of their names, are for validation."""

    def corpus(self) -> Corpus:
        root = Path(sysconfig.get_paths()["stdlib"])
        files = sorted(source_files(root))
        if not files:
            raise UserError(
                f"Python's standard library has no .py files in {root}; use data=text with a path."
            )

        def write(out: CorpusWriter) -> None:
            for path in files:
                text = read_source(path)
                tokens = np.frombuffer(text.encode(), np.uint8)
                split: SplitName = "val" if in_validation(path.relative_to(root)) else "train"
                out.append(split, tokens, domain=label_source(text))

        return cached_corpus(
            "stdlib",
            [sys.version, stamps(files)],
            write,
            vocab_size=256,
            domains=DOMAINS,
            title="stdlib: reading Python's own text",
            n_bytes=sum(path.stat().st_size for path in files),
        )


def source_files(root: Path) -> Iterator[Path]:
    """The library's modules, without tests, installed packages and machine-specific files."""
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in SKIPPED and "config-" not in name]
        for name in names:
            if name.endswith(".py") and not name.startswith(OF_THIS_MACHINE):
                yield Path(folder, name)


def in_validation(name: Path) -> bool:
    """By a hash of the relative name, so that a file keeps its split when others come or go."""
    digest = hashlib.blake2b(name.as_posix().encode(), digest_size=8).digest()
    return int.from_bytes(digest) < VAL_SHARE * 2**64


def read_source(path: Path) -> str:
    """A module's text in the encoding that it declares, with its line ends."""
    data = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return data.decode(encoding, errors="replace")


def label_source(text: str) -> np.ndarray:
    """The kind of each byte of a module: [N] uint8, an index into DOMAINS.

    Python's own tokenizer decides. A docstring is any string that is a statement of its own. Code
    inside a formatted string counts as string. What follows a syntax error is code.
    """
    lines = text.split("\n")
    starts = np.cumsum([0] + [len(line.encode()) + 1 for line in lines])
    labels = np.zeros(starts[-1] - 1, np.uint8)

    def offset(position: tuple[int, int]) -> int:
        row, column = position
        line = lines[row - 1]
        return int(starts[row - 1]) + (column if line.isascii() else len(line[:column].encode()))

    strings: list[slice] = []  # of the present statement
    only_strings = True
    opened: list[int] = []  # starts of the formatted strings that are still open
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            name = tokenize.tok_name[token.type]
            if name == "COMMENT":
                labels[offset(token.start) : offset(token.end)] = COMMENT
            elif name in ("FSTRING_START", "TSTRING_START"):
                opened.append(offset(token.start))
            elif name in ("FSTRING_END", "TSTRING_END"):
                labels[opened.pop() : offset(token.end)] = STRING
                only_strings = only_strings and bool(opened)
            elif name == "STRING":
                span = slice(offset(token.start), offset(token.end))
                labels[span] = STRING
                strings.append(span)
            elif name == "NEWLINE":
                if only_strings:
                    for span in strings:
                        labels[span] = DOCSTRING
                strings, only_strings = [], True
            elif name not in ("NL", "INDENT", "DEDENT", "ENDMARKER"):
                only_strings = False
    except (tokenize.TokenError, SyntaxError):
        pass
    return labels
