"""docs/python.md: its example runs, and each of its lines gives what the comment says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "python.md", "exec"), names)
    runs, compared, routing = names["runs"], names["compared"], names["routing"]
    assert len(runs.frame) == 4 and set(runs.frame.arm) == {"switch", "softmax_topk"}
    assert runs.frame.groupby("arm").max_vio.mean().gt(0).all()
    assert "has the lowest loss" in compared.verdict and len(compared.frame) == 2
    assert (tmp_path / "balance.pdf").read_bytes().startswith(b"%PDF")
    assert routing.n_tokens == len("def f(x):\n    return x")
