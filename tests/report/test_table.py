"""The tables, read back."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from fake_runs import ARMS, FakeArm, write_grid, write_status
from rich.console import Console

from router_lab.report.collect import collect
from router_lab.report.comparison import Comparison, compare_arms
from router_lab.report.table import latex, markdown, print_table
from router_lab.runs import text


def comparison_of(root: Path) -> Comparison:
    return compare_arms(collect([root]))


def cells(markdown_table: str) -> list[dict[str, str]]:
    """The first table of a Markdown text as a list of rows."""
    lines = markdown_table.split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def test_a_row_an_arm_with_its_numbers(tmp_path: Path) -> None:
    write_grid(tmp_path)
    write_status(tmp_path, "capacity", 3, "failed", reason="boom")
    compared = comparison_of(tmp_path)
    rows = {row["Arm"]: row for row in cells(markdown(compared))}
    assert set(rows) == {*ARMS, "expert_choice †"} - {"expert_choice"}
    capacity = rows["capacity"]
    assert capacity["Seeds"] == "3 of 4"
    assert re.fullmatch(r"2\.\d{3} ± 0\.\d{3}", capacity["Bits per byte"])
    assert capacity["k used"] == "1.88" and capacity["Dropped"].startswith("6.")
    assert rows["mlp"]["Δ mlp"] == rows["mlp"]["MaxVio"] == "–"
    real = {row.name for row in compared.rows if row.difference and row.difference.real}
    bold = {name.strip(" †") for name, row in rows.items() if row["Δ mlp"].startswith("**")}
    assert real and bold == real


def test_the_markdown_tables_are_narrow(tmp_path: Path) -> None:
    text_of = markdown(comparison_of(write_grid(tmp_path)))
    assert max(len(line) for line in text_of.splitlines() if line.startswith("|")) < 130


def test_columns_that_no_run_has_are_left_out(tmp_path: Path) -> None:
    probed = FakeArm(2.1, probe={"regret_nats": 0.013}, metrics={"domain_nmi": 0.31})
    write_grid(tmp_path / "plain", {"mlp": ARMS["mlp"], "mistral": ARMS["mistral"]})
    write_grid(tmp_path / "probed", {"mlp": ARMS["mlp"], "probed": probed})
    plain = cells(markdown(comparison_of(tmp_path / "plain")))
    assert list(plain[0]) == ["Arm", "Seeds", "Bits per byte", "Δ mlp", "p", "Decision"]
    rows = {row["Arm"]: row for row in cells(markdown(comparison_of(tmp_path / "probed")))}
    assert (rows["probed"]["Regret"], rows["probed"]["Domain NMI"]) == ("0.013", "0.31")
    assert rows["mlp"]["Regret"] == "–"


def test_one_seed_shows_no_interval_and_no_p(tmp_path: Path) -> None:
    rows = cells(markdown(comparison_of(write_grid(tmp_path, seeds=[0]))))
    assert "p" not in rows[0]
    assert not any("±" in cell for row in rows for cell in row.values())


def test_latex_escapes_names_and_balances_braces(tmp_path: Path) -> None:
    code = latex(comparison_of(write_grid(tmp_path, {"mlp": ARMS["mlp"], "a_b&c%": FakeArm(2.0)})))
    assert r"a\_b\&c\%" in code and r"$\pm$" in code
    assert code.count("{") == code.count("}")
    rows = [line for line in code.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows[:3]} == {10}


def test_the_terminal_shows_names_with_brackets_as_they_are(tmp_path: Path) -> None:
    write_grid(tmp_path, {"mlp": ARMS["mlp"], "a[b]": FakeArm(2.0)})
    out = io.StringIO()
    print_table(comparison_of(tmp_path), Console(file=out, width=150))
    assert "a[b]" in out.getvalue() and "Differences are to mlp" in out.getvalue()


def test_a_narrow_terminal_gets_whole_cells_in_several_pieces(tmp_path: Path) -> None:
    out = io.StringIO()
    compared = comparison_of(write_grid(tmp_path))
    print_table(compared, Console(file=out, width=60))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 60 and "…" not in out.getvalue()
    assert sum(line.startswith("Arm ") for line in lines) > 2
    assert all(title in out.getvalue() for title in ("Bits per byte", "k used", "Memory", "Time"))


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1.00k"), (400_000, "400k"), (999_700, "1.00M"),
     (1_234_567, "1.23M"), (6.6e9, "6.60G"), (0.5, "0.500"), (None, ""), (-2500, "−2.50k")],
)  # fmt: skip
def test_si(number: float | None, shown: str) -> None:
    assert text.si(number) == shown


def test_numbers_as_people_read_them() -> None:
    assert text.fixed(-0.0213, 3) == "−0.021"
    assert text.fixed(-0.0001, 2) == "0.00" and text.fixed(0.02, 2, signed=True) == "+0.02"
    assert text.with_interval(2.1, None, 2) == "2.10"
    assert [text.p_value(p) for p in (0.0004, 0.0123, 0.04996, 0.271, None)] == [
        "<0.001",
        "0.012",
        "0.049",
        "0.27",
        "",
    ]
    assert [text.duration(s) for s in (4.2, 45, 200, 3600, 7500, 90_000)] == [
        "4.2 s", "45 s", "3 min 20 s", "1 h", "2 h 5 min", "1 d 1 h"]  # fmt: skip
    assert text.listing(["a", "b", "c"]) == "a, b and c"
    assert text.listing(list("abcdefghij"), 4) == "a, b, c and 7 others"
    assert text.digits_for([0.012, 0.5]) == 3 and text.digits_for([0.0004]) == 5
