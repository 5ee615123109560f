"""Names of routed layers: `layer3`, and `layer3.expert0` for a router inside one of its experts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def qualified(outer: str, inner: str) -> str:
    """The name of an inner layer within an outer one; `inner` is empty for the outer one itself."""
    return f"{outer}.{inner}" if inner else outer


def within(values: Mapping[str, T], outer: str) -> dict[str, T]:
    """The values of a layer and of those inside it, by their names relative to it."""
    prefix = f"{outer}."
    return {
        name.removeprefix(prefix) if name != outer else "": value
        for name, value in values.items()
        if name == outer or name.startswith(prefix)
    }


def is_inner(name: str) -> bool:
    return "." in name


def outer(name: str) -> str:
    """The layer that an inner one is in; empty for a block's own layer."""
    return name.rpartition(".")[0]


def outermost(name: str) -> str:
    """`layer3` of `layer3.expert0`."""
    return name.partition(".")[0]


def in_order(names: Iterable[str]) -> list[str]:
    """By number: layer2 before layer10, layer0 before layer0.expert1."""

    def key(name: str) -> list[tuple[int, str]]:
        return [(int("".join(filter(str.isdigit, p)) or -1), p) for p in name.split(".")]

    return sorted(names, key=key)
