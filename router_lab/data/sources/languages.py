"""`data=languages`: synthetic languages whose Bayes-optimal loss is known exactly.

D Markov sources share an alphabet. The first language of a sequence is drawn by frequency, and
before each further token the language is redrawn with probability `switch`. The languages are
hidden, so the optimal predictor weighs them by their posterior given the tokens so far (forward
filtering of a hidden Markov model: Rabiner 1989, "A tutorial on hidden Markov models", section
III-A); its −log p is the floor that no model can beat on average.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np

from router_lab.check import ABOVE_0, NOT_NEGATIVE, SHARE, Count, at_least
from router_lab.data.cache import CorpusWriter, SplitName, cached_corpus
from router_lab.data.corpus import Corpus, CorpusSource
from router_lab.errors import UserError
from router_lab.registry import register

CHUNK = 2048  # sequences made at a time
MAX_TABLE = 2**25  # probabilities: 256 MiB
VAL_SHARE = 1 / 16
RAREST = 1e-9  # least probability of a token, so that every −log p is finite


@register("languages")
@dataclass(frozen=True)
class Languages(CorpusSource):
    """Independent sequences of seq_len + 1 tokens, each a window; a token's domain is its language.

    Attributes:
        n_languages: D.
        alphabet: A, the vocabulary that all languages share.
        order: number of preceding tokens that a token depends on; the first `order` tokens of a
            sequence are uniform in every language.
        concentration: of the symmetric Dirichlet distribution of each row of transition
            probabilities; languages are more predictable the smaller it is.
        switch: probability per token that the language is redrawn (possibly the same).
        similarity: weight of one common source in every language; at 1 all languages are equal.
        skew: exponent of Zipf's law for the frequencies of the languages; 0: all equal.
        n_tokens: training tokens; validation adds a sixteenth.
        seed: of the languages and the text, independent of the run's seed.
    """

    seq_len: int
    n_languages: Count = 4
    alphabet: Annotated[int, at_least(2)] = 32
    order: Count = 1
    concentration: Annotated[float, ABOVE_0] = 0.1
    switch: Annotated[float, SHARE] = 0.0
    similarity: Annotated[float, SHARE] = 0.0
    skew: Annotated[float, NOT_NEGATIVE] = 0.0
    n_tokens: Count = 4_000_000
    seed: Annotated[int, NOT_NEGATIVE] = 0

    def __post_init__(self) -> None:
        if self.n_languages * self.alphabet ** (self.order + 1) > MAX_TABLE:
            raise UserError(
                f"data=languages with {self.n_languages} languages of order {self.order} over "
                f"{self.alphabet} letters needs too large a table; lower data.order or "
                "data.alphabet."
            )

    def corpus(self) -> Corpus:
        n_train = math.ceil(self.n_tokens / (self.seq_len + 1))
        sizes: dict[SplitName, int] = {"train": n_train, "val": math.ceil(n_train * VAL_SHARE)}

        def write(out: CorpusWriter) -> None:
            source = self.source()
            for number, (split, n) in enumerate(sizes.items(), start=1):
                for start in range(0, n, CHUNK):
                    rng = np.random.default_rng([self.seed, number, start // CHUNK])
                    size = min(CHUNK, n - start)
                    tokens, languages = source.sample(size, self.seq_len + 1, rng)
                    floor = source.floor(tokens)
                    out.append(split, tokens.ravel(), domain=languages.ravel(), floor=floor.ravel())

        return cached_corpus(
            "languages",
            asdict(self),
            write,
            vocab_size=self.alphabet,
            domains=[f"language{i}" for i in range(self.n_languages)],
            window=self.seq_len + 1,
            title="languages: sampling",
            n_bytes=sum(sizes.values()) * (self.seq_len + 1),
        )

    def source(self) -> Source:
        """Draws the languages."""
        rng = np.random.default_rng([self.seed, 0])
        shape = self.n_languages + 1, self.alphabet**self.order
        rows = rng.dirichlet(np.full(self.alphabet, self.concentration), size=shape)
        rows = (1 - self.similarity) * rows[:-1] + self.similarity * rows[-1]
        rows = np.maximum(rows, RAREST)
        prior = np.arange(1, self.n_languages + 1) ** -float(self.skew)
        return Source(prior / prior.sum(), rows / rows.sum(-1, keepdims=True), self.switch)


class Source:
    """D Markov sources of one order that take turns.

    Args:
        prior_D: frequency of each language.
        rows_DCA: p(next token | language, context). Context c, 0 to A^order − 1, is the last
            `order` tokens read as a number in base A, the latest one last.
        switch: probability per token that the language is redrawn from the prior.
    """

    def __init__(self, prior_D: np.ndarray, rows_DCA: np.ndarray, switch: float) -> None:
        self.prior_D = prior_D
        self.rows_DCA = rows_DCA
        self.switch = switch
        self.n_contexts, self.alphabet = rows_DCA.shape[1:]
        self.order = round(math.log(self.n_contexts, self.alphabet))
        # Cumulative rows end to end, row r in (r, r + 1]: one binary search samples from all rows.
        ladder = np.cumsum(rows_DCA.reshape(-1, self.alphabet), -1)
        self._ladder = (ladder / ladder[:, -1:] + np.arange(len(ladder))[:, None]).ravel()

    def sample(
        self, n: int, length: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """n sequences: tokens [n, length] and the language of each token [n, length]."""
        redraw = rng.random((length, n)) < self.switch
        drawn = np.searchsorted(np.cumsum(self.prior_D)[:-1], rng.random((length, n)), "right")
        uniform = rng.random((length, n))
        tokens = np.empty((length, n), np.int64)
        languages = np.empty((length, n), np.int64)
        context = np.zeros(n, np.int64)
        for t in range(length):
            languages[t] = drawn[t] if t == 0 else np.where(redraw[t], drawn[t], languages[t - 1])
            if t < self.order:
                tokens[t] = uniform[t] * self.alphabet
            else:
                row = languages[t] * self.n_contexts + context
                step = np.searchsorted(self._ladder, row + uniform[t], "right")
                tokens[t] = np.clip(step - row * self.alphabet, 0, self.alphabet - 1)
            context = (context * self.alphabet + tokens[t]) % self.n_contexts
        return tokens.T, languages.T

    def floor(self, tokens: np.ndarray) -> np.ndarray:
        """−log p(token | the tokens before it in its sequence): [n, length] nats, exact.

        `belief` is p(language of this token | tokens before it). Bayes' rule conditions it on the
        token itself, and mixing with the prior by `switch` gives the next belief.
        """
        n, length = tokens.shape
        likelihood_CAxD = np.ascontiguousarray(self.rows_DCA.reshape(len(self.prior_D), -1).T)
        nats = np.full((length, n), math.log(self.alphabet))
        belief = np.broadcast_to(self.prior_D, (n, len(self.prior_D)))
        context = np.zeros(n, np.int64)
        for t, token in enumerate(tokens.T):
            if t >= self.order:
                joint = belief * likelihood_CAxD[context * self.alphabet + token]
                p = joint.sum(-1)
                nats[t] = -np.log(p)
                belief = joint / p[:, None]
            belief = (1 - self.switch) * belief + self.switch * self.prior_D
            context = (context * self.alphabet + token) % self.n_contexts
        return nats.T
