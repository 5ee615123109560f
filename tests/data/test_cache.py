"""The cache: one process builds, the others wait; nothing is half there; arrays are mapped."""

import multiprocessing
import pickle
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest

from router_lab.data.cache import (
    CorpusWriter,
    cached,
    read_corpus,
    smallest_dtype,
    stamps,
)
from router_lab.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROUTER_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder: Path, train: bytes = b"hello", val: bytes = b"world", **options: object) -> None:
    with CorpusWriter(folder, vocab_size=256, **options) as out:  # type: ignore[arg-type]
        out.append("train", np.frombuffer(train, np.uint8))
        out.append("val", np.frombuffer(val, np.uint8))


def slow_build(counter: Path, together: Barrier) -> None:
    """What each of several processes runs at the same moment."""

    def build(folder: Path) -> None:
        with open(counter, "a") as file:
            file.write("built\n")
        write(folder)
        time.sleep(0.5)

    together.wait()
    corpus = read_corpus(cached("x", {"a": 1}, build), "x")
    assert bytes(corpus.train.tokens) == b"hello"


def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    context = multiprocessing.get_context("fork")
    together = context.Barrier(3)
    jobs = [context.Process(target=slow_build, args=(counter, together)) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert counter.read_text() == "built\n"


def test_a_failed_build_leaves_nothing(cache: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cached("x", 1, fail)
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    assert cached("x", 1, write).is_dir()


def test_what_a_killed_job_left_is_cleared(cache: Path) -> None:
    folder = cached("x", 1, write)
    half = folder.rename(folder.with_suffix(".part"))
    (half / "val.tokens.bin").unlink()
    assert bytes(read_corpus(cached("x", 1, write), "x").val.tokens) == b"world"


def test_a_damaged_folder_is_named() -> None:
    folder = cached("x", 1, write)
    (folder / "corpus.json").write_text("{")
    with pytest.raises(UserError, match=f"{folder} are damaged"):
        read_corpus(folder, "x")


def test_another_key_is_another_folder() -> None:
    assert cached("x", {"seed": 1}, write) != cached("x", {"seed": 2}, write)


def test_a_cache_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROUTER_LAB_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="ROUTER_LAB_CACHE"):
        cached("x", 1, write)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    bytes_per_token = np.arange(300, dtype=np.float32)
    with CorpusWriter(tmp_path, 300, ["a", "b"], bytes_per_token, window=3) as out:
        out.append("train", np.array([299, 1]), domain=1, n_bytes=7, floor=np.array([0.5, 0.25]))
        out.append("train", np.array([7]), domain=np.array([0]), n_bytes=2, floor=np.array([0.125]))
        out.append("val", np.array([2]), domain=0, n_bytes=2, floor=np.array([1.0]))
    corpus = read_corpus(tmp_path, "x")
    assert corpus.train.tokens.dtype == np.uint16 and isinstance(corpus.train.tokens, np.memmap)
    assert corpus.train.tokens.tolist() == [299, 1, 7]
    assert corpus.train.domain is not None and corpus.train.domain.tolist() == [1, 1, 0]
    assert corpus.train.floor is not None and corpus.train.floor.tolist() == [0.5, 0.25, 0.125]
    assert (corpus.train.n_bytes, corpus.val.n_bytes) == (9, 2)
    assert (corpus.vocab_size, corpus.domains, corpus.window) == (300, ("a", "b"), 3)
    assert corpus.token_bytes is not None and np.array_equal(corpus.token_bytes, bytes_per_token)


def test_the_fingerprint_follows_the_content_and_not_the_pieces(tmp_path: Path) -> None:
    def fingerprint(name: str, *pieces: bytes, **options: object) -> str:
        (tmp_path / name).mkdir()
        with CorpusWriter(tmp_path / name, 256, **options) as out:  # type: ignore[arg-type]
            for piece in pieces:
                out.append("train", np.frombuffer(piece, np.uint8))
        return read_corpus(tmp_path / name, "x").fingerprint

    base = fingerprint("base", b"hello")
    assert fingerprint("pieces", b"he", b"llo") == base
    assert fingerprint("text", b"hellO") != base
    assert fingerprint("window", b"hello", window=5) != base


def test_a_pickled_corpus_holds_paths_and_not_arrays(tmp_path: Path) -> None:
    write(tmp_path, train=bytes(100_000))
    corpus = read_corpus(tmp_path, "x")
    data = pickle.dumps(corpus)
    assert len(data) < 2_000
    assert np.array_equal(pickle.loads(data).train.tokens, corpus.train.tokens)


def test_dtypes_hold_the_vocabulary() -> None:
    assert [smallest_dtype(n).name for n in (0, 1, 256, 257, 65536, 65537)] == [
        "uint8", "uint8", "uint8", "uint16", "uint16", "uint32",
    ]  # fmt: skip


def test_stamps_change_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("1")
    before = stamps([path])
    path.write_text("12")
    assert stamps([path]) != before


def test_making_data_prints_nothing_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    cached("slow", 1, write)
    assert capsys.readouterr().err == ""
