"""Any metric compared: tests, margins, the verdict on balance and specialisation, columns, rows."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from fake_runs import FakeArm, result_of, write_run
from pyarrow import parquet
from scipy import stats
from statsmodels.stats.multitest import multipletests

from router_lab.errors import UserError
from router_lab.report.collect import collect
from router_lab.report.comparison import Comparison, compare_arms
from router_lab.report.metric import DOMAIN_NMI, MAX_VIO
from router_lab.report.notes import notes
from router_lab.report.rows import PairRow, RunRow, csv_text, pair_rows, run_rows, write_parquet
from router_lab.report.table import latex, markdown
from router_lab.report.verdict import verdict

NMI = {"even": (0.30, 0.31, 0.30), "skewed": (0.10, 0.11, 0.12), "random": (0.001, 0.0, 0.001)}
VIO = {"even": (0.10, 0.12, 0.11), "skewed": (0.90, 0.95, 0.97), "random": (0.11, 0.11, 0.12)}


def write(root: Path) -> Path:
    """A dense arm and three routed ones with the balance and specialisation above."""
    for name in ("mlp", *NMI):
        for seed in range(3):
            arm = FakeArm(2.2, router=None, ffn="mlp") if name == "mlp" else FakeArm(2.1)
            result = result_of(name, arm, seed)
            result["fingerprint"] = name
            if name != "mlp":
                mean = result["routing"]["mean"]
                mean |= {"max_vio": VIO[name][seed], "domain_nmi": NMI[name][seed]}
                mean |= {"domain_purity": 0.25 + NMI[name][seed], "domain_purity_chance": 0.25}
            write_run(root, result)
    return root


def compared(root: Path, **options: Any) -> Comparison:
    return compare_arms(collect([write(root)]), **options)


def table_of(text: str, title: str) -> dict[str, dict[str, str]]:
    """The rows, by arm, of the Markdown table that has a column of this title."""
    for part in text.split("\n\n"):
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.split("\n")]
        if title in lines[0]:
            return {row[0]: dict(zip(lines[0], row, strict=True)) for row in lines[2:]}
    raise AssertionError(f"no table has {title}")


def test_a_metric_is_tested_against_the_first_arm_that_has_it(tmp_path: Path) -> None:
    comparison = compared(tmp_path, metrics=["max_vio"], margin="0.01,max_vio=0.1")
    metric = comparison.metrics[MAX_VIO]
    assert metric.reference == "even"  # the baseline is dense
    difference = metric.to_reference("skewed")
    assert difference is not None and difference.p is not None
    pairs = [("skewed", "even"), ("skewed", "random"), ("random", "even")]
    p = [stats.ttest_rel(VIO[one], VIO[other]).pvalue for one, other in pairs]
    assert difference.p == pytest.approx(p[0])
    assert difference.p_holm == pytest.approx(multipletests(p, method="holm")[1][0])
    decisions = {pair: d.decision for pair, d in metric.pairs.items()}
    assert decisions[("random", "skewed")] == decisions[("even", "skewed")] == "different"
    assert decisions[("even", "random")] == "equivalent"
    rows = table_of(markdown(comparison), "Δ even")
    assert rows["skewed"]["Decision"] == "different" and rows["skewed"]["Δ even"].startswith("**+")
    assert rows["random"]["Decision"] == "equivalent" and rows["mlp"]["max_vio"] == "–"


def test_the_main_table_marks_balance_and_specialisation_that_differ(tmp_path: Path) -> None:
    comparison = compared(tmp_path)
    rows = table_of(markdown(comparison), "MaxVio")
    assert rows["skewed"]["MaxVio"] == "**0.94**" and rows["random"]["MaxVio"] == "0.11"
    assert rows["random"]["Domain NMI"] == "**0.00**" and rows["even"]["Domain NMI"] == "0.30"
    assert any("in bold differs from that of even" in note for note in notes(comparison))


def test_the_verdict_speaks_of_balance_and_specialisation_with_their_tests(tmp_path: Path) -> None:
    text = "\n".join(verdict(compared(tmp_path)).reasons)
    balance = re.search("Balance: .*", text)
    special = re.search("Specialisation: .*", text)
    assert balance and "in even (the most balanced arm)" in balance[0]
    assert "It is more balanced than skewed (p = 0.0" in balance[0]
    assert "against random this is not decided yet" in balance[0]
    assert special and "even has the highest domain NMI (0.30)" in special[0]
    assert re.search(
        r"It is more specialised than (skewed and random|random and skewed)", special[0]
    )
    assert "Domain purity is above chance in" in special[0]
    above = special[0].split("above chance in")[1]
    assert "even" in above and "skewed" in above and "random" not in above


def test_speed_and_cost_can_be_compared_too(tmp_path: Path) -> None:
    comparison = compared(tmp_path, metrics=["tokens_per_second", "params.total"])
    rows = table_of(markdown(comparison), "tokens_per_second")
    assert re.fullmatch(r"\d{4} ± \d+", rows["even"]["tokens_per_second"])
    assert comparison.metrics["train.tokens_per_second"].reference == "mlp"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metrics": ["max_voi"]}, r"--metric max_voi is no number of these runs: .*max_vio"),
        ({"margin": "wide"}, "--margin wide is not a margin"),
        ({"margin": "-0.1"}, "--margin -0.1 is not a margin"),
        ({"margin": "0.01,beats=0.1"}, "--margin is for beats, not compared"),
        ({"order": "size"}, "--order size is unknown: use quality, grid and name"),
        ({"only": ["max_vio", "bits"]}, "--only bits is no column: there is seeds"),
        ({"drop": ["dead"]}, "--drop dead is no column: there is .*dead_experts"),
    ],
)  # fmt: skip
def test_wrong_options_are_sentences(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        markdown(compared(tmp_path, **options))


def test_columns_are_chosen_and_dropped_by_name_and_arms_ordered(tmp_path: Path) -> None:
    only = compared(tmp_path, only=["max_vio", "bits_per_byte"], order="name")
    first = markdown(only).split("\n\n")[0].splitlines()
    assert first[0] == "| Arm | MaxVio | Bits per byte |"
    assert [line.split("|")[1].strip() for line in first[2:]] == ["even", "mlp", "random", "skewed"]
    dropped = compared(tmp_path, drop=["dead_experts", "dropped", "seeds"], order="grid")
    head, _, *rows = markdown(dropped).split("\n\n")[0].splitlines()
    assert "Dead" not in head and "Dropped" not in head and "Seeds" not in head and "MaxVio" in head
    names = [row.split("|")[1].strip() for row in rows]
    assert names == [row.name for row in dropped.in_grid_order]


def test_latex_has_caption_label_and_the_best_in_bold(tmp_path: Path) -> None:
    code = latex(compared(tmp_path, title="Two & three", metrics=["max_vio"]))
    assert r"\caption{Two \& three: means over 3 seeds with 95\% intervals." in code
    assert r"\label{tab:two-three-worth}" in code and r"\label{tab:two-three-max-vio}" in code
    assert code.count(r"\begin{table}") == code.count(r"\end{table}") == 3
    (line,) = [
        line for line in code.split(r"\end{table}")[0].splitlines() if line.startswith("even")
    ]
    assert r"\textbf{0.30}" in line and r"\textbf{0.11}" in line
    assert "0.94$^*$" in code


def test_a_row_per_seed_as_csv_and_parquet(tmp_path: Path) -> None:
    comparison = compared(tmp_path)
    rows = run_rows(comparison)
    read = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert len(read) == 12 and list(read[0])[: len(RunRow.__annotations__)] == [
        *RunRow.__annotations__
    ]
    (row,) = [row for row in read if (row["arm"], row["seed"]) == ("skewed", "2")]
    assert float(row["routing.mean.max_vio"]) == 0.97 and row["baseline"] == "False"
    assert next(row for row in read if row["arm"] == "mlp")["routing.mean.max_vio"] == ""
    assert write_parquet(rows, tmp_path / "runs.parquet")
    table = parquet.read_table(tmp_path / "runs.parquet")
    assert table.column_names == list(read[0]) and table.to_pylist()[0]["arm"] == rows[0]["arm"]


def test_a_row_per_pair_with_the_seeds_that_would_decide(tmp_path: Path) -> None:
    rows = pair_rows(compared(tmp_path))
    assert {row["metric"] for row in rows} == {"quality.bits_per_byte", MAX_VIO, DOMAIN_NMI}
    header = csv_text(rows).splitlines()[0]
    assert header.split(",") == [*PairRow.__annotations__]
    for row in rows:
        assert row["difference"] <= 0
        assert row["decision"] == "undecided" or row["seeds_to_decide"] is None
    assert any(row["seeds_to_decide"] for row in rows)
