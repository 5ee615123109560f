"""The comparison in sentences: the question, the answer, and the evidence.

No two sentences can contradict each other: the arms are ranked and compared on the same seeds, and
every test comes from one family (`Comparison.pairs`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from router_lab.report.comparison import Comparison, Row
from router_lab.report.fairness import MATCHES, TOLERANCE, budget_kind, match_kind
from router_lab.report.metric import DOMAIN_NMI, MAX_VIO, Metric
from router_lab.report.statistics import (
    MOST_SEEDS,
    Difference,
    corrected,
    paired_difference,
    seeds_to_decide,
)
from router_lab.runs.text import count, duration, fixed, listing, p_value, percent, si


@dataclass(frozen=True)
class Verdict:
    """Plain sentences: the question, the answer in one line, the evidence."""

    question: str
    answer: str
    reasons: tuple[str, ...]


def verdict(comparison: Comparison) -> Verdict:
    return Verdict(_question(comparison), *_answer(comparison))


def _question(comparison: Comparison) -> str:
    rows = comparison.rows
    data = (rows[0].arm.first.get("data") or {}).get("name") or "the text"
    spent = _spent(rows)
    if len(rows) == 1:
        return f"How well does {rows[0].name} predict {data}{spent}?"
    return f"Which of {len(rows)} arms predicts {data} best{spent}{_matched(comparison)}?"


def _spent(rows: Sequence[Row]) -> str:
    """The length of the runs: ` after 20.0M tokens`, or a range."""
    kinds = {budget_kind(row.arm) for row in rows}
    kind = kinds.pop() if len(kinds) == 1 else "tokens"  # every run counts its tokens
    path = "train.tokens" if kinds else "budget.amount"
    amounts = [value for row in rows for value in row.arm.values(path).values()]
    if kind is None or not amounts:
        return ""
    ends = [min(amounts)]
    if max(amounts) > min(amounts) * (1 + TOLERANCE):
        ends.append(max(amounts))
    span = " to ".join(duration(end) if kind == "seconds" else si(end) for end in ends)
    words = {"flops": " training FLOPs", "seconds": ""}.get(kind, f" {kind}")
    return f" after {span}{words}"


def _matched(comparison: Comparison) -> str:
    """`, all with the same active parameters`; arms with other ones are named."""
    kind = match_kind(comparison.baseline.arm)
    if kind is None:
        return ""
    words = {
        "active_params": "the same active parameters",
        "total_params": "the same number of parameters",
        "flops": "the same FLOPs per token",
    }[kind]
    measures = {measure.name for measure in MATCHES[kind]}
    off = [row.name for row in comparison.rows if measures & {what for what, _ in row.unmatched}]
    if len(off) >= len(comparison.rows) - 1:
        return ""
    return f", all but {listing(off)} with {words}" if off else f", all with {words}"


def _answer(comparison: Comparison) -> tuple[str, tuple[str, ...]]:
    rows, base = comparison.rows, comparison.baseline
    best = rows[0]
    bits = f"{fixed(best.quality.mean, 3)} {comparison.bits}"
    if len(rows) == 1:
        return f"{best.name} reaches {bits}; there is no other arm to compare it with.", ()
    reasons = []
    lowest = f"{best.name} has the lowest loss ({bits})"
    if not comparison.ranked:
        answer = f"{lowest}, but the arms share no seed, so nothing can be compared."
    elif not comparison.pairs:
        answer = f"{lowest}, but no other arm has enough seeds to be compared with it."
    elif len(comparison.seeds) == 1:
        answer = f"{lowest}, but with one common seed this may be chance."
        reasons.append("One seed gives no interval and no test: run at least three.")
    else:
        answer, reason = _against_the_others(comparison, lowest)
        reasons.append(reason)
        if best is not base:
            if comparison.ranked[1] is not base and best.difference is not None:
                reasons.append(_against_baseline(comparison, best.difference))
            reasons += _tally(comparison)
        reasons += _open(comparison)
    if best.unmatched:
        answer += f" It does not match {base.name}: {best.mismatch}."
    if best.arm.sees_the_future:
        without = next((row for row in rows if not row.arm.sees_the_future), None)
        reasons.append(
            f"{best.name} looks ahead in evaluation: later tokens affect a token's experts, so "
            "this quality cannot be reached when generating text."
            + (f" The best arm that does not is {without.name}." if without else "")
        )
    return answer, (*reasons, *_balance(comparison), *_specialisation(comparison))


def _against_the_others(comparison: Comparison, lowest: str) -> tuple[str, str]:
    best, second, *_ = comparison.ranked
    others = {row.name: comparison.pairs[best.name, row.name] for row in comparison.ranked[1:]}
    groups = _by_decision(others)
    worse, same, undecided = groups["different"], groups["equivalent"], groups["undecided"]
    tests = count(len(comparison.pairs), "comparison")
    margin = f"{comparison.margin:g} {comparison.bits}"
    clauses = []
    if worse:
        clauses.append(f"is better than {listing(worse)}")
    if same:
        clauses.append(f"is equivalent to {listing(same)} (within {margin})")
    answer = " and ".join([lowest, *clauses])
    if undecided and clauses:
        answer += f"; against {listing(undecided)} the comparison is not decided yet"
    elif undecided:
        answer += ", but the comparison is not decided yet: no difference is significant"
    elif not same:
        answer = f"{lowest} and is better than every other arm"
        if len(worse) > 1:
            reason = f"Each difference from it is significant after Holm's correction for {tests}."
            return f"{answer}.", reason
    difference = others[second.name]
    reason = (
        f"Against the runner-up {second.name}: {_test_words(comparison, difference)} "
        f"(paired by seed, Holm's correction for {tests})"
    )
    if difference.decision == "equivalent":
        reason += f". Equivalent: the interval is within ±{comparison.margin:g}"
    elif not difference.real:
        reason += f". {_seeds_words(comparison, difference)}"
    return f"{answer}.", f"{reason}."


def _by_decision(differences: Mapping[str, Difference]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {"different": [], "equivalent": [], "undecided": []}
    for name, difference in differences.items():
        groups[difference.decision].append(name)
    return groups


def _seeds_words(comparison: Comparison, difference: Difference) -> str:
    """How many seeds would decide a comparison."""
    plan = seeds_to_decide(difference, len(comparison.pairs))
    if plan.seeds is None:
        more = plan.at_least or MOST_SEEDS
        return f"Not decided yet: that takes more than {more} seeds per arm"
    shown = " (as equivalent)" if plan.outcome == "equivalent" else ""
    return f"Not decided yet: about {plan.seeds} seeds per arm would decide it{shown}"


def _open(comparison: Comparison) -> list[str]:
    """What would decide the open pairs, those that need the fewest seeds first."""
    tests = len(comparison.pairs)
    needed = [
        (seeds_to_decide(difference, tests).seeds or MOST_SEEDS + 1, pair)
        for pair, difference in comparison.pairs.items()
        if difference.decision == "undecided"
    ]
    if not needed or tests == 1:
        return []
    shown = [
        f"{seeds if seeds <= MOST_SEEDS else f'>{MOST_SEEDS}'} for {one} and {other}"
        for seeds, (one, other) in sorted(needed)[:4]
    ]
    more = f"; pairs.csv has all {len(needed)}" if len(needed) > len(shown) else ""
    return [
        f"Not decided: {len(needed)} of {count(tests, 'comparison')}. Seeds per arm that would "
        f"decide: {listing(shown)}{more}."
    ]


def _against_baseline(comparison: Comparison, difference: Difference) -> str:
    base = comparison.baseline
    share = f" ({percent(difference.mean / base.quality.mean, 1, signed=True)})"
    ends = {"different": ".", "equivalent": "; equivalent.", "undecided": "; not decided yet."}
    words = _test_words(comparison, difference, share)
    return f"Against the baseline {base.name}: {words}{ends[difference.decision]}"


def _test_words(comparison: Comparison, difference: Difference, share: str = "") -> str:
    words = f"{fixed(difference.mean, 4)} {comparison.bits}{share}"
    if difference.half is None or difference.p_holm is None:
        return words
    low, high = difference.mean - difference.half, difference.mean + difference.half
    interval = f"{fixed(low, 4)} to {fixed(high, 4)}"
    return f"{words}, 95% interval {interval}, p {_p_words(difference.p_holm)}"


def _p_words(p: float) -> str:
    shown = p_value(p)
    return shown.replace("<", "< ") if shown.startswith("<") else f"= {shown}"


def _tally(comparison: Comparison) -> list[str]:
    groups: dict[str, list[str]] = {"better": [], "worse": [], "equivalent": [], "not decided": []}
    for row in comparison.rows:
        if (d := row.difference) is not None and d.p is not None:
            better = "better" if d.mean < 0 else "worse"
            words = {"different": better, "undecided": "not decided"}
            groups[words.get(d.decision, d.decision)].append(row.name)
    if sum(map(len, groups.values())) < 2:
        return []
    parts = [f"{word}: {listing(names)}" for word, names in groups.items() if names]
    return [f"Against {comparison.baseline.name}: {'; '.join(parts)}."]


def _balance(comparison: Comparison) -> list[str]:
    metric = comparison.metrics.get(MAX_VIO)
    if metric is None or len(metric.estimates) < 2:
        return []
    means = {name: one.mean for name, one in metric.estimates.items()}
    balanced, skewed = (choose(means, key=lambda name: means[name]) for choose in (min, max))
    return [
        f"Balance: the busiest expert of a layer carried {fixed(1 + means[balanced], 2)} times its "
        f"fair share in {balanced} (the most balanced arm) and {fixed(1 + means[skewed], 2)} times "
        f"in {skewed}.{_tests_of(metric, balanced, 'more balanced')}"
    ]


def _specialisation(comparison: Comparison) -> list[str]:
    metric = comparison.metrics.get(DOMAIN_NMI)
    if metric is None:
        return []
    best = max(metric.estimates, key=lambda name: metric.estimates[name].mean)
    nmi = fixed(metric.estimates[best].mean, 2)
    words = f"Specialisation: {best} has the highest domain NMI ({nmi})."
    return [words + _tests_of(metric, best, "more specialised") + _above_chance(comparison)]


def _tests_of(metric: Metric, best: str, more: str) -> str:
    """What the tests of a metric say of its best arm."""
    tests = {name: metric.between(best, name) for name in metric.estimates if name != best}
    decided = {name: d for name, d in tests.items() if d is not None and d.p_holm is not None}
    if not decided:
        return ""
    groups = _by_decision(decided)
    parts = []
    if different := groups["different"]:
        worst = max(decided[name].p_holm or 0.0 for name in different)
        parts.append(f"It is {more} than {listing(different)} (p {_p_words(worst)})")
    if same := groups["equivalent"]:
        parts.append(f"it is equivalent to {listing(same)} (within {metric.margin:g})")
    if undecided := groups["undecided"]:
        parts.append(f"against {listing(undecided)} this is not decided yet")
    sentence = "; ".join(parts)
    return f" {sentence[0].upper()}{sentence[1:]}."


def _above_chance(comparison: Comparison) -> str:
    """The arms whose domain purity is above its chance level, which result.json has beside it."""
    paths = ("routing.mean.domain_purity", "routing.mean.domain_purity_chance")
    tests = {
        row.name: d
        for row in comparison.ranked
        if (d := paired_difference(*(row.arm.values(path) for path in paths))) and d.p is not None
    }
    if not tests:
        return ""
    family = corrected([*tests.values()])
    above = [name for name, d in zip(tests, family, strict=True) if d.real and d.mean > 0]
    who = listing(above) if above else "no arm"
    return f" Domain purity is above chance in {who} (p < 0.05, {count(len(tests), 'test')})."
