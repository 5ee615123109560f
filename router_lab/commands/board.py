"""`router-lab board`: TensorBoard on a folder of runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from router_lab.errors import UserError


def serve(folder: str, port: int) -> None:
    """Turns this process into TensorBoard, with enough samples that no curve is thinned out.

    Raises UserError if the folder is missing or contains no event files.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{folder} does not exist; give the folder of a run or of a grid.")
    if next(path.rglob("events.out.tfevents.*"), None) is None:
        raise UserError(f"{folder} contains no event files; give the folder of a run or of a grid.")
    print(f"TensorBoard on {folder}: open http://localhost:{port}  (Ctrl-C ends it)", flush=True)
    samples = "scalars=2000,images=50"
    arguments = ["--logdir", folder, "--port", str(port), "--samples_per_plugin", samples]
    # Silences advice on optional packages; errors still show.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *arguments])
