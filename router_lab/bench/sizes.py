"""The sizes that are measured, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from router_lab.errors import UserError

T = TypeVar("T")


class Size(NamedTuple):
    """A language model and its batch: D width, L layers, B sequences of S tokens, F expert width.

    The dense model of equal FLOPs has width k · F.
    """

    D: int
    L: int
    B: int
    S: int
    F: int


SIZES = {
    "mini": Size(32, 2, 16, 32, 32),
    "small": Size(64, 2, 16, 64, 64),
    "demo": Size(128, 2, 8, 128, 192),
    "mid": Size(128, 2, 16, 128, 128),
    "tiny": Size(128, 4, 32, 256, 256),
}


class LayerSize(NamedTuple):
    """T tokens, D width, F expert width, E experts, k experts per token."""

    T: int
    D: int
    F: int
    E: int
    k: int


LAYERS = {
    "8 of 256": LayerSize(2048, 128, 256, 8, 2),
    "8 of 512": LayerSize(4096, 256, 512, 8, 2),
    "32 of 256": LayerSize(4096, 256, 256, 32, 4),
    "64 of 128": LayerSize(8192, 256, 128, 64, 8),
    "8 of 1024": LayerSize(4096, 512, 1024, 8, 1),
}
"""Experts and their width; the last is Switch's k = 1."""
VOCABULARY, HEADS = 256, 4


def chosen(names: str | None, sizes: Mapping[str, T]) -> dict[str, T]:
    """Those that a comma list names; all for None. Raises UserError for an unknown name."""
    if names is None:
        return dict(sizes)
    for name in names.split(","):
        if name not in sizes:
            raise UserError(f"--sizes {name} is unknown; the sizes are {', '.join(sizes)}.")
    return {name: sizes[name] for name in names.split(",")}
