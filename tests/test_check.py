"""Types and rules of options, read from a constructor's signature."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from router_lab.check import ABOVE_0, Count, options_of
from router_lab.errors import UserError


@dataclass(frozen=True)
class Documented:
    count: Count = 3
    rate: Annotated[float | None, ABOVE_0] = None
    devices: Count | Literal["auto"] = 1
    names: list[str] | str | None = None
    node: Mapping[str, Any] | None = None
    flag: bool = False


@pytest.mark.parametrize(
    ("name", "good", "wrong", "right"),
    [
        ("count", [1, 7], [0, 1.5, True, "2", None], "a whole number, 1 or more"),
        ("rate", [0.5, 2, None], [0, -1, float("nan"), "x", False], "a number, above 0, or null"),
        ("devices", [2, "auto"], [0, "all", True], "auto or a whole number, 1 or more"),
        ("names", ["a", ["a"], None, 3], [], "text, or null"),
        ("node", [{}, {"a": 1}, None], [3, "a", [1]], "a mapping like {name: value}, or null"),
        ("flag", [True, False], [0, 1, "yes"], "true or false"),
    ],
)
def test_types_and_rules(name: str, good: list[Any], wrong: list[Any], right: str) -> None:
    (option,) = [one for one in options_of(Documented) if one.name == name]
    assert option.right == right
    for value in good:
        assert option.checked(value, "x") == value
    for value in wrong:
        with pytest.raises(UserError, match=f"x=.* is not possible; it must be {re.escape(right)}"):
            option.checked(value, "x")
