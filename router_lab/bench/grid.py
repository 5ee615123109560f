"""A grid of short runs on this machine's cores: wall clock over the seconds that it trains."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from router_lab.bench.record import Cell
from router_lab.launch.pool import cores
from router_lab.runs.status import read_json

OVERRIDES = (
    "model=nano", "data=languages", "data.n_tokens=200000", "trainer.validations=1",
    "match=none", "ffn.d_hidden=64",
)  # fmt: skip
PROGRAM = "from router_lab.commands.main import main; main()"


def measure_grid(n_runs: int, seconds: float) -> dict[str, Cell]:
    """The wall clock of the whole command, over the runs' seconds of training divided by the cores.

    A smaller grid comes first, which makes the corpus.
    """
    with tempfile.TemporaryDirectory() as folder:
        _launch(Path(folder) / "first", 1, 0.1)
        wall = _launch(Path(folder) / "grid", n_runs, seconds)
        results = [read_json(path) for path in Path(folder, "grid").glob("*/*/result.json")]
    if len(results) != n_runs:
        raise RuntimeError(f"{len(results)} of {n_runs} runs finished")
    ideal = sum(result["train"]["seconds"] for result in results) / cores()
    setup = sorted(result["train"]["setup_seconds"] or 0.0 for result in results)
    return {
        "ideal": {"seconds": ideal, "ratio": 1.0},
        "wall clock": {"seconds": wall, "ratio": wall / ideal},
        "first step of a run, median": {"seconds": setup[n_runs // 2]},
        "first step of a run, slowest": {"seconds": setup[-1]},
    }


def _launch(out: Path, n_runs: int, seconds: float) -> float:
    seeds = ",".join(map(str, range(n_runs)))
    arguments = ["train", "-m", f"out={out}", f"budget=seconds:{seconds}", f"seed={seeds}"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments, *OVERRIDES],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the grid failed: {done.stderr[-2000:]}")
    return time.perf_counter() - start
