"""Data sources, one a file: a dataclass whose fields are its options and whose `corpus()` makes it.

    @SOURCES.register("mine")
    @dataclass(frozen=True)
    class Mine:
        path: str

        def corpus(self) -> Corpus: ...

A field `seq_len` is filled with the model's; it is not an option.
"""

from __future__ import annotations

from typing import Any

from router_lab.registry import Registry

SOURCES: Registry[Any] = Registry("data", "router_lab.data.sources", given=("seq_len",))
