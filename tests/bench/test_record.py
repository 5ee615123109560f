"""Records: as JSON, as Markdown, and against earlier ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from router_lab.bench.record import Record, cell, markdown, worse
from router_lab.bench.turns import Spread, Times
from router_lab.errors import UserError

DENSE = cell(Times(0.010, Spread(1, 1, 1)), saved=3.0)


def record(**ratios: float) -> Record:
    ours = {
        size: cell(Times(0.010 * r, Spread(r - 0.01, r, r + 0.02)), saved=4.26)
        for size, r in ratios.items()
    }
    cells = {"dense": dict.fromkeys(ratios, DENSE), "router_lab": ours}
    return Record("step", "A step", "router-lab bench step", cells, {"cpu": "one", "cores": 2})


def table(record: Record) -> str:
    return re.sub(" +", " ", markdown(record))


def test_a_record_comes_back_from_its_file(tmp_path: Path) -> None:
    path = record(mini=1.2).write(tmp_path / "new")
    assert path == tmp_path / "new" / "step.json"
    assert Record.read(path) == record(mini=1.2)
    path.write_text('{"name": "step"}')
    with pytest.raises(UserError, match=r"step\.json is not a record of `router-lab bench`"):
        Record.read(path)


def test_a_table_for_each_figure() -> None:
    text = table(record(mini=1.2, demo=1.1))
    assert "**A step**\n\n`router-lab bench step` (cpu one, cores 2)" in text
    assert "| router_lab | 1.200 (1.190–1.220) | 1.100 (1.090–1.120) |" in text
    assert "| saved for backward, MB | mini | demo |" in text
    assert "| router_lab | 4.3 | 4.3 |" in text


def test_one_table_for_one_size() -> None:
    text = table(record(mini=1.2))
    assert "| mini | ratio, median (quartiles) | ms | saved for backward, MB |" in text
    assert "| router_lab | 1.200 (1.190–1.220) | 12.00 | 4.3 |" in text


def test_only_what_grew_by_more_than_5_percent_is_worse() -> None:
    old = record(mini=1.0, demo=1.0, mid=1.0, tiny=1.0)
    new = record(mini=1.04, demo=1.06, mid=0.5, small=9.0)
    assert worse(new, old) == ["step, router_lab, demo: 1.060 instead of 1.000, 6% worse"]
