"""What a benchmark measured: as JSON, as Markdown, and against an earlier record."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from router_lab.bench.turns import Times
from router_lab.errors import UserError
from router_lab.runs.status import write_json

Cell = dict[str, float]
"""Figures of one contestant at one size; their keys are in FIGURES."""

FIGURES = {
    "ratio": "ratio, median (quartiles)",
    "ms": "ms",
    "seconds": "seconds",
    "saved": "saved for backward, MB",
    "peak": "peak, MB",
    "experts": "experts per token",
}
DIGITS = {"ratio": 3, "ms": 2, "seconds": 2, "saved": 1, "peak": 1, "experts": 2}
WORSE = 1.05
"""A ratio that grew by more than this factor is reported."""


@dataclass(frozen=True)
class Record:
    """The figures of one benchmark, cells[contestant][size].

    Attributes:
        name: of the file, NAME.json.
        title: what is measured, and what the ratios are to.
        command: that measured it.
    """

    name: str
    title: str
    command: str
    cells: Mapping[str, Mapping[str, Cell]]
    machine: Mapping[str, str | int] = field(default_factory=lambda: machine())

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{self.name}.json", asdict(self))
        return folder / f"{self.name}.json"

    @staticmethod
    def read(path: Path) -> Record:
        """Raises UserError for a file that is not a record."""
        try:
            return Record(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} is not a record of `router-lab bench`: {error}.") from None


def machine() -> dict[str, str | int]:
    """The processor, its cores, and the versions that the figures depend on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    versions = {}
    for package in ("torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"cpu": model, "cores": os.cpu_count() or 1, **versions}


def cell(times: Times, **figures: float) -> Cell:
    """The figures of a contestant that took turns."""
    ratio = times.ratio
    return {
        "ratio": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "ms": 1e3 * times.seconds,
        **figures,
    }


def markdown(record: Record) -> str:
    """Its tables: one per figure; a single one where there is one size only."""
    sizes = list(dict.fromkeys(size for row in record.cells.values() for size in row))
    figures = [name for name in FIGURES if any(name in c for c in _all(record))]
    machine = ", ".join(f"{key} {value}" for key, value in record.machine.items())
    parts = [f"**{record.title}**", f"`{record.command}` ({machine})"]
    if len(sizes) == 1:
        head = [FIGURES[name] for name in figures]
        rows = {
            row: [_text(cells.get(sizes[0], {}), name) for name in figures]
            for row, cells in record.cells.items()
        }
        parts.append(_table(sizes[0], head, rows))
    else:
        for name in figures:
            rows = {
                row: [_text(cells.get(size, {}), name) for size in sizes]
                for row, cells in record.cells.items()
            }
            parts.append(_table(FIGURES[name], sizes, rows))
    return "\n\n".join(parts) + "\n"


def _all(record: Record) -> Iterator[Cell]:
    for row in record.cells.values():
        yield from row.values()


def _text(cell: Cell, name: str) -> str:
    if name not in cell:
        return "–"
    digits = DIGITS[name]
    text = f"{cell[name]:.{digits}f}"
    if name == "ratio" and "low" in cell:
        text += f" ({cell['low']:.{digits}f}–{cell['high']:.{digits}f})"
    return text


def _table(corner: str, head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    lines = [[corner, *head], *([row, *texts] for row, texts in rows.items())]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def joined(line: Sequence[str]) -> str:
        padded = [line[0].ljust(widths[0])]
        padded += [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        return "| " + " | ".join(padded) + " |"

    return "\n".join(joined(line) for line in (lines[0], rule, *lines[1:]))


def worse(new: Record, old: Record) -> list[str]:
    """A sentence for each ratio that grew by more than 5%."""
    sentences = []
    for row, cells in new.cells.items():
        for size, figures in cells.items():
            before = old.cells.get(row, {}).get(size, {}).get("ratio")
            now = figures.get("ratio")
            if before and now and now / before > WORSE:
                growth = f"{now / before - 1:.0%}"
                sentences.append(
                    f"{new.name}, {row}, {size}: {now:.3f} instead of {before:.3f}, {growth} worse"
                )
    return sentences
