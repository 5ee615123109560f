"""The verdict: ranked and tested on common seeds, one family of tests, costs as measured."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import FakeArm, result_of, write_run

from router_lab.report.collect import Collection, Run, collect
from router_lab.report.comparison import Comparison, compare_arms
from router_lab.report.notes import notes
from router_lab.report.statistics import (
    estimate,
    paired_difference,
    power_of,
    seeds_to_decide,
)
from router_lab.report.verdict import Verdict, verdict


def of_qualities(arms: Mapping[str, Mapping[int, float]], **options: Any) -> Comparison:
    """Arms with just these bits per byte, by seed."""
    runs = [
        Run(Path(__file__), {"arm": name, "seed": seed, "fingerprint": name,
                             "quality": {"bits_per_byte": bits}})
        for name, qualities in arms.items() for seed, bits in qualities.items()
    ]  # fmt: skip
    return compare_arms(Collection((), tuple(runs), ()), **options)


def said(comparison: Comparison) -> str:
    found = verdict(comparison)
    return "\n".join([found.answer, *found.reasons, *notes(comparison)])


def test_an_arm_with_hard_seeds_of_its_own_is_not_called_worse() -> None:
    a = {0: 2.000, 1: 2.001, 2: 2.002}
    b = {seed: bits - 0.010 + 1e-5 * seed for seed, bits in a.items()} | {3: 2.2, 4: 2.3, 5: 2.4}
    compared = of_qualities({"A": a, "B": b})
    assert [row.name for row in compared.rows] == ["B", "A"]
    assert compared.seeds == (0, 1, 2)
    assert compared.rows[0].quality.mean == pytest.approx(1.99101)
    assert verdict(compared).answer == (
        "B has the lowest loss (1.991 bits per byte) and is better than every other arm."
    )
    assert "More seeds of B are not used" in said(compared)
    assert [(run.arm, run.seed) for run in compared.left_out] == [("B", 3), ("B", 4), ("B", 5)]


def test_no_difference_in_favour_of_the_lower_ranked_arm_counts() -> None:
    rng = random.Random(1)
    for _ in range(200):
        arms = {
            name: {seed: 2 + rng.gauss(0, 0.01) for seed in range(6) if rng.random() < 0.8}
            for name in "abcde"
        }
        compared = of_qualities({name: values for name, values in arms.items() if values})
        order = [row.name for row in compared.rows]
        for (better, worse), difference in compared.pairs.items():
            assert order.index(better) < order.index(worse) and difference.mean <= 0
        for row in compared.ranked:
            assert sorted(row.arm.values("quality.bits_per_byte")) == list(compared.seeds)


def test_an_arm_with_few_seeds_costs_the_others_none() -> None:
    full = {seed: 2.0 + 0.01 * seed for seed in range(5)}
    compared = of_qualities({"a": full, "b": full, "diverging": {0: 1.0}})
    assert compared.seeds == (0, 1, 2, 3, 4)
    assert [(row.name, row.ranked) for row in compared.rows][2] == ("diverging", False)
    assert "Too few seeds to be ranked: diverging." in notes(compared)
    alone = of_qualities({"a": full, "diverging": {0: 1.0}})
    assert "no other arm has enough seeds" in verdict(alone).answer
    apart = of_qualities({"a": {0: 2.0, 1: 2.0}, "b": {2: 2.0, 3: 2.0}})
    assert "the arms share no seed" in verdict(apart).answer and apart.pairs == {}


def test_no_two_sentences_of_300_grids_contradict_each_other() -> None:
    """Six arms, of which five are better than the baseline by 0.02."""
    rng, outcomes = random.Random(0), set()
    for _ in range(300):
        effects = [rng.gauss(0, 0.02) for _ in range(3)]  # of the seeds, on all arms
        arms = {
            name: {seed: 2 + effects[seed] - 0.02 * (name != "base") + rng.gauss(0, 0.002)
                   for seed in range(3)}
            for name in ("base", "a", "b", "c", "d", "e")
        }  # fmt: skip
        compared = of_qualities(arms, baseline="base")
        found = verdict(compared)
        real = {row.name for row in compared.rows if row.difference and row.difference.real}
        outcomes.add(_claims(found, compared, real))
    assert outcomes == {"none", "some"}  # both kinds of grids were met


def _claims(found: Verdict, compared: Comparison, real: set[str]) -> str:
    """What the answer claims, held against every other sentence."""
    best = compared.rows[0].name
    text = "\n".join(found.reasons)
    better = re.search(r"better than ([^;.]*)[;.]", found.answer)
    claimed = set(re.split(", | and ", better[1])) if better else set()
    assert ("base" in claimed) == (best in real)
    against = re.search(r"Against the baseline base: (.*)", text)
    if against is not None:  # not said where the baseline is the runner-up
        assert ("not decided yet" in against[1]) == (best not in real)
        low, high, p = re.findall(r"interval (\S+) to (\S+), p [=<] (\d\.\d+)", against[1])[0]
        ends = [float(end.replace("−", "-")) for end in (low, high)]
        assert (float(p) < 0.05) == (best in real)
        assert ends[1] <= 0 if best in real else ends[0] <= 0 <= ends[1]
    tally = re.search(r"^Against base: better: ([^;.]*)", text, re.MULTILINE)
    assert (set(re.split(", | and ", tally[1])) if tally else set()) == real
    if "no difference is significant" in found.answer:
        assert not any(d.real for (first, _), d in compared.pairs.items() if first == best)
    return "some" if claimed else "none"


def test_intervals_exclude_zero_where_p_is_below_five_percent() -> None:
    rng = random.Random(2)
    for _ in range(100):
        arms = {
            name: {seed: rng.gauss(0.002 * i, 0.002) for seed in range(4)}
            for i, name in enumerate("abcd")
        }
        for difference in of_qualities(arms).pairs.values():
            assert difference.half is not None and difference.p_holm is not None
            assert (abs(difference.mean) > difference.half) == (difference.p_holm < 0.05)


def test_one_pair_is_one_comparison(tmp_path: Path) -> None:
    compared = of_qualities({"a": {0: 2.0, 1: 2.1, 2: 2.2}, "b": {0: 2.1, 1: 2.1, 2: 2.1}})
    assert "Holm's correction for 1 comparison)" in said(compared)
    assert "pairs" not in said(compared)


@pytest.mark.parametrize(("measure", "share"), [("active", 1.4), ("flops", 1.4), ("active", 0.98)])
def test_matched_is_said_only_of_arms_whose_measured_cost_matches(
    tmp_path: Path, measure: str, share: float
) -> None:
    for name in ("mlp", "a", "dynmoe"):
        for seed in range(3):
            result = result_of(name, FakeArm(), seed)
            by = share if name == "dynmoe" else 1.002
            if measure == "active":
                result["params"]["active_measured"] = by * result["params"]["active"]
            else:
                result["flops_per_token_measured"] = by * result["flops_per_token"]
            write_run(tmp_path, result)
    compared = compare_arms(collect([tmp_path]))
    marks = {row.name: compared.marks(row) for row in compared.rows}
    assert marks == {"mlp": "", "a": "", "dynmoe": "≠"}
    assert verdict(compared).question.endswith(", all but dynmoe with the same active parameters?")
    name = {"active": "active parameters", "flops": "FLOPs per token"}[measure]
    change = {1.4: "+39.7%", 0.98: "−2.2%"}[share]
    assert f"≠ dynmoe does not match mlp: {name} {change}." in notes(compared)


def test_the_headline_names_a_best_arm_that_is_larger(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, result_of("mlp", FakeArm(2.2), seed))
        write_run(tmp_path, result_of("wide", FakeArm(2.1, params=2.0), seed))
    found = verdict(compare_arms(collect([tmp_path])))
    assert "same active parameters" not in found.question
    assert found.answer.endswith(
        "It does not match mlp: active parameters +100.0% and FLOPs per token +100.0%."
    )


def test_runs_of_different_length_are_named_in_the_question(tmp_path: Path) -> None:
    for name, tokens in (("a", 30_000), ("b", 40_000)):
        write_run(tmp_path, result_of(name, FakeArm(), 0, tokens=tokens))
    compared = compare_arms(collect([tmp_path]))
    assert "after 30.0k to 40.0k tokens, all with" in verdict(compared).question
    assert "≠ b does not match a: tokens seen +33.3%." in notes(compared)


def test_arms_that_are_evaluated_differently_are_marked(tmp_path: Path) -> None:
    evaluations = {"mlp": (16, None), "a": (16, 2.0), "b": (8, 2.0), "c": (16, 1.0)}
    for name, (batch, factor) in evaluations.items():
        for seed in range(2):
            result = result_of(name, FakeArm(), seed)
            result["evaluation"] = {"batch_size": batch, "windows": 64, "capacity_factor": factor}
            write_run(tmp_path, result)
    compared = compare_arms(collect([tmp_path]))
    marked = {row.name for row in compared.rows if "≠" in compared.marks(row)}
    assert marked == {"b", "c"}
    assert "≠ b does not match mlp: evaluation batch 8 windows instead of 16." in notes(compared)
    assert "≠ c does not match mlp: evaluation capacity factor 1 instead of 2." in notes(compared)
    assert verdict(compared).question.endswith(", all with the same active parameters?")


@pytest.mark.parametrize("arms", [2, 3, 6])
def test_intervals_without_the_seed_effect_cover_95_percent(arms: int) -> None:
    """Of an arm's mean, given what the seeds did to all arms alike."""
    rng, trials, covered = np.random.default_rng(arms), 1500, 0
    for _ in range(trials):
        effects = rng.normal(0, 0.05, 5)
        values = {
            str(arm): dict(enumerate((2.0 + effects + rng.normal(0, 0.01, 5)).tolist()))
            for arm in range(arms)
        }
        found = estimate([*of_qualities(values).without_seed_effect["0"].values()])
        assert found.half is not None
        covered += abs(found.mean - (2.0 + effects.mean())) <= found.half
    assert 0.938 <= covered / trials <= 0.962


def test_the_seeds_that_decide_allow_for_the_winners_curse() -> None:
    """Planned from an observed difference, the power is 0.8 or more in most repetitions."""
    rng, enough, naive, trials = np.random.default_rng(0), 0, 0, 400
    for _ in range(trials):
        draws = dict(enumerate(rng.normal(0.7, 1.0, 5).tolist()))
        difference = paired_difference(draws, dict.fromkeys(draws, 0.0))
        assert difference is not None
        needed, at_least, _ = seeds_to_decide(difference, 3)
        assert needed is None or (at_least is not None and needed >= at_least)
        enough += needed is None or power_of(0.7, needed, 0.05 / 3) >= 0.8
        naive += at_least is None or power_of(0.7, at_least, 0.05 / 3) >= 0.8
    assert enough / trials > 0.7 > naive / trials


def test_equivalent_arms_are_named_and_no_sentence_contradicts_it() -> None:
    rng = random.Random(5)
    effects = [rng.gauss(0, 0.02) for _ in range(8)]
    arms = {
        name: {seed: 2 + effects[seed] + shift + rng.gauss(0, 0.001) for seed in range(8)}
        for name, shift in (("a", 0.0), ("b", 0.0005), ("c", 0.05))
    }
    compared = of_qualities(arms, baseline="c")
    first, second = (row.name for row in compared.rows[:2])
    found = verdict(compared)
    assert found.answer.endswith(
        f"is better than c and is equivalent to {second} (within 0.01 bits per byte)."
    )
    assert f"Against the runner-up {second}" in found.reasons[0]
    assert found.reasons[0].endswith("Equivalent: the interval is within ±0.01.")
    assert "not decided" not in said(compared).split("Differences are to")[0]
    alike = {name: arms[name] for name in ("a", "b")}
    answer = verdict(of_qualities(alike)).answer
    assert answer.endswith(f"and is equivalent to {second} (within 0.01 bits per byte).")
    narrow = verdict(of_qualities(alike, margin="0.0001"))
    assert "not decided yet" in narrow.answer and first in narrow.answer


def test_the_open_pairs_are_listed_with_the_seeds_that_would_decide_them() -> None:
    rng = random.Random(6)
    arms = {name: {seed: 2 + 0.02 * i + rng.gauss(0, 0.01) for seed in range(3)}
            for i, name in enumerate("abcde")}  # fmt: skip
    compared = of_qualities(arms)
    undecided = {pair for pair, d in compared.pairs.items() if d.decision == "undecided"}
    (line,) = [line for line in verdict(compared).reasons if line.startswith("Not decided: ")]
    assert line.startswith(f"Not decided: {len(undecided)} of 10 comparisons.")
    shown = re.findall(r"(>?\d+) for (\w) and (\w)", line)
    seeds = [int(n.strip(">")) for n, _, _ in shown]
    assert seeds == sorted(seeds) and len(shown) == 4
    for n, one, other in shown:
        plan = seeds_to_decide(compared.pairs[one, other], 10)
        assert (one, other) in undecided and n == str(plan.seeds or ">1000")
