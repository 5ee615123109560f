"""`router-lab compare` from folders to files."""

from __future__ import annotations

import html
import json
import re
import time
from pathlib import Path

import pytest
from fake_runs import ARMS, FakeArm, result_of, write_grid, write_run, write_status
from scipy import stats

from router_lab.commands.compare import command, compare
from router_lab.errors import UserError
from router_lab.report.collect import collect
from router_lab.report.comparison import compare_arms
from router_lab.report.html import page
from router_lab.report.page_data import page_data
from router_lab.report.statistics import seeds_to_decide

FILES = {
    "report.html", "table.md", "table.tex", "table.csv", "runs.csv", "runs.parquet", "pairs.csv",
    *(f"{name}.{ending}" for name in ("quality_imbalance", "curves", "balance")
      for ending in ("png", "svg", "pdf")),
}  # fmt: skip


def test_it_prints_and_writes_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_grid(tmp_path)
    write_status(tmp_path, "capacity", 3, "failed", reason="ValueError: [boom]")
    compare([tmp_path], by="seconds")
    assert {path.name for path in (tmp_path / "report").iterdir()} == FILES
    printed = capsys.readouterr().out
    assert "expert_choice" in printed and "Differences are to mlp (the dense arm)" in printed
    assert "failed – capacity seed 3: ValueError: [boom]" in printed
    compare([tmp_path], out=tmp_path / "elsewhere", baseline="capacity")
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == FILES
    assert "Δ capacity" in (tmp_path / "elsewhere" / "table.md").read_text()
    # Its own report is no run, and comparing again finds the same.
    assert len(collect([tmp_path]).runs) == 3 * len(ARMS)


def test_mistakes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_grid(tmp_path, seeds=[0])
    with pytest.raises(UserError, match="no arm"):
        compare([tmp_path], baseline="nope")
    with pytest.raises(UserError, match="nothing to compare"):
        compare([])
    for size in ("6", "6x", "0x4", "6x400"):
        with pytest.raises(UserError, match=f"--size {size} is no size"):
            compare([tmp_path], size=size)
    with pytest.raises(UserError, match="--drop nope is no column"):
        compare([tmp_path], drop=["nope"])
    assert not (tmp_path / "report").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        compare([tmp_path], out=tmp_path / "file")


def test_the_command_can_be_pasted() -> None:
    made = command(["my runs", "b"], baseline="a (k=1)", by="flops", out=None, metrics=["a", "b"])
    assert made == "router-lab compare 'my runs' b --baseline 'a (k=1)' --by flops --metric a,b"


def test_a_number_can_be_asked_for_as_a_column(tmp_path: Path) -> None:
    arms = {"mlp": ARMS["mlp"], "a": FakeArm(metrics={"cv_load": 0.125}, probe={"beats": 0.75})}
    write_grid(tmp_path, arms)
    compare([tmp_path], columns=["cv_load", "probe.beats", "train.steps"])
    table, _, _ = (tmp_path / "report" / "table.md").read_text().partition("\n\n")
    lines = table.splitlines()
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines}
    titles, found = ([cell.strip() for cell in rows[name]] for name in ("Arm", "a"))
    cells = dict(zip(titles, found, strict=True))
    assert (cells["cv_load"], cells["beats"]) == ("0.125", "0.750")
    assert float(cells["steps"]) > 0
    page_text = (tmp_path / "report" / "report.html").read_text()
    assert "--columns cv_load,probe.beats,train.steps" in page_text
    with pytest.raises(UserError, match=r"--columns cv_lod is no number.*cv_load"):
        compare([tmp_path], columns=["cv_lod"])


def test_five_hundred_runs_take_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = {f"arm{i:02}": FakeArm(2.1 + 0.004 * i, unevenness=0.02 * i) for i in range(50)}
    write_grid(tmp_path, arms, seeds=range(10), points=50)
    start = time.process_time()  # other work on the machine must not decide
    compare([tmp_path])
    assert time.process_time() - start < 20
    assert "500 runs" in (tmp_path / "report" / "report.html").read_text()
    assert (tmp_path / "report" / "report.html").stat().st_size < 2_000_000
    assert "arm49" in capsys.readouterr().out


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    text = page(compare_arms(collect([write_grid(tmp_path)])), "router-lab compare runs")
    outside = re.findall(r"""(?:src|href)=|@import|url\((?!#)|https?://[^"]*""", text)
    assert set(outside) <= {"http://www.w3.org/2000/svg"}  # the name of SVG, not an address
    assert "{{" not in text
    for figure in ("curves", "scatter", "loads"):
        section = text.split(f'<section id="{figure}">')[1].split("</section>")[0]
        assert "router-lab compare runs" in section


def test_the_page_is_aggregated_per_arm(tmp_path: Path) -> None:
    arms = {"mlp": ARMS["mlp"], "loss_free": ARMS["loss_free"]}
    few = page_data(compare_arms(collect([write_grid(tmp_path / "few", arms, seeds=range(2))])))
    many = page_data(
        compare_arms(collect([write_grid(tmp_path / "many", arms, seeds=range(20), points=500)]))
    )
    assert len(json.dumps(many)) < 6 * len(json.dumps(few))
    curve = many["arms"][1]["curves"]["tokens"]["bits_per_byte"]
    assert len(curve["x"]) <= 80 and curve["low"][-1] < curve["mean"][-1] < curve["high"][-1]
    assert many["arms"][0]["scatter"] is None and many["arms"][0]["loads"] is None


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    evil = "a</script><script>alert(1)</script>"
    result = result_of("x", FakeArm(), 0)
    write_run(tmp_path, {**result, "grid": "g", "arm": "b"})
    folder = tmp_path / "g" / "evil"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({**result, "arm": evil}))
    text = page(compare_arms(collect([tmp_path])), "<b>")
    assert "<script>alert" not in text and "<b>" not in text.replace('make("b"', "")


def test_the_page_shows_no_folders_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = result_of("a", FakeArm(), 0)
    made = "router-lab train 'plugins=[/home/me/my_router.py]' data.path=/data/x.txt out=~/runs"
    write_run(tmp_path / "runs", {**result, "command": made})
    write_status(tmp_path / "runs", "b", 0, "failed", reason="No such file: '/home/me/x.txt'")
    monkeypatch.chdir(tmp_path)
    compare([tmp_path / "runs"], out=tmp_path / "report")
    text = html.unescape((tmp_path / "report" / "report.html").read_text())
    assert "router-lab train 'plugins=[my_router.py]' data.path=x.txt out=runs" in text
    assert "router-lab compare runs --out report" in text
    assert "No such file: 'x.txt'" in text
    assert str(tmp_path) not in text and "/home" not in text


def test_seeds_that_would_decide_between_two_of_three_arms(tmp_path: Path) -> None:
    for name, step in (("a", 0.0), ("b", 0.0102), ("c", 1.0)):
        for seed, noise in enumerate((0.01, -0.01, 0.0)):
            bits = 2.0 + step + (noise if name == "b" else 0.001 * noise)
            result = result_of(name, FakeArm(), seed)
            write_run(tmp_path, {**result, "quality": {"bits_per_byte": bits}})
    pairs = compare_arms(collect([tmp_path])).pairs
    assert pairs["a", "c"].real and pairs["b", "c"].real and not pairs["a", "b"].real
    needed, _, _ = seeds_to_decide(pairs["a", "b"], len(pairs))
    assert needed is not None
    # a–b differ by 1.02 standard deviations; the 60% interval ends at 1.02 − 1.0607 / √3 = 0.408 of
    # them, and three pairs are tested.
    power = [
        stats.nct.sf(stats.t.ppf(1 - 0.05 / 6, n - 1), n - 1, 0.408 * n**0.5)
        for n in (needed - 1, needed)
    ]
    assert power[0] < 0.8 < power[1]
