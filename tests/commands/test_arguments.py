"""The arguments of train and plan: what would be ignored is refused; grid files are read whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore

from router_lab.commands.arguments import checked, grid_of
from router_lab.errors import UserError

GRID = "grid:\n  seeds: [0, 1]\n  arms:\n    a: [router=switch]\n"


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        checked(arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("+n_experts=16", "There is no option n_experts;"),
        ("+foo.bar=1", "There is no option foo.bar; the choices are arm, budget, capacity,"),
        ("sed=1", "There is no option sed; did you mean seed?"),
        ("switch", "switch is not an override; write key=value, such as router=switch."),
        ("--router", "There is no flag --router; options are written without dashes: router=…."),
        ("--router=gshard", "options are written without dashes: router=gshard."),
        ("--mulitrun", "There is no flag --mulitrun; did you mean --multirun?"),
        ("capacity=1.25", "capacity=1.25 is not possible; the factor is capacity.factor"),
        ("budget=tokens=200k", "write budget=tokens:200k."),
        ("grid.seeds=[0]", "grid.seeds=[0] has no effect without a grid; add grid=NAME."),
        ("grid=nowhere.yaml", "grid=nowhere.yaml: there is no such file."),
    ],
)
def test_what_would_be_ignored_is_refused(given: str, sentence: str) -> None:
    assert sentence in refusal("seed=3", given)


def test_flags_come_first_and_values_stay_with_them() -> None:
    arguments = ["seed=0,1", "-m", "--config-dir", "here", "router.k=1", "--cfg=job"]
    flags, overrides = checked(arguments)
    assert flags == ["-m", "--config-dir", "here", "--cfg", "job"]
    assert overrides == ["seed=0,1", "router.k=1"]


@pytest.mark.parametrize(
    "content",
    [
        GRID,
        "# @package _global_\nhydra: {mode: MULTIRUN}\n" + GRID,
        "seeds: [0, 1]\narms: {a: [router=switch]}\n",
    ],
)
def test_a_grid_file_needs_no_header_and_no_mode(content: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    assert grid_of(path)["grid"] == {"seeds": [0, 1], "arms": {"a": ["router=switch"]}}
    flags, overrides = checked([f"grid={path}"])
    assert (flags, overrides) == (["--multirun"], ["grid=file/mine"])
    stored: Any = ConfigStore.instance().load("grid/file/mine.yaml")
    assert stored.package == "_global_"
    assert stored.node.grid.name == "mine"


def test_a_grid_of_a_config_dir_is_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "mine.yaml").write_text(GRID)
    _, overrides = checked(["--config-dir", str(tmp_path), "grid=mine"])
    assert overrides == ["grid=file/mine"]
    flags, overrides = checked(["grid=first_look"])  # one of ours stays a name
    assert (flags, overrides) == (["--multirun"], ["grid=first_look"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("grid: [a\nb: : c", "mine.yaml is not YAML: "),
        ("", "mine.yaml is not a grid"),
        ("grid: 3", "grid must be a mapping; it is 3."),
        ("seeds: [1]\n" + GRID, "seeds has no effect there; write it under grid:."),
        ("budget: tokens:3k\n" + GRID, "write it in grid.common, as budget=…."),
    ],
)
def test_a_broken_grid_file_is_one_sentence(content: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    message = refusal(f"grid={path}")
    assert sentence in message and "\n" not in message
