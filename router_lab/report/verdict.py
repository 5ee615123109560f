"""What the comparison says, in sentences: for people who will not read the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router_lab.report.comparison import (
    NOT_CAUSAL,
    NOT_CONVERGED,
    NOT_MATCHED,
    TOLERANCE,
    Comparison,
    Row,
)
from router_lab.report.curves import FALL
from router_lab.report.seeds import seeds_for_pair
from router_lab.report.statistics import Difference
from router_lab.report.text import count, duration, fixed, listing, p_value, percent, si

MAX_VIO = "routing.mean.max_vio"


@dataclass(frozen=True)
class Verdict:
    """Plain sentences: the question, the answer in one line, what it rests on."""

    question: str
    answer: str
    reasons: tuple[str, ...]


def verdict(comparison: Comparison) -> Verdict:
    """The question, the answer and what it rests on."""
    return Verdict(_question(comparison), *_answer(comparison))


def _question(comparison: Comparison) -> str:
    first = comparison.baseline.arm.first
    budget = first.get("budget") or {}
    amount, kind = budget.get("amount"), budget.get("kind")
    spent = ""
    if isinstance(amount, int | float):
        words = {"flops": "training FLOPs", "seconds": ""}.get(str(kind), str(kind))
        each = duration(amount) if kind == "seconds" else si(amount)
        spent = f" after {each} {words}".rstrip()
    data = (first.get("data") or {}).get("name") or "the text"
    if len(comparison.rows) == 1:
        return f"How well does {comparison.rows[0].name} predict {data}{spent}?"
    matched = {
        "active_params": ", all with the same active parameters",
        "total_params": ", all with the same number of parameters",
        "flops": ", all with the same FLOPs per token",
    }.get(str((first.get("match") or {}).get("kind")), "")
    return f"Which of {len(comparison.rows)} arms predicts {data} best{spent}{matched}?"


def _answer(comparison: Comparison) -> tuple[str, tuple[str, ...]]:
    rows, base = comparison.rows, comparison.baseline
    best = rows[0]
    bits = f"{fixed(best.quality.mean, 3)} bits per byte"
    if len(rows) == 1:
        return f"{best.name} reaches {bits}; there is no other arm to compare it with.", ()
    reasons = []
    if comparison.seeds[1] == 1:
        answer = (
            f"{best.name} came out best at {bits}, but with one seed each nobody can tell "
            "whether that is more than luck."
        )
        reasons.append("With one seed there is no interval and no test: run at least three.")
    else:
        answer, reason = _against_the_others(comparison, best, bits)
        reasons.append(reason)
        if best is not base:
            reasons.append(_against_baseline(best, base))
        reasons += _tally(comparison)
    causal = next((row for row in rows if row.arm.causal), None)
    if not best.arm.causal:
        reasons.append(
            f"{best.name} is not causal: when it chooses experts for a token it looks at later "
            "tokens, so this quality cannot be had when generating text."
            + (f" The best causal arm is {causal.name}." if causal else "")
        )
    return answer, (*reasons, *_balance(comparison))


def _against_the_others(comparison: Comparison, best: Row, bits: str) -> tuple[str, str]:
    pairs = {other: d for (first, other), d in comparison.pairs.items() if first == best.name}
    others = [row.name for row in comparison.rows[1:]]
    level = [name for name in others if name not in pairs or not pairs[name].real]
    tests = f"(paired by seed, all {len(comparison.pairs)} pairs of arms considered)"
    if not level:
        answer = f"{best.name} is best at {bits}, and better than every other arm."
        return answer, f"Each difference is larger than chance would make it {tests}."
    second = comparison.rows[1].name
    if len(level) == len(others):
        answer = f"{best.name} came out first at {bits}, but no arm is shown to be worse."
    else:
        answer = (
            f"{best.name} came out first at {bits}; it cannot be told apart from {listing(level)}."
        )
    difference = pairs.get(second)
    if difference is None:
        return answer, f"It shares no seed with the runner-up, {second}, so nothing is paired."
    reason = (
        f"It leads the runner-up, {second}, by {fixed(-difference.mean, 4)} bits per byte"
        f"{_test_words(difference, -1)} {tests}"
    )
    needed = seeds_for_pair(comparison, difference)
    if needed is not None and not difference.real:
        reason += f"; if that is the true difference, {needed} seeds would show it in 8 cases of 10"
    return answer, reason + "."


def _against_baseline(best: Row, base: Row) -> str:
    difference = best.difference
    if difference is None:
        return f"It shares no seed with the baseline {base.name}, so their difference is untested."
    share = percent(difference.mean / base.quality.mean, 1, signed=True)
    sure = "more than chance" if difference.real else "not more than chance could make it"
    return (
        f"Against the baseline {base.name} the difference is {fixed(difference.mean, 4)} bits per "
        f"byte ({share}){_test_words(difference)}: {sure}."
    )


def _test_words(difference: Difference, sign: int = 1) -> str:
    if difference.half is None or difference.p_holm is None:
        return ""
    low = sign * difference.mean - difference.half
    high = sign * difference.mean + difference.half
    p = p_value(difference.p_holm)
    return (
        f", 95% interval {fixed(low, 4)} to {fixed(high, 4)}, corrected "
        f"p {p.replace('<', '< ') if p.startswith('<') else f'= {p}'}"
    )


def _tally(comparison: Comparison) -> list[str]:
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for row in comparison.rows:
        if row.difference is not None and row.difference.p is not None:
            direction = "better" if row.difference.mean < 0 else "worse"
            groups[direction if row.difference.real else "not told apart"].append(row.name)
    if sum(map(len, groups.values())) < 2:
        return []
    parts = [f"{word}: {listing(names)}" for word, names in groups.items() if names]
    return [f"All against {comparison.baseline.name} – {'; '.join(parts)}."]


def _balance(comparison: Comparison) -> list[str]:
    routed = [
        (value, row.name) for row in comparison.rows if (value := row.arm.mean(MAX_VIO)) is not None
    ]
    if len(routed) < 2:
        return []
    (least, balanced), (most, skewed) = min(routed), max(routed)
    return [
        f"Balance: the busiest expert of a layer carried {fixed(1 + least, 2)} times its fair "
        f"share under {balanced}, the best balanced, and {fixed(1 + most, 2)} times under {skewed}."
    ]


def notes(comparison: Comparison) -> list[str]:
    """What must be known to read the table, one sentence or two each; marks are explained."""
    rows, base = comparison.rows, comparison.baseline
    tests = sum(row.difference is not None and row.difference.p is not None for row in rows)
    found = []
    if len(rows) > 1 and tests:
        found.append(
            f"Differences are to {base.name} ({comparison.baseline_why}), paired by seed. ± is "
            "half the width of the 95% t-interval; p is of the paired t-test, corrected for "
            f"{count(tests, 'arm')} (Holm), and differences with p below 0.05 are in bold."
        )
    elif len(rows) > 1:
        found.append(
            f"Differences are to {base.name} ({comparison.baseline_why}). No two arms share two "
            "seeds, so there is no interval of a difference and no test."
        )
    if (single := [row.name for row in rows if row.quality.n == 1]) and tests:
        found.append(f"With one seed there is no interval: {listing(single)}.")
    if fewer := [r.name for r in rows if r.difference and r.difference.n < r.quality.n]:
        found.append(f"Only the seeds shared with {base.name} are paired: {listing(fewer)}.")
    if not_causal := [row.name for row in rows if not row.arm.causal]:
        found.append(
            f"{NOT_CAUSAL} Not causal: {listing(not_causal)}. Later tokens decide where a token "
            "goes, so this quality cannot be had when generating text."
        )
    found += [_unmatched_words(row, base) for row in rows if row.unmatched]
    found += _carried_out_words(rows)
    found += _converged_words(comparison)
    if comparison.equal_budget is not None:
        unit = {"tokens": " tokens", "flops": " FLOPs", "seconds": " s"}[comparison.by]
        found.append(
            f"At {si(comparison.equal_budget)}{unit}: quality read off the learning curves where "
            "the arm that spent least ends; the others were not done learning there."
        )
    return found + [words for row in rows if (words := _mixed_words(row))]


def _unmatched_words(row: Row, base: Row) -> str:
    words = [f"{name} {percent(by, 1, signed=True)}" for name, by in row.unmatched]
    return f"{NOT_MATCHED} {row.name} does not have the budget of {base.name}: {listing(words)}."


def _carried_out_words(rows: Sequence[Row]) -> list[str]:
    """Arms whose FLOPs in training were others than the count at balanced load says."""
    named = []
    for row in rows:
        counted, done = (row.arm.mean(f"flops_per_token{end}") for end in ("", "_measured"))
        if counted and done is not None and abs(done / counted - 1) > TOLERANCE:
            named.append(f"{row.name} {percent(done / counted - 1, 1, signed=True)}")
    if not named:
        return []
    return [
        "What was dropped, or experts a token that vary, made the FLOPs carried out in training "
        f"differ from those counted: {listing(named)}."
    ]


def _converged_words(comparison: Comparison) -> list[str]:
    falling = [row for row in comparison.rows if not row.converged]
    if not falling:
        return []
    shares = [row.falling for row in falling if row.falling is not None]
    span = f"{percent(min(shares))} to {percent(max(shares))}"
    if min(shares) == max(shares):
        span = percent(shares[0])
    rule = f"in the last fifth of the run bits per byte still fell by {span}"
    if comparison.none_converged:
        who = "No arm had converged" if len(falling) > 1 else "It had not converged"
        return [f"{who}: {rule}. A longer run may end in another order."]
    names = listing([row.name for row in falling])
    return [f"{NOT_CONVERGED} Not converged: {names}; {rule} (converged: below {percent(FALL)})."]


def _mixed_words(row: Row) -> str:
    for path, name in (("params.active", "active parameters"), ("flops_per_token", "FLOPs")):
        values = row.arm.values(path).values()
        if values and max(values) > 1.001 * min(values):
            return f"The seeds of {row.name} differ in {name}: the code changed between them."
    return ""
