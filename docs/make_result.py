"""Writes docs/result.md from runs/schema.py and report/rows.py: `python docs/make_result.py`."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from router_lab.report.rows import PairRow, RunRow
from router_lab.runs.schema import Result, Status

PAGE = Path(__file__).with_name("result.md")

INTRODUCTION = """\
# What runs and comparisons write

Written by `python docs/make_result.py` from `router_lab/runs/schema.py` and
`router_lab/report/rows.py`. A run's folder contains

    config.yaml      the composed configuration
    overrides.yaml   what the command line gave
    status.json      how the run does, while it trains
    result.json      what came out; written last, so a run that has it is finished
    final.ckpt       the trained weights: `router_lab.experiment.load_run(folder).model`
    checkpoints/     what an interrupted run resumes from; removed at the end
    events.out.*     TensorBoard

A report reads result.json and status.json and nothing else. In a key, `[]` is an entry of a list.
A key in brackets may be missing.

`router-lab compare` writes runs.csv, the same as runs.parquet if pyarrow is installed
(`pip install 'router-lab[parquet]'`), and pairs.csv. Their columns are listed last.
"""


@dataclass(frozen=True)
class Key:
    """One value of a file.

    Attributes:
        path: `quality.loss`, `curve[].step`.
        kind: its type, without the meaning.
    """

    path: str
    kind: Any
    meaning: str
    required: bool

    @property
    def type_name(self) -> str:
        """As JSON has it: `float or null`, `list`, `object`."""
        kind, args = self.kind, typing.get_args(self.kind)
        if isinstance(kind, types.UnionType):
            return " or ".join(Key("", arg, "", True).type_name for arg in args)
        if typing.get_origin(kind) is Literal:
            return ", ".join(args)
        name = (typing.get_origin(kind) or kind).__name__
        is_object = name == "dict" or typing.is_typeddict(kind)
        return "object" if is_object else name.replace("NoneType", "null")


def keys(kind: Any, prefix: str = "", required: bool = True) -> Iterator[Key]:
    """Every value that a file of this kind holds, nested ones after their parent's place."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        there = required and name in kind.__required_keys__
        while typing.get_origin(hint) is NotRequired:
            (hint,) = typing.get_args(hint)
        meaning = ""
        if typing.get_origin(hint) is Annotated:
            hint, meaning = typing.get_args(hint)
        path = f"{prefix}{name}"
        inner = [arg for arg in (hint, *typing.get_args(hint)) if typing.is_typeddict(arg)]
        if not inner or meaning:
            yield Key(path, hint, meaning, there)
        if inner:
            is_list = typing.get_origin(hint) is list
            yield from keys(inner[0], f"{path}[]." if is_list else f"{path}.", there)


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE}.")


def page() -> str:
    parts = [INTRODUCTION]
    kinds = {"result.json": Result, "status.json": Status, "runs.csv": RunRow, "pairs.csv": PairRow}
    for title, kind in kinds.items():
        story = re.sub(r"\s+", " ", kind.__doc__ or "").strip()
        parts.append(f"## {title}\n\n{story}\n\n{table(kind)}")
    return "\n".join(parts)


def table(kind: Any) -> str:
    lines = ["| Key | Type | Meaning |", "|---|---|---|"]
    for key in keys(kind):
        name = key.path if key.required or kind is Status else f"({key.path})"
        lines.append(f"| `{name}` | {key.type_name} | {key.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
