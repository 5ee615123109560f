"""`router-lab board`: TensorBoard on a folder of runs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from router_lab.errors import UserError
from router_lab.report.collect import find_runs
from router_lab.runs.state import read_state
from router_lab.runs.versions import replaced, replaced_note

LINKS = ".newest"


def serve(folder: str, port: int, versions: str = "newest") -> None:
    """Turns this process into TensorBoard, with enough samples that no curve is thinned out.

    Args:
        versions: `newest` leaves out the older versions of an arm; `all` keeps them.

    Raises UserError if the folder is missing or contains no event files.
    """
    path = Path(folder)
    if not path.is_dir():
        wrong = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"{folder} {wrong}; give the folder of a run or of a grid.")
    if next(path.rglob("events.out.tfevents.*"), None) is None:
        raise UserError(f"{folder} contains no event files; give the folder of a run or of a grid.")
    states = [read_state(run) for run in find_runs([path])]
    if versions == "newest" and (older := replaced(states)):
        print(f"{replaced_note(states, older)}; start the board again to see new runs")
        path = _links(path, [state.folder for state in states if state.folder not in older])
    print(f"TensorBoard on {folder}: open http://localhost:{port}  (Ctrl-C ends it)", flush=True)
    samples = "scalars=2000,images=50"
    arguments = ["--logdir", str(path), "--port", str(port), "--samples_per_plugin", samples]
    # Silences advice on optional packages; errors still show.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *arguments])


def _links(folder: Path, runs: Iterable[Path]) -> Path:
    """A folder that links to these runs, and to the layouts of the grids that they are in."""
    links = folder / LINKS
    shutil.rmtree(links, ignore_errors=True)
    for run in runs:
        for source in (run, *run.parent.glob("events.out.tfevents.*")):
            link = links / source.relative_to(folder.resolve())
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(source)
    return links
