"""`router-lab probe DIR…`: regret and knock-out of finished runs, into their result.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from router_lab.errors import UserError
from router_lab.experiment import load_run
from router_lab.probe.run import Job
from router_lab.report.collect import find_runs
from router_lab.runs.status import is_finished, read_json, write_json

SHOWN = {
    "regret_nats": "regret",
    "swap_nats": "others",
    "best_choice": "best",
    "best_choice_chance": "chance",
    "beats": "beats",
    "knockout_nats": "knock-out",
    "output_similarity": "alike",
}
LEGEND = (
    "regret: nats that the best other choice of experts would have saved; others: nats that an "
    "average other choice costs; best: how often the router's choice was the best; chance: how "
    "often a random one would be; beats: share of other choices that are worse; knock-out: nats "
    "per token that removing an expert costs, on average; alike: mean cosine of the experts' "
    "outputs"
)


def probe(runs: Sequence[str], tokens: int = 64) -> None:
    """Probes each run, prints a table and stores the numbers under "probe" in its result.json.

    A run that cannot be probed is skipped with the reason. Files, as `runs/first_look/*` names
    some, are left out.

    Args:
        runs: folders of finished runs, or folders that hold such.
        tokens: how many to probe for regret.

    Raises:
        UserError: no run can be probed, or tokens < 1.
    """
    if tokens < 1:
        raise UserError(f"--tokens={tokens} is not possible; give 1 or more.")
    console = Console()
    named = [path for path in map(Path, runs) if path.is_dir()]
    if not named:
        raise UserError(f"{runs[0]} is not a folder; give one of a run or of a grid.")
    folders = [folder for path in named for folder in find_runs([path]) or [path]]
    reasons = []
    for folder in folders:
        try:
            _probe(folder, tokens, console)
        except UserError as error:
            reasons.append(f"{folder.name} is skipped: {error}")
            if len(folders) > 1:
                console.print(reasons[-1], highlight=False, markup=False, soft_wrap=True)
    if len(reasons) == len(folders):
        raise UserError(f"No run can be probed; {reasons[0]}")


def _probe(folder: Path, tokens: int, console: Console) -> None:
    experiment = load_run(folder)
    torch.set_num_threads(experiment.trainer.threads)
    if not is_finished(folder):
        raise UserError(f"{folder} has no result.json; probe a run that is finished.")
    result = read_json(folder / "result.json")
    name = f"{result['arm']}, seed {result['seed']}"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        job = Job(experiment, tokens)
        console.print(f"{name}: {job.describe()}", highlight=False)
        bar = bars.add_task("probing", total=job.total)
        figures = job.run(partial(bars.advance, bar))
    # Read again: the report or another probe may have written meanwhile.
    write_json(folder / "result.json", {**read_json(folder / "result.json"), "probe": figures})
    console.print(table(name, figures))


def table(title: str, probed: Mapping[str, Any]) -> Table:
    shown = Table(title=title, title_justify="left", caption=LEGEND, caption_justify="left")
    shown.add_column("layer")
    for heading in SHOWN.values():
        shown.add_column(heading, justify="right")
    for name, figures in [*probed["layers"].items(), ("mean", probed)]:
        if name == "mean":
            shown.add_section()
        shown.add_row(name, *(f"{figures[key]:.3f}" if key in figures else "–" for key in SHOWN))
    return shown
