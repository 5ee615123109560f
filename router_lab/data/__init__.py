"""Data: a source makes a `Corpus`, and `WindowsDataModule` cuts it into batches of windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router_lab.data.corpus import Corpus, Split
from router_lab.data.sources import SOURCES

__all__ = ["SOURCES", "Corpus", "Split", "load_corpus"]


def load_corpus(config: Mapping[str, Any], seq_len: int) -> Corpus:
    """The corpus of a config node `{"name": "stdlib", option: value, …}`, made or from the cache.

    Raises UserError for an unknown name or option, for what the source refuses, and for a split
    that is shorter than one window of seq_len + 1 tokens.
    """
    corpus = SOURCES.build(config, seq_len=seq_len).corpus()
    corpus.check_window(seq_len)
    return corpus
