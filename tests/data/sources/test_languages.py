"""data=languages: the floor is exact and nothing beats it; the text follows its options."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from router_lab.data import load_corpus
from router_lab.data.sources.languages import Languages, Source
from router_lab.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_LAB_CACHE", str(tmp_path / "cache"))


def draw(n: int, length: int, **options: float) -> tuple[Source, np.ndarray, np.ndarray]:
    source = Languages(seq_len=length - 1, **options).source()  # type: ignore[arg-type]
    tokens, languages = source.sample(n, length, np.random.default_rng(5))
    return source, tokens, languages


def probability(source: Source, tokens: tuple[int, ...]) -> float:
    """p(tokens), summed over every path of hidden languages: D^length terms, no recursion."""
    n_languages = len(source.prior_D)
    total = 0.0
    for path in itertools.product(range(n_languages), repeat=len(tokens)):
        p = 1.0
        for t, (language, token) in enumerate(zip(path, tokens, strict=True)):
            drawn = source.prior_D[language]
            stays = float(t > 0 and language == path[t - 1])
            p *= drawn if t == 0 else source.switch * drawn + (1 - source.switch) * stays
            if t < source.order:
                p /= source.alphabet
            else:
                context = 0
                for earlier in tokens[t - source.order : t]:
                    context = context * source.alphabet + earlier
                p *= source.rows_DCA[language, context, token]
        total += p
    return total


@given(
    n_languages=st.integers(1, 3),
    alphabet=st.integers(2, 3),
    order=st.integers(1, 2),
    switch=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    similarity=st.sampled_from([0.0, 0.4]),
    skew=st.sampled_from([0.0, 1.3]),
    seed=st.integers(0, 100),
)
def test_floor_is_that_of_enumerating_all_language_paths(
    n_languages: int, alphabet: int, order: int, switch: float, similarity: float, skew: float,
    seed: int,
) -> None:  # fmt: skip
    source = Languages(
        5, n_languages, alphabet, order, 0.5, switch, similarity, skew, seed=seed
    ).source()
    tokens = np.random.default_rng(seed).integers(0, alphabet, (4, 6))  # likely and unlikely ones
    expected = [
        [
            math.log(probability(source, (*row[:t],)) / probability(source, (*row[: t + 1],)))
            for t in range(6)
        ]
        for row in tokens.tolist()
    ]
    np.testing.assert_allclose(source.floor(tokens), expected, rtol=1e-9, atol=1e-12)


def test_floor_probabilities_add_up_to_one() -> None:
    source, tokens, _ = draw(5, 12, n_languages=3, alphabet=4, order=2, switch=0.2)
    last = np.arange(4)
    for row in tokens:
        continued = np.column_stack([np.tile(row, (4, 1)), last])
        assert np.exp(-source.floor(continued)[:, -1]).sum() == pytest.approx(1)


def test_floor_of_one_language_by_hand() -> None:
    """p(1|0) = 1/4, p(0|1) = 1/2: the chain is in 0 two thirds of the time (2/3 · 1/4 = 1/3 · 1/2).

    Entropy rate = 2/3 · H(1/4) + 1/3 · H(1/2), with H(1/4) = 2 − 3/4 · log2 3 bits and H(1/2) = 1.
    """
    source = Source(np.ones(1), np.array([[[0.75, 0.25], [0.5, 0.5]]]), switch=0.3)
    tokens = np.array([[1, 1, 0, 0, 1]])
    assert np.exp(-source.floor(tokens)) == pytest.approx(np.array([[0.5, 0.5, 0.5, 0.75, 0.25]]))
    sampled, _ = source.sample(400, 500, np.random.default_rng(0))
    bits = source.floor(sampled)[:, 50:].mean() / math.log(2)
    rate = 2 / 3 * (2 - 0.75 * math.log2(3)) + 1 / 3
    assert bits == pytest.approx(rate, abs=0.005)  # 180,000 tokens: three standard errors


def test_languages_that_are_all_the_same_have_the_floor_of_one() -> None:
    source, tokens, _ = draw(20, 50, n_languages=5, similarity=1.0, switch=0.5)
    one = Source(np.ones(1), source.rows_DCA[:1], switch=0.0)
    np.testing.assert_allclose(source.floor(tokens), one.floor(tokens), rtol=1e-9)


@pytest.mark.parametrize("preset", [{}, {"switch": 0.05, "skew": 1.0}, {"order": 2, "alphabet": 8}])
def test_only_knowing_the_language_beats_the_floor(
    preset: dict[str, float],
) -> None:
    """Rivals see more than they may, their own test set, and still lose to the floor."""
    source, tokens, languages = draw(1500, 65, **preset)
    floor = source.floor(tokens)[:, 2:].mean()
    before, last, target = tokens[:, :-2].ravel(), tokens[:, 1:-1].ravel(), tokens[:, 2:].ravel()

    def entropy_given(context: np.ndarray) -> float:
        counts = np.zeros((context.max() + 1, source.alphabet))
        np.add.at(counts, (context, target), 1)
        rates = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        return float(-np.log(rates[context, target]).mean())

    assert entropy_given(np.zeros_like(last)) > floor
    assert entropy_given(last) > floor
    wrong_switch = Source(source.prior_D, source.rows_DCA, switch=source.switch + 0.2)
    assert wrong_switch.floor(tokens)[:, 2:].mean() > floor
    context = last if source.order == 1 else before * source.alphabet + last
    known = -np.log(source.rows_DCA[languages[:, 2:].ravel(), context, target]).mean()
    assert known < floor < known + math.log(len(source.prior_D))


def test_text_follows_its_options() -> None:
    source, tokens, languages = draw(4000, 40, n_languages=3, skew=1.0, switch=0.1, alphabet=5)
    shares = np.bincount(languages.ravel()) / languages.size
    np.testing.assert_allclose(shares, np.array([6, 3, 2]) / 11, atol=0.02)
    # Drawn anew one token in ten, and then another language with probability 1 − Σ p².
    changes = np.mean(languages[:, 1:] != languages[:, :-1])
    assert changes == pytest.approx(0.1 * (1 - np.square([6, 3, 2]).sum() / 121), abs=0.003)
    assert np.bincount(tokens[:, 0]) / 4000 == pytest.approx(np.full(5, 0.2), abs=0.03)
    counts = np.zeros_like(source.rows_DCA)
    np.add.at(counts, (languages[:, 1:], tokens[:, :-1], tokens[:, 1:]), 1)
    often = counts.sum(-1) > 3000
    rates = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    assert often.sum() > 5
    np.testing.assert_allclose(rates[often], source.rows_DCA[often], atol=0.04)


def test_a_skew_may_be_a_whole_number() -> None:
    one, other = (Languages(16, skew=skew).source() for skew in (1, 1.0))
    assert one.prior_D.tolist() == other.prior_D.tolist()


def test_no_switch_means_one_language_a_sequence() -> None:
    _, _, languages = draw(100, 30, n_languages=4)
    assert (languages == languages[:, :1]).all() and len(np.unique(languages)) == 4


def test_a_corpus_of_the_same_seed_is_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = {"name": "languages", "n_tokens": 60_000, "n_languages": 5, "switch": 0.1}
    corpus = load_corpus(config, seq_len=15)
    assert (corpus.window, corpus.vocab_size, len(corpus.domains)) == (16, 32, 5)
    assert len(corpus.train.tokens) % 16 == 0 and len(corpus.train.tokens) >= 60_000
    assert corpus.train.domain is not None and corpus.train.floor is not None
    source = Languages(15, n_languages=5, switch=0.1).source()
    for split in (corpus.train, corpus.val):
        expected = source.floor(np.array(split.tokens, np.int64).reshape(-1, 16))
        assert split.floor is not None
        np.testing.assert_allclose(split.floor, expected.ravel(), rtol=1e-6)
    assert not np.array_equal(corpus.val.tokens[:1600], corpus.train.tokens[:1600])

    monkeypatch.setenv("ROUTER_LAB_CACHE", str(tmp_path / "elsewhere"))
    assert load_corpus(config, seq_len=15).fingerprint == corpus.fingerprint
    assert load_corpus({**config, "seed": 1}, seq_len=15).fingerprint != corpus.fingerprint
    assert load_corpus(config, seq_len=31).window == 32


@pytest.mark.parametrize(
    ("option", "value"),
    [("n_languages", 0), ("alphabet", 1), ("order", 0), ("concentration", 0.0), ("switch", 1.5),
     ("similarity", -0.1), ("skew", -1.0), ("n_tokens", 0), ("seed", -1), ("switch", "often")],
)  # fmt: skip
def test_refusals(option: str, value: object) -> None:
    with pytest.raises(UserError, match=f"data.{option}"):
        load_corpus({"name": "languages", option: value}, 16)


def test_too_large_a_table_is_refused() -> None:
    with pytest.raises(UserError, match="too large a table"):
        Languages(16, alphabet=64, order=5)


def test_presets_compose_over_the_data_group() -> None:
    from hydra import compose, initialize_config_dir

    from router_lab.registry import store_configs

    store_configs()
    conf = Path(__file__).parents[3] / "conf"
    with initialize_config_dir(str(conf), version_base="1.3"):
        for preset in ("easy", "switching", "skewed", "many"):
            config = compose(overrides=["+data=languages", f"+languages={preset}"])
            assert list(config) == ["data"]
            corpus = load_corpus({**config.data, "n_tokens": 1000}, 16)
            assert corpus.name == "languages" and len(corpus.domains) == config.data.n_languages
