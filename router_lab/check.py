"""The options of a constructor: their types, defaults and values, read from its signature.

    def __init__(self, k: int = 2, order: Literal["first", "last"] = "first"): ...
    lr: Annotated[float, ABOVE_0] = 1e-3

A type that is neither a scalar nor a mapping is left to the constructor, unless a `Rule` says more.
"""

from __future__ import annotations

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from router_lab.errors import UserError

NULL = type(None)
WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Mapping: "a mapping like {name: value}",
}
"""The types that are checked, in words."""


@dataclass(frozen=True)
class Rule:
    """Which values of its type an option may have, and how to say so."""

    right: str
    holds: Callable[[Any], bool]


def at_least(least: int) -> Rule:
    return Rule(f"{least} or more", lambda v: least <= v < math.inf)


ABOVE_0 = Rule("above 0", lambda v: 0 < v < math.inf)
NOT_NEGATIVE = at_least(0)
SHARE = Rule("0 to 1", lambda v: 0 <= v <= 1)
BELOW_1 = Rule("0 or more and below 1", lambda v: 0 <= v < 1)
Count = Annotated[int, at_least(1)]
"""A whole number of things that there must be at least one of."""
Amount = Annotated[float, NOT_NEGATIVE]
"""A weight or a size: 0 or more."""


@dataclass(frozen=True)
class Option:
    """One option of a constructor.

    Attributes:
        types: what its value may be an instance of, None's type included.
        default: as in the signature; `inspect.Parameter.empty` if it is required.
        choices: values that may be given by name (of a Literal).
        rule: what else a value must keep; null is exempt.
    """

    name: str
    types: tuple[Any, ...]
    default: Any = None
    choices: tuple[Any, ...] = ()
    rule: Rule | None = None

    @classmethod
    def of(cls, name: str, hint: Any, default: Any = None) -> Option:
        kinds: list[Any] = []
        choices: list[Any] = []
        rule = None
        for part in _parts(hint):
            if isinstance(part, Rule):
                rule = part
            elif typing.get_origin(part) is Literal:
                choices += typing.get_args(part)
            else:
                kinds.append(typing.get_origin(part) or part)
        return cls(name, tuple(kinds), default, tuple(choices), rule)

    def with_default(self, default: Any) -> Option:
        """The same with another default, which then is a possible value."""
        null = (NULL,) if default is None and NULL not in self.types else ()
        return replace(self, default=default, types=self.types + null)

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def right(self) -> str:
        """What a value may be, in words: `a whole number, 1 or more`."""
        words = [WORDS[kind] for kind in self.types if kind in WORDS]
        if self.choices:
            listed = ", ".join(map(str, self.choices))
            words.insert(0, listed if words or len(self.choices) == 1 else f"one of {listed}")
        said = " or ".join(words)
        if self.rule:
            said = f"{said}, {self.rule.right}" if said else self.rule.right
        return f"{said}, or null" if said and NULL in self.types else said or "null"

    @property
    def type_text(self) -> str:
        """Its type, short: `int or null, 1 or more`."""
        names = [*map(str, self.choices)]
        for kind in self.types:
            names.append("null" if kind is NULL else getattr(kind, "__name__", "any").lower())
        joined = (", " if self.choices else " or ").join(names)
        return f"{joined}, {self.rule.right}" if self.rule else joined

    def checked(self, value: Any, where: str) -> Any:
        """The value in the option's type: an int passes for a float, nothing else is converted.

        Raises:
            UserError: it is of another type, or none of the choices, or breaks the rule.
        """
        if type(value) is int and float in self.types and int not in self.types:
            value = float(value)
        if not self._holds(value):
            raise UserError(f"{where}={shown(value)} is not possible; it must be {self.right}.")
        return value

    def _holds(self, value: Any) -> bool:
        if value is None and NULL in self.types:
            return True
        if any(value is choice or value == choice for choice in self.choices):
            return not isinstance(value, bool)
        # Python takes True for an int; a configuration should not.
        kinds = tuple(k for k in self.types if k is bool or not isinstance(value, bool))
        opaque = any(kind not in WORDS and kind is not NULL for kind in self.types)
        typed = opaque or isinstance(value, kinds)
        return typed and (self.rule is None or self.rule.holds(value))

    def hydra_type(self) -> Any:
        """The nearest type that OmegaConf can check; `checked` does the rest."""
        kinds = {kind for kind in self.types if kind is not NULL} | set(map(type, self.choices))
        if len(kinds) != 1 or not kinds <= {int, float, bool, str}:
            return Any
        (kind,) = kinds
        return kind | None if NULL in self.types else kind


def _parts(hint: Any) -> Iterable[Any]:
    """The members of a union, the rules of an Annotated type and what it is about."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        inner, *rules = typing.get_args(hint)
        yield from _parts(inner)
        yield from (rule for rule in rules if isinstance(rule, Rule))
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from _parts(member)
    else:
        yield hint


def options_of(cls: type) -> list[Option]:
    """The parameters of a class's constructor, in order."""
    init_class = next(base for base in cls.__mro__ if "__init__" in vars(base))
    # Of a dataclass, each field's type is read in the module of the class that has it.
    dataclass_init = "__dataclass_fields__" in vars(init_class)
    source: Any = cls if dataclass_init else cls.__init__  # type: ignore[misc]
    hints = typing.get_type_hints(source, include_extras=True)
    return [
        Option.of(parameter.name, hints.get(parameter.name, Any), parameter.default)
        for parameter in inspect.signature(cls).parameters.values()
    ]


def shown(value: Any) -> str:
    """A value as one would write it on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    return "null" if value is None else str(value)


def choices_text(
    wrong: object, choices: Iterable[str], everything: str = "", what: str = "the choices are"
) -> str:
    """Suggestions for an unknown name: the nearest ones, or else all.

    Args:
        everything: how to see all names; if empty, they are always listed.
    """
    choices = list(choices)
    near = difflib.get_close_matches(str(wrong), choices, n=3)
    listed = f"{what} {', '.join(choices) or 'none'}"
    if not near:
        return listed
    return f"did you mean {' or '.join(near)}? {everything or listed[0].upper() + listed[1:]}"
