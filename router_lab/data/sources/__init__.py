"""Sources of data, one per file:

@register("mine")
@dataclass(frozen=True)
class Mine(CorpusSource):
    path: str

    def corpus(self) -> Corpus: ...
"""

from __future__ import annotations

from router_lab.data.corpus import CorpusSource
from router_lab.registry import Registry

SOURCES: Registry[CorpusSource] = Registry(
    "data", CorpusSource, "router_lab.data.sources", "data", given=("seq_len",)
)
