"""The cache: a corpus is made once, by one process, and then read memory-mapped.

The folder is `$ROUTER_LAB_CACHE`, or `~/.cache/router_lab`; it can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from router_lab.data.corpus import Corpus, Split, map_file
from router_lab.errors import UserError

LAYOUT = 2  # of the files below: increase it when it changes, so that old folders are not read
META = "corpus.json"
SplitName = Literal["train", "val"]


def cached(name: str, key: object, build: Callable[[Path], None]) -> Path:
    """The folder that `build` filled for this name and key; it is filled now if it is missing.

    Of several processes that ask at the same time one builds and the others wait. The folder
    appears whole or not at all. Raises UserError if the cache can't be written.

    Args:
        key: anything JSON can write that says what the content depends on.
        build: fills the empty folder that it is given.
    """
    digest = hashlib.blake2b(json.dumps([LAYOUT, key]).encode(), digest_size=8).hexdigest()
    cache = Path(os.environ.get("ROUTER_LAB_CACHE") or "~/.cache/router_lab").expanduser()
    folder = cache / f"{name}-{digest}"
    if folder.is_dir():
        return folder
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{name}: waiting for another process that makes the same data", file=sys.stderr)
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"The cache {cache} can't be written ({error}); set ROUTER_LAB_CACHE to a "
            "folder that can."
        ) from error
    part = folder.with_suffix(".part")
    try:
        if not folder.is_dir():
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            part.mkdir()
            build(part)
            part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        lock.release()
    return folder


def stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Path, size and modification time of each file: a cheap key for what was made of them."""
    stats = ((path, path.stat()) for path in paths)
    return [(str(path.absolute()), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def progress_bar(title: str, n_bytes: float | None) -> tqdm[Any]:
    """A bar for work that takes more than a second; none if stderr is not a terminal."""
    return tqdm(
        desc=title, total=n_bytes, unit="B", unit_scale=True, delay=1, leave=False, disable=None
    )


class CorpusWriter:
    """Writes a corpus into a folder piece by piece, so that it may be larger than memory.

        with CorpusWriter(folder, vocab_size=256) as out:
            out.append("train", tokens)

    Args:
        vocab_size, domains, token_bytes, window: as in `Corpus`. If `token_bytes` is missing and a
            token is not a byte, every token counts for the mean of the validation split. A source
            that finds its domains while it reads sets `domains` before the block ends.
        title: of the progress bar.
        n_bytes: bytes of text to come, for the bar.
    """

    def __init__(
        self,
        folder: Path,
        vocab_size: int,
        domains: Iterable[str] = (),
        token_bytes: np.ndarray | None = None,
        window: int | None = None,
        title: str = "writing",
        n_bytes: float | None = None,
    ) -> None:
        self.folder = folder
        self.domains = list(domains)
        self.dtype = smallest_dtype(vocab_size)
        self.meta: dict[str, Any] = {"vocab_size": vocab_size, "window": window}
        self.token_bytes = token_bytes
        self._n_tokens = {"train": 0, "val": 0}
        self._n_bytes = {"train": 0, "val": 0}
        self._hashes = {name: hashlib.blake2b(digest_size=16) for name in self._n_bytes}
        self._files: dict[str, BinaryIO] = {}
        self._open = ExitStack()
        self._bar = self._open.enter_context(progress_bar(title, n_bytes))
        for name in self._n_bytes:
            self._write(f"{name}.tokens", np.empty(0))  # a split without tokens has its file too

    def append(
        self,
        split: SplitName,
        tokens: np.ndarray,
        *,
        n_bytes: int | None = None,
        domain: np.ndarray | int | None = None,
        floor: np.ndarray | None = None,
    ) -> None:
        """Adds tokens [N] with their labels [N], or one label for all; see `Split`."""
        tokens = tokens.astype(self.dtype, copy=False)
        n_bytes = len(tokens) if n_bytes is None else n_bytes
        self._hashes[split].update(tokens.tobytes())
        self._n_tokens[split] += len(tokens)
        self._n_bytes[split] += n_bytes
        self._write(f"{split}.tokens", tokens)
        if domain is not None:
            labels = np.broadcast_to(np.asarray(domain, np.uint16), tokens.shape)
            self._write(f"{split}.domain", labels)
        if floor is not None:
            self._write(f"{split}.floor", floor.astype(np.float32, copy=False))
        self._bar.update(n_bytes)

    def _write(self, name: str, array: np.ndarray) -> None:
        if name not in self._files:
            path = self.folder / f"{name}.bin"
            self._files[name] = self._open.enter_context(path.open("wb"))
        self._files[name].write(array.tobytes())

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._open.close()
        if kind is not None:
            return
        n_bytes, n_tokens = self._n_bytes["val"], self._n_tokens["val"]
        if self.token_bytes is None and n_bytes != n_tokens:
            self.token_bytes = np.full(self.meta["vocab_size"], n_bytes / n_tokens)
        if self.token_bytes is not None:
            self.token_bytes.astype(np.float32).tofile(self.folder / "token_bytes.bin")
        digests = [value.hexdigest() for value in self._hashes.values()]
        identity = json.dumps([self.meta, self.domains, digests])
        self.meta |= {
            "domains": self.domains,
            "n_bytes": self._n_bytes,
            "dtype": self.dtype.name,
            "fingerprint": hashlib.blake2b(identity.encode(), digest_size=16).hexdigest(),
        }
        (self.folder / META).write_text(json.dumps(self.meta, indent=1))


def read_corpus(folder: Path, name: str) -> Corpus:
    """The corpus that a CorpusWriter left in the folder, memory-mapped.

    Raises UserError if the folder is damaged.
    """

    def array(part: str, dtype: str) -> np.ndarray | None:
        path = folder / f"{part}.bin"
        return map_file(path, dtype) if path.exists() else None

    try:
        meta = json.loads((folder / META).read_text())
        train, val = (
            Split(
                map_file(folder / f"{side}.tokens.bin", meta["dtype"]),
                n_bytes,
                array(f"{side}.domain", "uint16"),
                array(f"{side}.floor", "float32"),
            )
            for side, n_bytes in meta["n_bytes"].items()
        )
        return Corpus(
            name=name,
            train=train,
            val=val,
            vocab_size=meta["vocab_size"],
            fingerprint=meta["fingerprint"],
            domains=tuple(meta["domains"]),
            token_bytes=array("token_bytes", "float32"),
            window=meta["window"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"The cached data in {folder} are damaged ({error}); delete that folder to have them "
            "made again."
        ) from error


def cached_corpus(
    name: str, key: object, write: Callable[[CorpusWriter], None], **columns: Any
) -> Corpus:
    """The corpus that `write` appends to a CorpusWriter, made once for this key.

    Args:
        columns: arguments of CorpusWriter.
    """

    def build(folder: Path) -> None:
        with CorpusWriter(folder, **columns) as out:
            write(out)

    return read_corpus(cached(name, key, build), name)


def smallest_dtype(n: int) -> np.dtype:
    """The smallest unsigned integer that counts 0 … n − 1."""
    return np.min_scalar_type(max(n - 1, 0))
