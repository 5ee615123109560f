"""`router-lab bench` at sizes of milliseconds. Nothing here depends on how long anything takes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from router_lab.bench import sizes
from router_lab.bench.sizes import LayerSize, Size
from router_lab.commands.main import main
from router_lab.routing import ROUTERS


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "SIZES", {"demo": Size(16, 1, 2, 16, 8)})
    monkeypatch.setattr(
        sizes, "LAYERS", {"two": LayerSize(32, 8, 8, 4, 2), "one": LayerSize(32, 8, 8, 4, 1)}
    )


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    main(["bench", *arguments, "--rounds", "1", "--out", str(folder)])
    record: dict[str, Any] = json.loads((folder / f"{arguments[0]}.json").read_text())
    for cells in record["cells"].values():
        for figures in cells.values():
            assert all(math.isfinite(value) and value >= 0 for value in figures.values())
    return record


@pytest.mark.parametrize("what", ["layer", "step"])
def test_ours_and_others_stand_beside_the_dense_one(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(tmp_path, what)
    rows = list(record["cells"])
    assert rows[:2] == ["dense", "router_lab"]
    assert {"module list", "article's loop"} < set(rows)
    for cells in record["cells"].values():
        for figures in cells.values():
            assert {"ratio", "low", "high", "ms", "saved", "peak"} == figures.keys()
            assert figures["peak"] > 0 and figures["saved"] > 0
    assert record["command"] == f"router-lab bench {what} --rounds 1"
    assert "| router_lab" in capsys.readouterr().out


def test_growth_has_a_column_for_each_number_of_experts(tmp_path: Path) -> None:
    record = run(tmp_path, "growth", "--experts", "2,4")
    assert list(record["cells"]["router_lab"]) == ["demo, E = 2", "demo, E = 4"]


def test_every_router_is_timed(tmp_path: Path) -> None:
    cells = run(tmp_path, "routers")["cells"]
    assert set(ROUTERS.names()) <= cells.keys()
    assert next(iter(cells)) == "softmax_topk"
    assert cells["softmax_topk"]["demo"]["experts"] == 2
    assert cells["switch"]["demo"]["experts"] <= 1


def test_the_harness_takes_turns_with_a_bare_loop(tmp_path: Path) -> None:
    cells = run(tmp_path, "harness")["cells"]
    assert cells.keys() == {"bare loop", "harness"}
    assert cells["harness"]["demo"]["ratio"] > 0


def test_what_got_worse_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "growth", "--experts", "2")
    path = tmp_path / "growth.json"
    record = json.loads(path.read_text())
    record["cells"]["router_lab"]["demo, E = 2"]["ratio"] = 1e-6
    path.write_text(json.dumps(record))
    capsys.readouterr()
    main(["bench", "growth", "--experts", "2", "--rounds", "1", "--against", str(tmp_path)])
    assert "growth, router_lab, demo, E = 2:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["step", "--sizes", "huge"], "--sizes huge is unknown; the sizes are demo."),
        (["growth", "--experts", "8,x"], "--experts 8,x is not possible; give numbers from 2"),
        (["step", "--rounds", "0"], "--rounds 0 is not possible; it must be at least 1."),
        (["step", "--against", "nowhere"], "--against nowhere holds no record"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err
