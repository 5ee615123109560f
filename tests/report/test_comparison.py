"""Arms from runs, and arms against a baseline."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import ARMS, FakeArm, result_of, write_grid, write_run, write_status

from router_lab.errors import UserError
from router_lab.report.collect import Collection, Run, collect
from router_lab.report.comparison import QUALITY, Comparison, compare_arms
from router_lab.report.curves import band, fall_at_the_end, loads
from router_lab.report.notes import notes
from router_lab.report.verdict import verdict


def comparison_of(root: Path, **options: Any) -> Comparison:
    return compare_arms(collect([root]), **options)


def write_qualities(root: Path, table: dict[str, list[float]]) -> None:
    """Runs with just these bits per byte, by arm and seed."""
    for name, qualities in table.items():
        for seed, quality in enumerate(qualities):
            result = result_of(name, FakeArm(), seed)
            write_run(root, {**result, "quality": {"bits_per_byte": quality}})


def test_the_best_arm_comes_first_and_the_grids_order_is_kept(tmp_path: Path) -> None:
    compared = comparison_of(write_grid(tmp_path))
    assert [row.name for row in compared.in_grid_order] == list(ARMS)
    means = [row.quality.mean for row in compared.rows]
    assert means == sorted(means) and compared.rows[0].name == "expert_choice"


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    # A seed's luck of 0.5 drowns the arms' means, but not their differences: −0.1, −0.1, −0.13.
    write_qualities(tmp_path, {"mlp": [2.0, 2.5, 3.0], "a": [1.9, 2.4, 2.87]})
    row = comparison_of(tmp_path).rows[0]
    assert row.difference is not None and row.difference.half is not None
    assert row.difference.mean == pytest.approx(-0.11)
    assert row.difference.half == pytest.approx(4.3027 * 0.017320508 / 3**0.5, rel=1e-4)
    assert row.quality.half is not None and row.quality.half > 1.0


def test_p_values_are_corrected_for_all_pairs_of_arms(tmp_path: Path) -> None:
    compared = comparison_of(write_grid(tmp_path))
    differences = [row.difference for row in compared.rows if row.difference]
    assert len(differences) == len(ARMS) - 1
    smallest = min(compared.pairs.values(), key=lambda d: d.p if d.p is not None else 1)
    assert smallest.p is not None
    assert smallest.p_holm == pytest.approx(smallest.p * len(ARMS) * (len(ARMS) - 1) / 2)


def test_the_baseline_is_the_dense_arm_or_the_first_or_as_asked(tmp_path: Path) -> None:
    write_grid(tmp_path / "a")
    write_grid(tmp_path / "b", {name: ARMS[name] for name in ("noisy_topk", "capacity")})
    dense, first = comparison_of(tmp_path / "a"), comparison_of(tmp_path / "b")
    assert (dense.baseline.name, dense.baseline_why) == ("mlp", "the dense arm")
    assert (first.baseline.name, first.baseline_why) == ("noisy_topk", "the first arm of the grid")
    asked = comparison_of(tmp_path / "a", baseline="loss_free")
    assert asked.baseline.name == "loss_free" and asked.baseline.difference is None


def test_mistakes_are_refused_in_one_sentence(tmp_path: Path) -> None:
    write_grid(tmp_path / "runs", seeds=[0])
    write_status(tmp_path / "none", "mlp", 0, "failed", reason="boom")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"--baseline nope is no arm.*mlp, mistral, softmax_topk"):
        comparison_of(tmp_path / "runs", baseline="nope")
    with pytest.raises(UserError, match="--by epochs is unknown: use tokens, flops and seconds"):
        comparison_of(tmp_path / "runs", by="epochs")
    with pytest.raises(UserError, match=r"no finished run \(failed\)"):
        comparison_of(tmp_path / "none")
    with pytest.raises(UserError, match=r"no finished run \(no run has started\)"):
        comparison_of(tmp_path / "empty")


def test_one_name_with_two_configurations_is_two_arms(tmp_path: Path) -> None:
    for k in (1, 2):
        for seed in range(2):
            result = result_of("softmax_topk", FakeArm(k=k), seed)
            result["overrides"].append(f"router.k={k}")
            write_run(tmp_path, result)
    both = collect([tmp_path], versions="all")
    names = {row.name for row in compare_arms(both).rows}
    assert names == {"softmax_topk (router.k=1)", "softmax_topk (router.k=2)"}
    with pytest.raises(UserError, match="the name of several arms: take one of 'softmax_topk"):
        compare_arms(both, baseline="softmax_topk")
    asked = compare_arms(both, baseline="softmax_topk (router.k=2)")
    assert asked.baseline.arm.mean("routing.mean.k_used") == 2


def test_an_older_version_of_an_arm_is_left_out_and_named(tmp_path: Path) -> None:
    for started, k in (("2026-11-24T10:00", 2), ("2026-11-24T11:00", 1)):
        for seed in range(2):
            folder = write_run(tmp_path, result_of("softmax_topk", FakeArm(k=k), seed))
            (folder / "status.json").write_text(f'{{"started": "{started}"}}')
    compared = comparison_of(tmp_path)
    assert [row.name for row in compared.rows] == ["softmax_topk"]
    assert compared.rows[0].arm.mean("routing.mean.k_used") == 1
    newest = str(compared.rows[0].arm.first["fingerprint"])[:8]
    reasons = {(run.seed, run.state, run.reason) for run in compared.left_out}
    said = f"replaced by {newest}; --versions all shows both"
    assert reasons == {(0, "older version", said), (1, "older version", said)}


def test_arms_that_start_in_the_same_second_keep_their_order(tmp_path: Path) -> None:
    for order, name in enumerate(["z", "a", "m"]):
        folder = write_run(tmp_path, result_of(name, FakeArm(), 0))
        (folder / "config.yaml").write_text("")
        os.utime(folder / "config.yaml", (order, 1000 + order))
    compared = comparison_of(tmp_path)
    assert [row.name for row in compared.in_grid_order] == ["z", "a", "m"]


def test_grids_together(tmp_path: Path) -> None:
    arms = {"mlp": ARMS["mlp"], "capacity": ARMS["capacity"]}
    other = {"mlp": ARMS["mlp"], "capacity": replace(ARMS["capacity"], k=1.0)}
    write_grid(tmp_path, arms, seeds=[0, 1], grid="one")
    write_grid(tmp_path, other, seeds=[2], grid="two")
    compared = comparison_of(tmp_path)
    seeds = {row.name: [run.seed for run in row.arm.runs] for row in compared.rows}
    # The same configuration is the same arm wherever it ran; another one is named after its grid.
    assert seeds == {"mlp": [0, 1], "capacity (one)": [0, 1], "capacity (two)": [2]}
    assert [(run.arm, run.seed, run.state) for run in compared.left_out] == [("mlp", 2, "unpaired")]
    assert [row.name for row in compared.rows if not row.ranked] == ["capacity (two)"]


def test_the_newest_of_two_runs_of_one_seed_counts(tmp_path: Path) -> None:
    result = result_of("mlp", ARMS["mlp"], 0)
    old = write_run(tmp_path / "old", {**result, "quality": {"bits_per_byte": 9.0}})
    os.utime(old / "result.json", (1, 1))
    write_run(tmp_path / "new", result)
    compared = comparison_of(tmp_path)
    assert compared.rows[0].quality.mean < 9
    assert [(run.path, run.state) for run in compared.left_out] == [(old, "replaced")]


def test_runs_that_are_missing_are_counted_with_their_arm(tmp_path: Path) -> None:
    write_grid(tmp_path)
    write_status(tmp_path, "capacity", 3, "failed", reason="boom")
    write_status(tmp_path, "capacity", 4, "running", updated="2999-01-01T00:00:00+00:00")
    missing = {row.name: row.arm.missing for row in comparison_of(tmp_path).rows}
    assert missing.pop("capacity") == 2 and set(missing.values()) == {0}


def test_marks_and_the_words_for_them(tmp_path: Path) -> None:
    arms = {**ARMS, "wide": FakeArm(2.1, params=1.08), "close": FakeArm(2.1, params=1.004)}
    compared = comparison_of(write_grid(tmp_path, arms))
    marks = {row.name: compared.marks(row) for row in compared.rows}
    assert marks["expert_choice"] == "†" and marks["wide"] == "≠"
    assert marks["close"] == marks["mlp"] == ""
    said = "\n".join(notes(compared))
    assert "wide does not match mlp: active parameters +8.0% and FLOPs" in said
    assert "† Looks ahead in evaluation: expert_choice." in said
    assert "No arm had converged" in said  # the fake curves all still fall by more than that


def test_converged_by_the_last_fifth_of_the_curve(
    tmp_path: Path,
) -> None:
    for name, last in (("flat", 1.995), ("steep", 1.97)):
        result = result_of(name, FakeArm(), 0)
        ends = [(1, 4.0), (80, 2.0), (100, last)]
        curve: list[Any] = [{"tokens": t, "bits_per_byte": b} for t, b in ends]
        result["curve"] = curve
        write_run(tmp_path, result)
    compared = comparison_of(tmp_path)
    falls = {row.name: fall_at_the_end(row.arm) for row in compared.rows}
    assert falls["flat"] == pytest.approx(0.005 / 1.995)
    assert falls["steep"] == pytest.approx(0.03 / 1.97)
    assert {row.name: compared.marks(row) for row in compared.rows} == {"flat": "", "steep": "↘"}


def test_by_seconds_reads_quality_where_the_fastest_arm_ends(tmp_path: Path) -> None:
    for name, seconds, bits in (("mlp", 100.0, (4.0, 3.0)), ("slow", 200.0, (4.0, 2.0))):
        result = result_of(name, FakeArm(), 0)
        curve: list[Any] = [
            {"tokens": 1, "seconds": 0.0, "bits_per_byte": bits[0]},
            {"tokens": 9, "seconds": seconds, "bits_per_byte": bits[1]},
        ]
        result["curve"] = curve
        write_run(tmp_path, result)
    compared = comparison_of(tmp_path, by="seconds")
    assert compared.equal_budget == 100.0
    assert {row.name: row.at_equal for row in compared.rows} == {"slow": 3.0, "mlp": 3.0}
    assert comparison_of(tmp_path, by="tokens").equal_budget is None


def test_a_band_over_seeds_with_points_that_differ(tmp_path: Path) -> None:
    for seed, end in ((0, 10.0), (1, 20.0)):
        result = result_of("a", FakeArm(), seed)
        curve: list[Any] = [
            {"seconds": 0.0, "bits_per_byte": 3.0},
            {"seconds": end, "bits_per_byte": 1.0, "max_vio": None},
        ]
        result["curve"] = curve
        write_run(tmp_path, result)
    arm = comparison_of(tmp_path).rows[0].arm
    found = band(arm, "seconds")
    assert found is not None and (found.x[0], found.x[-1], found.n) == (0.0, 10.0, 2)
    assert (found.low[-1], found.mean[-1], found.high[-1]) == pytest.approx((1.0, 1.5, 2.0))
    assert band(arm, "seconds", "max_vio") is None and band(arm, "flops") is None


def test_loads_are_sorted_before_they_are_averaged(tmp_path: Path) -> None:
    for seed, load in ((0, [0.5, 0.3, 0.2]), (1, [0.1, 0.2, 0.7])):
        result = result_of("a", FakeArm(), seed)
        result["routing"]["layers"] = {"layer10": {"load": load}, "layer2": {"load": [0.5, 0.5]}}
        write_run(tmp_path, result)
    found = loads(comparison_of(tmp_path).rows[0].arm)
    assert found is not None
    assert found[0] == ["layer2", "layer10"]
    np.testing.assert_allclose(found[1], [[1, 1, np.nan], [1.8, 0.75, 0.45]])


def test_one_seed_is_not_called_a_result(tmp_path: Path) -> None:
    compared = comparison_of(write_grid(tmp_path, seeds=[0]))
    assert all(row.quality.half is None for row in compared.rows)
    assert "with one common seed this may be chance" in verdict(compared).answer
    assert "no interval of a difference and no test" in notes(compared)[0]


def test_the_verdict_on_a_clear_case_and_on_a_tie(tmp_path: Path) -> None:
    rng = random.Random(0)
    clear = {"mlp": 2.5, "a": 2.0, "b": 2.2}
    for name, quality in clear.items():
        for seed in range(5):
            value = quality + rng.gauss(0, 0.001)
            result = {**result_of(name, FakeArm(), seed), "quality": {"bits_per_byte": value}}
            write_run(tmp_path / "clear", result)
            value = 2.0 + rng.gauss(0, 0.01)
            write_run(tmp_path / "tie", {**result, "quality": {"bits_per_byte": value}})
    said = verdict(comparison_of(tmp_path / "clear"))
    assert said.answer.startswith("a has the lowest loss (")
    assert said.answer.endswith("better than every other arm.")
    assert any("Against mlp: better: a and b." in reason for reason in said.reasons)
    assert "no difference is significant" in verdict(comparison_of(tmp_path / "tie")).answer


def test_one_arm_of_several_names_is_best_in_5_percent() -> None:
    """The family of all pairs, with the winner picked after looking."""
    rng, wrong, trials = random.Random(3), 0, 1000
    for _ in range(trials):
        luck = [rng.gauss(0, 0.02) for _ in range(3)]
        runs = [
            Run(Path(__file__), {"arm": name, "seed": seed, "fingerprint": name,
                                 "quality": {"bits_per_byte": 2 + luck[seed] + rng.gauss(0, 0.01)}})
            for name in "abcd" for seed in range(3)
        ]  # fmt: skip
        compared = compare_arms(Collection((), tuple(runs), ()))
        wrong += any(difference.real for difference in compared.pairs.values())
    assert wrong / trials <= 0.064  # 5% and two standard errors


def test_a_grid_of_dense_arms_or_of_one_arm(tmp_path: Path) -> None:
    write_grid(tmp_path / "dense", {name: ARMS[name] for name in ("mlp", "mistral")})
    write_grid(tmp_path / "one", {"loss_free": ARMS["loss_free"]})
    dense, one = comparison_of(tmp_path / "dense"), comparison_of(tmp_path / "one")
    assert loads(dense.rows[0].arm) is None and verdict(dense).answer
    assert one.rows[0].difference is None and "no other arm" in verdict(one).answer


def test_a_result_of_the_bare_minimum_is_compared(tmp_path: Path) -> None:
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        bare = {"schema": 1, "arm": name, "seed": 0, "quality": {"bits_per_byte": 2.0}}
        (folder / "result.json").write_text(json.dumps(bare))
    compared = comparison_of(tmp_path)
    assert len(compared.rows) == 2 and compared.rows[0].arm.mean(QUALITY) == 2.0
    assert verdict(compared).question and notes(compared)
