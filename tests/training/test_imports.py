"""What a process that trains loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helpers import tiny

EXTRAS = ("transformers", "datasets", "tokenizers", "optuna", "submitit", "pandas", "pytest")


def test_a_run_imports_no_optional_extra(tmp_path: Path) -> None:
    program = (
        "import sys; from router_lab.commands.main import main\n"
        "main(sys.argv[1:])\n"
        f"print('extras:', [name for name in {EXTRAS!r} if name in sys.modules])"
    )
    arguments = ["train", f"out={tmp_path}", *tiny("budget=tokens:256")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    assert "extras: []" in done.stdout
