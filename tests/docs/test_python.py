"""The example of docs/python.md and the notebook run, and give what they announce."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE, NOTEBOOK = DOCS / "python.md", DOCS / "router_to_figure.ipynb"


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


def test_the_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry_left_alone: None
) -> None:
    """As Jupyter would run it: `%%writefile` is the only magic."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        first, _, rest = "".join(cell["source"]).partition("\n")
        if first.startswith("%%writefile "):
            Path(first.split()[1]).write_text(rest)
        else:
            exec(compile(f"{first}\n{rest}", "notebook", "exec"), names)
    assert set(names["runs"].frame.arm) == {"softmax_topk", "softcap"} and len(names["runs"]) == 4
    assert "has the lowest loss" in names["compared"].verdict
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
    assert names["routing"].n_tokens == len(names["text"])
