"""`data=hub data.path=…`: a data set of the Hugging Face hub, or files that its library reads."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from router_lab.data.cache import CorpusWriter, SplitName, cached_corpus, stamps
from router_lab.data.corpus import Corpus, CorpusSource
from router_lab.data.tokenizer import Piece, load_tokenizer, write_text
from router_lab.errors import UserError
from router_lab.registry import register

EVERY_VAL = 20  # without val_split, every 20th document is for validation
BETWEEN = b"\n\n"  # follows each document


@register("hub")
@dataclass(frozen=True)
class Hub(CorpusSource):
    """Documents in the order of the data set, up to a size, tokenised once.

    Attributes:
        path: name of a data set on the hub, a folder, or a kind of file (json, csv, parquet, text).
        files: the files if path is a kind of file: a path, glob or list.
        subset: configuration of the data set, if it has several.
        revision: of the data set: a branch, tag or commit.
        split: for training, and for validation too if val_split is null.
        val_split: for validation.
        field: the column with the text.
        domain_field: the column with the kind of text, if any.
        max_mb: text to take from each split, in 10^6 bytes; null: all of it.
        streaming: read while downloading, instead of downloading the data set first.
        tokenizer: `bytes`, or the path of a tokenizer.json.
    """

    path: str | None = None
    files: str | list[str] | None = None
    subset: str | None = None
    revision: str | None = None
    split: str = "train"
    val_split: str | None = None
    field: str = "text"
    domain_field: str | None = None
    max_mb: float | None = 100.0
    streaming: bool = True
    tokenizer: str = "bytes"

    def corpus(self) -> Corpus:
        if not self.path:
            raise UserError(
                "data=hub needs data.path: a data set's name, a folder, or a kind of file such as "
                "json with data.files."
            )
        tokenizer = load_tokenizer(self.tokenizer)

        sides: list[tuple[str, SplitName]] = [(self.split, "train")]
        if self.val_split:
            sides.append((self.val_split, "val"))

        def write(out: CorpusWriter) -> None:
            domains: dict[str, int] = {}
            pieces = chain.from_iterable(self._pieces(*side, domains) for side in sides)
            write_text(out, tokenizer, pieces)
            out.domains = list(domains)

        options = asdict(self) | {"tokenizer": tokenizer.key}
        return cached_corpus(
            "hub",
            [options, stamps(self._local_files())],
            write,
            vocab_size=tokenizer.vocab_size,
            token_bytes=tokenizer.token_bytes,
            title=f"hub: tokenising {self.path}",
            n_bytes=None if self.max_mb is None else self.max_mb * 1e6 * len(sides),
        )

    def _pieces(self, split: str, side: SplitName, domains: dict[str, int]) -> Iterator[Piece]:
        """Documents of one split; adds new domains to `domains`, by number."""
        left = float("inf") if self.max_mb is None else self.max_mb * 1e6
        for number, row in enumerate(self._rows(split)):
            for column in filter(None, (self.domain_field, self.field)):
                if column not in row:
                    columns = ", ".join(row)
                    raise UserError(
                        f"{self.path} has no column {column!r}; its columns are {columns}."
                    )
            domain = None
            if self.domain_field is not None:
                domain = domains.setdefault(str(row[self.domain_field]), len(domains))
            if not isinstance(row[self.field], str):
                raise UserError(f"The column {self.field!r} of {self.path} holds no text.")
            text = row[self.field].encode(errors="replace") + BETWEEN
            held_out = not self.val_split and number % EVERY_VAL == EVERY_VAL - 1
            yield "val" if held_out else side, domain, text
            left -= len(text)
            if left <= 0:
                return

    def _rows(self, split: str) -> Iterator[Mapping[str, Any]]:
        try:
            import datasets
        except ImportError as error:
            raise UserError(
                "data=hub needs the datasets library: pip install 'router-lab[hub]'."
            ) from error
        try:
            yield from datasets.load_dataset(
                self.path,
                self.subset,
                data_files=self.files,
                split=split,
                revision=self.revision,
                streaming=self.streaming,
            )
        except Exception as error:  # whatever the library, the network or a data set's host raises
            lines = str(error).splitlines() or [""]
            raise UserError(
                f"data=hub can't read the split {split!r} of {self.path} "
                f"({type(error).__name__}: {lines[0]})."
            ) from error

    def _local_files(self) -> list[Path]:
        """The files of the data on this machine, so that a changed file is read again."""
        patterns = [self.files] if isinstance(self.files, str) else self.files or []
        paths = [Path(name) for one in patterns for name in glob.glob(one, recursive=True)]
        paths += Path(str(self.path)).rglob("*")
        return sorted(path for path in paths if path.is_file())
