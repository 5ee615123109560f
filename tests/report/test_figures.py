"""Figures: what is drawn, and in which colour."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import ARMS, FakeArm, write_grid
from hypothesis import given, strategies as st
from PIL import Image

from router_lab.report.collect import collect
from router_lab.report.comparison import Comparison, compare_arms
from router_lab.report.figures import write_figures
from router_lab.report.scatter import pareto_front
from router_lab.report.style import FOCUS, in_focus, styles

ALL = ["quality_imbalance", "curves", "balance"]


def comparison_of(root: Path, by: str = "tokens") -> Comparison:
    return compare_arms(collect([root]), by=by)


@pytest.mark.parametrize("by", ["tokens", "seconds"])
def test_every_figure_is_written_and_names_its_arms(tmp_path: Path, by: str) -> None:
    compared = comparison_of(write_grid(tmp_path), by)
    assert write_figures(compared, tmp_path) == ALL
    for name in ALL:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        drawn = (tmp_path / f"{name}.svg").read_text()
        routed = name == "balance"
        arms = [arm for arm in ARMS if not routed or ARMS[arm].router]
        assert all(f">{arm}<" in drawn for arm in arms), name
        for arm in arms:
            if arm != compared.baseline.name:
                assert styles(compared)[arm].colour in drawn
    assert f">{by}<" in (tmp_path / "curves.svg").read_text()


def test_what_has_no_data_is_not_drawn_and_not_left_from_before(tmp_path: Path) -> None:
    write_grid(tmp_path, {"mlp": ARMS["mlp"], "mistral": ARMS["mistral"]})
    (tmp_path / "balance.png").write_text("stale")
    assert write_figures(comparison_of(tmp_path), tmp_path) == ["curves"]
    assert not (tmp_path / "balance.png").exists()


def test_the_same_runs_give_the_same_svg(tmp_path: Path) -> None:
    compared = comparison_of(write_grid(tmp_path, {"capacity": ARMS["capacity"]}, seeds=[0]))
    write_figures(compared, tmp_path)
    first = (tmp_path / "curves.svg").read_bytes()
    write_figures(compared, tmp_path)
    assert (tmp_path / "curves.svg").read_bytes() == first


def test_single_seeds_single_arms_and_many_arms_are_drawn(tmp_path: Path) -> None:
    many = {f"arm{i}": FakeArm(2 + 0.01 * i, unevenness=0.1) for i in range(20)}
    write_grid(tmp_path / "many", many, seeds=[0])
    write_grid(tmp_path / "one", {"loss_free": ARMS["loss_free"]}, seeds=[0])
    for folder in (tmp_path / "many", tmp_path / "one"):
        assert write_figures(comparison_of(folder), folder) == ALL
    drawn = (tmp_path / "many" / "curves.svg").read_text()
    assert ">arm9<" in drawn and ">arm10<" not in drawn and "10 other arms" in drawn


def test_an_arm_looks_the_same_everywhere_and_unlike_the_others(tmp_path: Path) -> None:
    compared = comparison_of(write_grid(tmp_path))
    looks = styles(compared)
    assert len({(look.colour, look.dash) for look in looks.values()}) == len(ARMS)
    assert len({look.colour for look in looks.values()}) == len(ARMS)
    assert looks["mlp"].colour == "#4a4a4a"
    many = {f"arm{i}": FakeArm(2 + 0.01 * i) for i in range(30)}
    crowd = comparison_of(write_grid(tmp_path / "many", many, seeds=[0]))
    focus = [styles(crowd)[row.name] for row in in_focus(crowd)]
    assert len(focus) == FOCUS and len({(s.colour, s.dash) for s in focus}) == FOCUS


POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(POINTS)
def test_the_pareto_front_against_brute_force(points: list[tuple[float, float]]) -> None:
    def beaten(p: tuple[float, float]) -> bool:
        return any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)

    assert pareto_front(points) == sorted({p for p in points if not beaten(p)})


def test_reports_import_nothing_heavy_before_they_draw() -> None:
    code = (
        "import sys, router_lab.commands.compare, router_lab.commands.status;"
        "heavy = {'torch', 'matplotlib', 'pandas', 'scipy', 'lightning', 'rich'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_figures_have_the_size_and_title_asked_for(tmp_path: Path) -> None:
    root = write_grid(tmp_path, {"capacity": ARMS["capacity"]}, seeds=[0])
    compared = compare_arms(collect([root]), title="A title")
    write_figures(compared, tmp_path, (4.0, 3.0))
    assert Image.open(tmp_path / "curves.png").size == (640, 480)
    assert ">A title<" in (tmp_path / "curves.svg").read_text()
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
