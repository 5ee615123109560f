"""The cache: a corpus is made once, by one process, and read memory-mapped ever after.

The folder is `$ROUTER_LAB_CACHE`, or `~/.cache/router_lab`; delete it whenever you like.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

import numpy as np
from filelock import FileLock, Timeout

from router_lab.data.corpus import Corpus, Split
from router_lab.errors import UserError

LAYOUT = 2  # of the files below: count up when it changes, so that nobody reads an old folder
META = "corpus.json"
SplitName = Literal["train", "val"]


def cache_dir() -> Path:
    return Path(os.environ.get("ROUTER_LAB_CACHE") or "~/.cache/router_lab").expanduser()


def cached(name: str, key: object, build: Callable[[Path], None]) -> Path:
    """The folder that `build` filled for this name and key, filled now if it is not there.

    Of several processes that ask at the same time one builds and the others wait. The folder
    appears whole or not at all. Raises UserError where the cache can't be written.

    Args:
        key: anything JSON can write that says what the content depends on.
        build: fills the empty folder that it is given.
    """
    digest = hashlib.blake2b(json.dumps([LAYOUT, key]).encode(), digest_size=8).hexdigest()
    folder = cache_dir() / f"{name}-{digest}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder.with_suffix(".lock"), name)
    except OSError as error:
        raise UserError(
            f"The cache {folder.parent} can't be written ({error}); set ROUTER_LAB_CACHE to a "
            "folder that can."
        ) from error
    with lock:
        if not folder.is_dir():
            _build(folder, build)
    return folder


def _locked(path: Path, name: str) -> Any:
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"{name}: waiting for another job that makes the same data", file=sys.stderr)
        return lock.acquire()


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    half = folder.with_suffix(".part")  # left behind by a job that was killed, if it is there
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    try:
        build(half)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise
    half.rename(folder)


def stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Path, size and time of change of each file: a cheap key for what was made of them."""
    stats = ((path, path.stat()) for path in paths)
    return [(str(path.absolute()), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


class CorpusWriter:
    """Writes a corpus into a folder piece by piece, so that it may be larger than the memory.

        with CorpusWriter(folder, vocab_size=256) as out:
            out.append("train", tokens)

    The arguments are those of `Corpus`; without `token_bytes`, and where a token is not a byte,
    every token counts for the mean.
    """

    def __init__(
        self,
        folder: Path,
        vocab_size: int,
        domains: Iterable[str] = (),
        token_bytes: np.ndarray | None = None,
        window: int | None = None,
    ) -> None:
        self.folder = folder
        self.domains = list(domains)  # a source that learns them on the way sets them at the end
        self.dtype = smallest_dtype(vocab_size)
        self.meta: dict[str, Any] = {"vocab_size": vocab_size, "window": window}
        self.token_bytes = token_bytes
        self._n_tokens = {"train": 0, "val": 0}
        self._n_bytes = {"train": 0, "val": 0}
        self._hashes = {name: hashlib.blake2b(digest_size=16) for name in self._n_bytes}
        self._files: dict[str, BinaryIO] = {}

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
        self._hashes[split].update(tokens.tobytes())
        self._n_tokens[split] += len(tokens)
        self._n_bytes[split] += len(tokens) if n_bytes is None else n_bytes
        self._write(f"{split}.tokens", tokens)
        if domain is not None:
            labels = np.broadcast_to(np.asarray(domain, np.uint16), tokens.shape)
            self._write(f"{split}.domain", labels)
        if floor is not None:
            self._write(f"{split}.floor", floor.astype(np.float32, copy=False))

    def _write(self, name: str, array: np.ndarray) -> None:
        if name not in self._files:
            self._files[name] = open(self.folder / f"{name}.bin", "wb")  # noqa: SIM115
        self._files[name].write(array.tobytes())

    def _mean_bytes(self) -> np.ndarray | None:
        """Where bytes per token are not known one by one, each counts for validation's mean."""
        n_bytes, n_tokens = self._n_bytes["val"], self._n_tokens["val"]
        if n_bytes == n_tokens:
            return None
        return np.full(self.meta["vocab_size"], n_bytes / n_tokens)

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        if kind is not None:
            return
        if self.token_bytes is None:
            self.token_bytes = self._mean_bytes()
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

    Raises UserError where someone has meddled with the folder.
    """
    try:
        return _read_corpus(folder, name)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"The cached data in {folder} are damaged ({error}); delete that folder to have them "
            "made again."
        ) from error


def _read_corpus(folder: Path, name: str) -> Corpus:
    meta = json.loads((folder / META).read_text())

    def array(part: str, dtype: str) -> np.ndarray | None:
        path = folder / f"{part}.bin"
        if not path.exists():
            return None
        return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)

    def split(part: str) -> Split:
        tokens = array(f"{part}.tokens", meta["dtype"])
        return Split(
            tokens=np.empty(0, meta["dtype"]) if tokens is None else tokens,
            n_bytes=meta["n_bytes"][part],
            domain=array(f"{part}.domain", "uint16"),
            floor=array(f"{part}.floor", "float32"),
        )

    return Corpus(
        name=name,
        train=split("train"),
        val=split("val"),
        vocab_size=meta["vocab_size"],
        fingerprint=meta["fingerprint"],
        domains=tuple(meta["domains"]),
        token_bytes=array("token_bytes", "float32"),
        window=meta["window"],
    )


def smallest_dtype(n: int) -> np.dtype:
    """The smallest unsigned integer that counts 0 … n − 1."""
    return np.min_scalar_type(max(n - 1, 0))
