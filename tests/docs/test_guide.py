"""The code blocks of docs/writing-a-router.md run as they stand, with short trainings."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from router_lab.commands.main import main
from router_lab.registry import load_plugin
from router_lab.routing import ROUTERS
from router_lab.testing import CHECKS, ContractError, check_router

GUIDE = Path(__file__).parents[2] / "docs" / "writing-a-router.md"
SHORT = "data=languages data.n_tokens=20000 model.seq_len=32 budget=tokens:2k trainer.validations=1"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(GUIDE.read_text()) if kind == language]


def test_the_guide_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    registry_left_alone: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    messages = []
    for kind, text in FENCE.findall(GUIDE.read_text()):
        if kind == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            assert name, "a Python block names its file in the first line"
            Path(name[1]).write_text(text)
        elif kind == "sh":
            for line in text.splitlines():
                command, _, comment = line.partition("  # ")
                messages.append(run(shlex.split(command), fails=comment == "fails"))
    assert "centred fails causality: It declares lookahead='never'" in "".join(messages)
    shown = capsys.readouterr().out
    for words in ("Wrote softcap.py", "c · tanh(x W / c)", "softcap, seed 0", "Δ softmax_topk"):
        assert words in shown
    assert "softcap" in Path("runs/softcap/report/table.md").read_text()


def run(command: list[str], fails: bool) -> str:
    """Carries a command out, in this process where that is faster; its message if it fails."""
    if command[0] == "pytest":  # the plugin itself is tested in test_pytest_plugin.py
        path, cls = command[command.index("--router") + 1].split(":")
        pairs = [command[i + 1].split("=") for i, a in enumerate(command) if a == "--router-option"]
        options = {name: int(value) for name, value in pairs}
        if not fails:
            check_router(getattr(load_plugin(path), cls), **options)
            return ""
        with pytest.raises(ContractError) as failure:
            check_router(getattr(load_plugin(path), cls), **options)
        return str(failure.value)
    assert command[0] == "router-lab" and not fails
    if command[1] == "train":
        command = [*command, *SHORT.split()]
    if "-m" in command:  # the pool of processes wants a process of its own
        code = "import sys; from router_lab.commands.main import main; main(sys.argv[1:])"
        subprocess.run([sys.executable, "-c", code, *command[1:]], check=True)
    else:
        main(command[1:])
    return ""


def test_the_guide_lists_the_checks() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", GUIDE.read_text(), re.MULTILINE)
    assert rows == [(check.name, check.promise) for check in CHECKS]


def test_the_entry_point_of_the_guide_is_the_one_that_is_read() -> None:
    import tomllib

    (block,) = blocks("toml")
    assert tomllib.loads(block)["project"]["entry-points"].keys() == {
        f"router_lab.{ROUTERS.plural}"
    }


def test_the_starting_file_is_as_long_as_the_guide_says() -> None:
    from router_lab.commands.new import TEMPLATE

    said = re.search(r"router of (\d+) lines", GUIDE.read_text())
    assert said and int(said[1]) == len(TEMPLATE.splitlines()) < 40
