"""`router-lab bench`: prints tables, writes their figures as JSON, compares with earlier ones."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from router_lab.errors import UserError

if TYPE_CHECKING:
    from router_lab.bench.record import Cell

TITLES = {
    "layer": "A layer, forward and backward, over a dense one of equal FLOPs",
    "step": "A training step over that of the dense model of equal FLOPs (E = 8, k = 2)",
    "growth": "A training step over that of the dense model of equal FLOPs, by experts (k = 2)",
    "routers": "A training step with each router, metrics on, over softmax_topk (E = 8)",
    "harness": "A training step through the harness with everything on, over a bare loop",
    "grid": "Runs side by side, over the seconds that they train",
}


def bench(
    what: str,
    sizes: str | None = None,
    experts: str = "8,32,128",
    rounds: int | None = None,
    quick: bool = False,
    out: str | None = None,
    against: str | None = None,
) -> None:
    """Prints what was measured; writes it as NAME.json if a folder is given.

    Args:
        what: one of TITLES, or `all`.
        sizes: names with commas; all by default, `demo` for growth and routers.
        experts: numbers of experts for `growth`, with commas.
        rounds: turns of each contestant.
        quick: a few rounds, and short runs.
        out: folder for the JSON.
        against: folder of earlier JSON; ratios more than 5% above it are listed.

    Raises UserError for an unknown size, an impossible number or a folder without records.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler counts memory in silence
    from router_lab.bench.record import Record, markdown, worse

    if rounds is not None and rounds < 1:
        raise UserError(f"--rounds {rounds} is not possible; it must be at least 1.")
    earlier = {}
    if against is not None:
        earlier = {path.stem: Record.read(path) for path in sorted(Path(against).glob("*.json"))}
        if not earlier:
            raise UserError(f"--against {against} holds no record; give a folder of `--out`.")
    sentences = []
    for name in TITLES if what == "all" else (what,):
        cells = measure(name, sizes, experts, rounds or (3 if quick else 15), quick)
        record = Record(name, TITLES[name], _command(name, sizes, experts, rounds, quick), cells)
        print(markdown(record), flush=True)
        if name in earlier:
            sentences += worse(record, earlier[name])
        if out is not None:
            print(f"figures: {record.write(Path(out))}\n", flush=True)
    if against is not None:
        print("\n".join(sentences) or f"No ratio is more than 5% above that in {against}.")


def measure(
    name: str, sizes: str | None, experts: str, rounds: int, quick: bool
) -> dict[str, dict[str, Cell]]:
    """The cells of one table, by contestant and size."""
    from router_lab.bench.sizes import LAYERS, SIZES, chosen

    columns: dict[str, dict[str, Cell]] = {}
    if name == "layer":
        from router_lab.bench.layer import measure_layer

        for size, shape in chosen(sizes, LAYERS).items():
            columns[f"{size} ({', '.join(map(str, shape))})"] = measure_layer(shape, rounds)
    elif name == "step":
        from router_lab.bench.step import measure_step

        for size, model in chosen(sizes, SIZES).items():
            columns[size] = measure_step(model, rounds)
    elif name == "growth":
        from router_lab.bench.step import measure_step

        for size, model in chosen(sizes or "demo", SIZES).items():
            for E in numbers(experts):
                columns[f"{size}, E = {E}"] = measure_step(model, rounds, E)
    elif name == "routers":
        from router_lab.bench.routers import measure_routers

        for size, model in chosen(sizes or "demo", SIZES).items():
            columns[size] = measure_routers(model, rounds)
    elif name == "harness":
        from router_lab.bench.harness import measure_harness

        for size, model in chosen(sizes, SIZES).items():
            columns[size] = measure_harness(model, rounds)
    else:
        from router_lab.bench.grid import measure_grid

        runs, seconds = (4, 2) if quick else (20, 5)
        columns[f"{runs} runs of {seconds} s"] = measure_grid(runs, seconds)
    return by_contestant(columns)


def by_contestant(columns: Mapping[str, Mapping[str, Cell]]) -> dict[str, dict[str, Cell]]:
    """cells[contestant][size] of cells[size][contestant]."""
    rows: dict[str, dict[str, Cell]] = {}
    for size, cells in columns.items():
        for contestant, figures in cells.items():
            rows.setdefault(contestant, {})[size] = figures
    return rows


def numbers(text: str) -> list[int]:
    """`8,32` → [8, 32]. Raises UserError for anything else."""
    if not all(part.isdigit() and int(part) >= 2 for part in text.split(",")):
        raise UserError(f"--experts {text} is not possible; give numbers from 2: 8,32,128.")
    return [int(part) for part in text.split(",")]


def _command(name: str, sizes: str | None, experts: str, rounds: int | None, quick: bool) -> str:
    options = ["--sizes", sizes] if sizes else []
    options += ["--experts", experts] if name == "growth" else []
    options += ["--rounds", str(rounds)] if rounds else []
    return shlex.join(["router-lab", "bench", name, *options, *(["--quick"] if quick else [])])
