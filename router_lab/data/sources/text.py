"""`data=text data.path=…`: a file, folder or glob of your own UTF-8 text."""

from __future__ import annotations

import codecs
import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

from router_lab.check import Rule
from router_lab.data.cache import CorpusWriter, cached_corpus, stamps
from router_lab.data.corpus import Corpus, CorpusSource
from router_lab.data.tokenizer import Piece, load_tokenizer, write_text
from router_lab.errors import UserError
from router_lab.registry import register

PIECE = 64 * 1024  # bytes of text tokenised together; a piece ends at the end of a line
FILES_TO_SPLIT_BY = 20


class TextFile(NamedTuple):
    path: Path
    domain: str
    size: int


@register("text")
@dataclass(frozen=True)
class Text(CorpusSource):
    """Files in the order of their names. If they lie in several subfolders, each is a domain.

    Validation gets `val_share` of every domain: whole files, picked by a hash of their names, if
    the domain has 20 or more of them, else the end of each file.

    Attributes:
        path: a file, a folder (all files below it, without hidden ones) or a glob.
        val_path: separate validation text; then all of `path` is for training.
        val_share: fraction of the bytes of `path` that is for validation.
        tokenizer: `bytes`, or the path of a tokenizer.json.
    """

    path: str | None = None
    val_path: str | None = None
    val_share: Annotated[float, Rule("above 0 and below 1", lambda v: 0 < v < 1)] = 0.1
    tokenizer: str = "bytes"

    def corpus(self) -> Corpus:
        files = find_files(self.path, "data.path")
        val_files = find_files(self.val_path, "data.val_path") if self.val_path else []
        tokenizer = load_tokenizer(self.tokenizer)
        domains = sorted({file.domain for file in files + val_files})

        def pieces() -> Iterator[Piece]:
            if val_files:
                val_start = {file.path: 0 for file in val_files}
            else:
                val_start = split_files(files, self.val_share)
            for file in files + val_files:
                domain = domains.index(file.domain) if len(domains) > 1 else None
                with open(file.path, "rb") as stream:
                    middle = val_start.get(file.path, file.size)
                    if middle > 0:
                        middle = next_break(stream, middle, file.size)
                    for piece in read_pieces(stream, 0, middle, file.size):
                        yield "train", domain, piece
                    for piece in read_pieces(stream, middle, file.size, file.size):
                        yield "val", domain, piece

        def write(out: CorpusWriter) -> None:
            for file in files + val_files:
                refuse_binary(file.path)
            write_text(out, tokenizer, pieces())

        key = [
            tokenizer.key,
            self.val_share,
            [[file.domain for file in files], [file.domain for file in val_files]],
            stamps(file.path for file in files),
            stamps(file.path for file in val_files),
        ]
        return cached_corpus(
            "text",
            key,
            write,
            vocab_size=tokenizer.vocab_size,
            domains=domains if len(domains) > 1 else (),
            token_bytes=tokenizer.token_bytes,
            title=f"text: tokenising {self.path}",
            n_bytes=sum(file.size for file in files + val_files),
        )


def find_files(path: str | None, option: str) -> list[TextFile]:
    """The files with text below a file, folder or glob, in the order of their names.

    A file's domain is the first folder below `path` (below the part of a glob without wildcards)
    that it is in. Raises UserError if there is no text.
    """
    if not path:
        raise UserError(
            f"data=text needs {option}: a file, a folder or a glob, such as books/*.txt."
        )
    given = Path(path).expanduser()
    if given.is_file():
        root, pattern = given.parent, glob.escape(str(given))
    elif given.is_dir():
        root, pattern = given, f"{glob.escape(str(given))}/**"  # without hidden files
    elif glob.has_magic(path):
        root = next(folder for folder in given.parents if not glob.has_magic(str(folder)))
        pattern = str(given)
    else:
        raise UserError(
            f"{option} is {path!r}, which does not exist; give a file, a folder or a glob."
        )
    files = []
    for file in sorted(map(Path, glob.glob(pattern, recursive=True))):
        if file.is_file() and (size := file.stat().st_size):
            inner = file.relative_to(root).parts
            domain = inner[0] if len(inner) > 1 else root.absolute().name
            files.append(TextFile(file, domain, size))
    if not files:
        raise UserError(f"{option} is {path!r}, where there is no file with text in it.")
    return files


def split_files(files: list[TextFile], share: float) -> dict[Path, int]:
    """The byte at which the validation text of a file begins: 0 if all of it is validation text;
    a file without any is left out."""
    val_start: dict[Path, int] = {}
    for domain in sorted({file.domain for file in files}):
        members = [file for file in files if file.domain == domain]
        if len(members) < FILES_TO_SPLIT_BY:
            val_start |= {file.path: int(file.size * (1 - share)) for file in members}
            continue
        room = max(share * sum(file.size for file in members), min(file.size for file in members))
        for file in sorted(members, key=_name_hash):
            if file.size <= room:
                room -= file.size
                val_start[file.path] = 0
    return val_start


def _name_hash(file: TextFile) -> bytes:
    return hashlib.blake2b(file.path.name.encode(errors="surrogateescape")).digest()


def refuse_binary(path: Path) -> None:
    """Raises UserError if the first 64 KiB hold a zero byte or are not UTF-8."""
    with open(path, "rb") as stream:
        head = stream.read(PIECE)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # a character may be cut off
    except UnicodeDecodeError:
        head = b"\0"
    if b"\0" in head:
        raise UserError(
            f"{path} is binary or not in UTF-8, and data.path must hold only text; leave the file "
            "out with a glob such as 'folder/**/*.txt'."
        )


def read_pieces(stream: BinaryIO, start: int, stop: int, size: int) -> Iterator[bytes]:
    """The bytes from start to stop in pieces of about PIECE."""
    while start < stop:
        end = min(next_break(stream, start + PIECE, size), stop)
        stream.seek(start)
        yield stream.read(end - start)
        start = end


def next_break(stream: BinaryIO, position: int, size: int) -> int:
    """The first end of a line after `position`, or of a character if no line ends nearby."""
    stream.seek(position)
    ahead = stream.readline(PIECE)
    if ahead.endswith(b"\n") and position + len(ahead) < size:
        return position + len(ahead)
    inside = next((i for i, byte in enumerate(ahead[:4]) if byte & 0xC0 != 0x80), len(ahead[:4]))
    return min(position + inside, size)
