"""A loose file or an installed package adds to each kind of registry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny
from omegaconf import OmegaConf

from router_lab.commands.main import main
from router_lab.commands.new import TEMPLATE
from router_lab.registry import KINDS

pytestmark = pytest.mark.usefixtures("registry_left_alone")

TINY = tiny("budget=tokens:2k")


FFN_FILE = '''
import torch
from router_lab.model.ffn import FFN
from router_lab.registry import register


@register("{name}")
class Identity(FFN):
    """y = scale · x W. Args: scale: factor."""

    def __init__(self, d_model: int, d_hidden: int, scale: float = 2.0) -> None:
        super().__init__(d_model, d_hidden)
        self.scale = scale
        self.down = torch.nn.Linear(d_model, d_hidden)
        self.up = torch.nn.Linear(d_hidden, d_model)

    def forward(self, x_TD, context):
        return self.scale * self.up(self.down(x_TD)), {{}}
'''


LOSS_FILE = '''
from router_lab.losses import BalanceLoss
from router_lab.registry import register


@register("{name}")
class LargestShare(BalanceLoss):
    """The largest mean probability."""

    def __init__(self, coef: float = 0.5, power: int = 1) -> None:
        super().__init__(coef)
        self.power = power

    def __call__(self, routing, load_E):
        return routing.probs_TE.mean(dim=0).amax() ** self.power
'''


CAPACITY_FILE = '''
from router_lab.capacity import Capacity
from router_lab.registry import register


@register("{name}")
class Tight(Capacity):
    """Half the room."""

    def __init__(self, factor: float = 0.5) -> None:
        super().__init__(factor)
'''


DATA_FILE = '''
from dataclasses import dataclass
import numpy as np
from router_lab.data.corpus import Corpus, CorpusSource, Split
from router_lab.registry import register


@register("{name}")
@dataclass(frozen=True)
class Counting(CorpusSource):
    """0, 1, 2, … Args: letters: V."""

    letters: int = 7

    def corpus(self):
        split = Split(np.arange(5000, dtype=np.uint16) % self.letters, 5000)
        return Corpus("{name}", split, split, self.letters, f"{{self.letters}}")
'''


OPTIM_FILE = '''
from dataclasses import dataclass
from typing import Annotated
import torch
from router_lab.check import ABOVE_0
from router_lab.model.optim import Optimiser
from router_lab.registry import register


@register("{name}")
@dataclass(frozen=True)
class SGD(Optimiser):
    """w -= lr · g."""

    lr: Annotated[float, ABOVE_0] = 0.1
    momentum: float = 0.0

    def build(self, model, fused):
        return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=self.momentum)
'''


OF_EACH_KIND = {
    "router": (TEMPLATE.replace("{cls}", "Mine").replace("{file}", "x.py"), "temperature=0.5"),
    "ffn": (FFN_FILE, "scale=0.5"),
    "loss": (LOSS_FILE, "power=2"),
    "capacity": (CAPACITY_FILE, "factor=0.75"),
    "data": (DATA_FILE, "letters=11"),
    "optim": (OPTIM_FILE, "momentum=0.5"),
}


def short_run(kind: str) -> list[str]:
    return [one for one in TINY if not (kind == "data" and one.startswith("data"))]


def overrides_of(kind: str, name: str, option: str) -> list[str]:
    loss = f"{name}." if kind == "loss" else ""
    return [f"{kind}={name}", f"{kind}.{loss}{option}"]


@pytest.mark.parametrize("kind", OF_EACH_KIND)
def test_a_loose_file_of_each_kind_trains_with_an_option(kind: str, tmp_path: Path) -> None:
    text, option = OF_EACH_KIND[kind]
    plugin = tmp_path / f"loose_{kind}.py"
    plugin.write_text(text.format(name=f"loose_{kind}"))
    main(
        [
            *("train", f"plugins=[{plugin}]", f"out={tmp_path}", *short_run(kind)),
            *overrides_of(kind, f"loose_{kind}", option),
        ]
    )
    (path,) = tmp_path.glob("single/*/config.yaml")
    node = OmegaConf.load(path)[kind]
    node = node[f"loose_{kind}"] if kind == "loss" else node
    key, value = option.split("=")
    assert node[key] == float(value)
    result = json.loads((path.parent / "result.json").read_text())
    if kind == "loss":
        (term,) = result["losses"]
        assert (term["name"], term["power"], term["coef"]) == ("loose_loss", 2, 0.5)
    if kind == "capacity":
        assert result["routing"]["mean"]["dropped"] > 0.1
    if kind == "ffn":
        assert result["ffn"] == "loose_ffn"


@pytest.mark.parametrize("kind", OF_EACH_KIND)
def test_a_wrong_option_of_each_kind_is_refused(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, option = OF_EACH_KIND[kind]
    plugin = tmp_path / f"wrong_{kind}.py"
    plugin.write_text(text.format(name=f"wrong_{kind}"))
    key = option.split("=")[0]
    for wrong, words in {
        f"{key}s=1": f"has no option {key}s; did you mean {key}?",
        f"{key}=many": f"{key}=many is not possible; it must be a ",
    }.items():
        overrides = overrides_of(kind, f"wrong_{kind}", wrong)
        with pytest.raises(SystemExit) as stop:
            main(["train", f"plugins=[{plugin}]", f"out={tmp_path}", *overrides, *short_run(kind)])
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("single/*"))


def test_each_kind_has_its_entry_points(tmp_path: Path) -> None:
    """A package with one class of each kind, and one of the wrong kind."""
    info = tmp_path / "every_kind-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: every_kind\nVersion: 1.0\n")
    # An engine is chosen by an option of the ffn: tests/model/test_engines.py.
    plurals = dict(zip(OF_EACH_KIND, KINDS[: KINDS.index("engines")], strict=True))
    groups = []
    for kind, (text, _) in OF_EACH_KIND.items():
        (tmp_path / f"every_{kind}.py").write_text(text.format(name=f"every_{kind}"))
        groups.append(f"[router_lab.{plurals[kind]}]\nmine = every_{kind}\n")
    groups[1] += "dictionary = collections:OrderedDict\n"
    (info / "entry_points.txt").write_text("\n".join(groups))
    code = """
from router_lab.registry import registries
for kind, registry in registries().items():
    print(kind, [name for name in registry.names() if name.startswith("every_")], registry.problems)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    out = subprocess.check_output(command, env=environment, text=True)
    lines = {line.split()[0]: line for line in out.splitlines()}
    for kind in OF_EACH_KIND:
        assert lines[kind].startswith(f"{kind} ['every_{kind}'] ")
        assert ("must be a class derived from" in lines[kind]) == (kind == "ffn")
