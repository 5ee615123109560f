"""`router-lab dev`: the contract and the short run, for each version of a file."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from router_lab.commands import dev
from router_lab.commands.main import main
from router_lab.commands.new import TEMPLATE

TINY = [
    "budget=tokens:2k", "data.n_tokens=20000", "data.alphabet=16", "model.seq_len=32",
    "trainer.validations=2", "trainer.val_windows=4",
]  # fmt: skip


def test_a_broken_version_is_named_and_a_sound_one_is_trained(tmp_path: Path) -> None:
    sound = TEMPLATE.format(name="devised", cls="Devised", file="devised.py")
    file, runs = tmp_path / "devised.py", tmp_path / "runs"
    file.write_text(sound.replace("softmax(dim=-1)", "softmax(dim=0)"))
    output = io.StringIO()
    watch = dev.Dev(file, None, TINY, str(runs), Console(file=output, width=200))

    def save_when_refused() -> None:
        while "devised fails causality" not in output.getvalue():
            time.sleep(0.05)
        file.write_text(sound)

    author = threading.Thread(target=save_when_refused, daemon=True)
    author.start()
    watch.watch(saves=2)
    author.join()
    refused, trained = output.getvalue().split("devised keeps the contract")
    assert "bits per byte" not in refused
    rows = [line.split() for line in trained.splitlines() if " tokens " in line]
    assert [row[0] for row in rows] == ["1,024", "2,048"]
    for row in rows:
        assert float(row[4]) == pytest.approx(float(row[2]) - float(row[3]), abs=2e-4)
    assert "router=softmax_topk,devised" in trained


def test_a_file_without_a_router_is_named(tmp_path: Path) -> None:
    file, output = tmp_path / "empty.py", io.StringIO()
    file.write_text("x = 1\n")
    dev.Dev(file, None, TINY, str(tmp_path), Console(file=output, width=300)).watch(saves=1)
    assert "empty.py registers no router" in output.getvalue()


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["dev", "nowhere.py"])
    assert "nowhere.py does not exist; `router-lab new NAME`" in capsys.readouterr().err
