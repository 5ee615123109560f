"""Answers that a person waits for come without the imports that cost seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from router_lab import __version__

HEAVY = ("lightning", "torch._dynamo", "transformers", "matplotlib", "torchmetrics")
SAYS = {
    "--help": "train a run or a grid",
    "train --help": "grid: first_look",
    "list": "loss_free",
    "explain switch": "jitter",
}


@pytest.mark.parametrize("command", SAYS)
def test_help_is_quick(command: str) -> None:
    program = (
        "import sys; from router_lab.commands.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command.split()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert SAYS[command] in done.stdout
    assert "heavy: []" in done.stdout


def test_a_closed_pipe_is_no_error() -> None:
    code = "from router_lab.commands.main import main; main(['train', '--help'])"
    program = [sys.executable, "-c", code]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_the_package_is_a_program_that_knows_its_version() -> None:
    command = [sys.executable, "-m", "router_lab", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"router-lab {__version__}\n"
