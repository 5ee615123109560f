"""data=text: which files, which domain, which side; every refusal; tokenizers."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from router_lab.data import Corpus, load_corpus
from router_lab.data.sources.text import PIECE, TextFile, next_break, read_pieces, split_files
from router_lab.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def put(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8", newline="")


def load(path: str | None, seq_len: int = 8, **options: object) -> Corpus:
    return load_corpus({"name": "text", "path": path, **options}, seq_len)


def text_of(array: np.ndarray) -> str:
    return bytes(array).decode()


LINES = "".join(f"line {i:03}\n" for i in range(100))  # 900 bytes


def test_a_file_gives_its_end_to_validation() -> None:
    put("book.txt", LINES)
    corpus = load("book.txt")
    assert text_of(corpus.train.tokens) + text_of(corpus.val.tokens) == LINES
    assert text_of(corpus.val.tokens).startswith("line 091\n")  # the first line end after 90%
    assert corpus.domains == () and corpus.train.domain is None
    assert corpus.vocab_size == 256 and corpus.token_bytes is None
    assert corpus.val.n_bytes == len(corpus.val.tokens)


def test_subfolders_are_domains() -> None:
    put("texts/b/deep/2.txt", LINES)
    put("texts/a/1.txt", LINES.upper())
    put("texts/a/.hidden", "x" * 500)
    put("texts/a/empty.txt", "")
    corpus = load("texts")
    assert corpus.domains == ("a", "b")
    for split in (corpus.train, corpus.val):
        assert split.domain is not None
        assert text_of(split.tokens[split.domain == 0]).isupper()
        assert text_of(split.tokens[split.domain == 1]).islower()
    globbed = load("texts/**/*.txt")
    assert globbed.domains == ("a", "b") and globbed.fingerprint == corpus.fingerprint


def test_a_place_of_its_own_for_validation() -> None:
    put("train/x/1.txt", LINES)
    put("valid/x/1.txt", LINES.upper())
    corpus = load("train", val_path="valid/*/*.txt")
    assert text_of(corpus.train.tokens) == LINES
    assert text_of(corpus.val.tokens) == LINES.upper()


def test_a_changed_file_is_read_again() -> None:
    put("book.txt", LINES)
    before = load("book.txt").fingerprint
    put("book.txt", LINES + "more\n")
    assert load("book.txt").fingerprint != before


@given(
    sizes=st.lists(st.integers(1, 10_000), min_size=20, max_size=60),
    share=st.floats(0.01, 0.5),
)
def test_many_files_are_split_whole_and_near_the_share(sizes: list[int], share: float) -> None:
    files = [TextFile(Path(f"{i}.txt"), "d", size) for i, size in enumerate(sizes)]
    val_start = split_files(files, share)
    assert set(val_start.values()) == {0} and len(val_start) < len(files)
    val_sizes = [file.size for file in files if file.path in val_start]
    assert sum(val_sizes) <= max(share * sum(sizes), min(sizes))


def test_twenty_files_keep_their_files_whole() -> None:
    for i in range(20):
        put(f"many/{i}.txt", f"<{i:02}" + "x" * 96 + ">")
    corpus = load("many")
    assert len(corpus.val.tokens) == 200
    for split in (corpus.train, corpus.val):
        assert text_of(split.tokens).count("<") == len(split.tokens) / 100


@given(st.text(alphabet="ab\né€😀", max_size=300), st.integers(4, 40))
def test_pieces_put_together_are_the_text_and_no_character_is_cut(text: str, piece: int) -> None:
    data = text.encode()
    stream = io.BytesIO(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("router_lab.data.sources.text.PIECE", piece)
        middle = next_break(stream, len(data) // 2, len(data))
        pieces = [
            *read_pieces(stream, 0, middle, len(data)),
            *read_pieces(stream, middle, len(data), len(data)),
        ]
    assert "".join(part.decode() for part in pieces) == text


def test_a_text_longer_than_a_piece_is_whole() -> None:
    text = "wörd " * (PIECE // 2)
    put("long.txt", text)
    corpus = load("long.txt")
    assert text_of(corpus.train.tokens) + text_of(corpus.val.tokens) == text


def refusal(path: str | None, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        load(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


def test_refusals() -> None:
    assert "data.path" in refusal(None)
    assert "'nowhere.txt', which does not exist" in refusal("nowhere.txt")
    assert "no file with text" in refusal("none/*.txt")
    Path("empty").mkdir()
    assert "no file with text" in refusal("empty")
    put("zero.txt", "")
    assert "no file with text" in refusal("zero.txt")
    put("short.txt", "0123456789" * 4)
    assert "validation text of data=text has 4 tokens" in refusal("short.txt")
    assert "training text of data=text has 36 tokens" in refusal("short.txt", seq_len=100)
    put("book.txt", LINES)
    assert "data.val_share=1.5" in refusal("book.txt", val_share=1.5)
    assert "data.val_path" in refusal("book.txt", val_path="nowhere")
    assert "no option pth" in refusal("book.txt", pth=1)
    assert "tokenizer.json" in refusal("book.txt", tokenizer="nowhere.json")


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n\0\0", "é".encode("latin-1") * 9, "abc".encode("utf-16")]
)
def test_a_binary_file_is_named_and_leaves_no_cache(data: bytes) -> None:
    put("texts/a.txt", LINES)
    Path("texts/image.dat").write_bytes(data)
    for _ in range(2):
        assert "texts/image.dat is binary" in refusal("texts")
    load("texts/*.txt")


def test_an_unknown_source_names_the_right_ones() -> None:
    with pytest.raises(UserError, match="did you mean text"):
        load_corpus({"name": "txt"}, 8)


@pytest.fixture
def bpe(tmp_path: Path) -> Path:
    """A small byte-level BPE, trained on the spot."""
    tokenizers = pytest.importorskip("tokenizers")
    level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = level(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=level.alphabet()
    )
    tokenizer.train_from_iterator([LINES, "wörd € 😀 "] * 3, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_bpe_tokens_stand_for_exactly_the_bytes_of_the_text(bpe: Path) -> None:
    text = "wörd €<|end|>\n" * 20 + LINES
    put("book.txt", text)
    corpus = load("book.txt", tokenizer=str(bpe))
    assert 257 < corpus.vocab_size <= 300 and corpus.train.tokens.dtype == np.uint16
    assert len(corpus.val.tokens) < 0.7 * corpus.val.n_bytes
    assert corpus.token_bytes is not None and len(corpus.token_bytes) == corpus.vocab_size
    for split in (corpus.train, corpus.val):
        assert corpus.token_bytes[split.tokens].sum() == split.n_bytes
    assert corpus.train.n_bytes + corpus.val.n_bytes == len(text.encode())


def test_a_tokenizer_without_exact_bytes_counts_the_mean(bpe: Path) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(bpe))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.save(str(bpe))
    put("book.txt", LINES.upper())
    corpus = load("book.txt", tokenizer=str(bpe))
    assert corpus.token_bytes is not None
    total = corpus.token_bytes[corpus.val.tokens].sum()
    assert total == pytest.approx(corpus.val.n_bytes, rel=1e-6)


def test_a_broken_tokenizer_is_a_sentence() -> None:
    put("tokenizer.json", "{}")
    put("book.txt", LINES)
    assert "can't be read" in refusal("book.txt", tokenizer="tokenizer.json")
