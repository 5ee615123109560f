"""Where the bytes of a token are unknown, quality is in bits per token wherever it is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_runs import ARMS, write_grid, write_status

from router_lab.commands.compare import compare
from router_lab.commands.status import lines, run_states
from router_lab.report.collect import collect
from router_lab.report.comparison import compare_arms
from router_lab.report.page_data import page_data


@pytest.mark.parametrize("unit", ["byte", "token"])
def test_quality_is_called_what_it_is(
    tmp_path: Path, unit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = {name: ARMS[name] for name in ("mlp", "loss_free", "capacity")}
    for path in write_grid(tmp_path, arms).rglob("result.json"):
        result = json.loads(path.read_text())
        result["data"]["unit"] = unit
        path.write_text(json.dumps(result))
    compare([tmp_path])
    report = tmp_path / "report"
    texts = {
        "terminal": capsys.readouterr().out,
        **{name: (report / name).read_text() for name in ("table.md", "table.tex", "report.html")},
        **{f"{n}.svg": (report / f"{n}.svg").read_text() for n in ("curves", "quality_imbalance")},
    }
    other = {"byte": "token", "token": "byte"}[unit]
    for name, text in texts.items():
        assert f"bits per {unit}" in text.lower(), name
        assert f"bits per {other}" not in text.lower(), name
    (arm, *_) = lines(run_states(tmp_path))
    assert arm.quality.endswith(f" bits/{unit}")
    assert page_data(compare_arms(collect([tmp_path])))["bits"] == f"bits per {unit}"


def test_a_run_says_so_while_it_trains(tmp_path: Path) -> None:
    write_status(tmp_path, "capacity", 0, "running", unit="token", bits_per_byte=5.0)
    ((line,), text) = lines(run_states(tmp_path)), "5.000 bits/token"
    assert line.quality == text and text in line.plain()
