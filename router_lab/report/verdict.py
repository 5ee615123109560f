"""The comparison in sentences: the question, the answer, and the evidence.

No two sentences can contradict each other: the arms are ranked and compared on the same seeds, and
every test comes from one family (`Comparison.pairs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router_lab.report.comparison import Comparison, Row
from router_lab.report.fairness import MATCHES, TOLERANCE, budget_kind, match_kind
from router_lab.report.statistics import MOST_SEEDS, Difference, seeds_to_decide
from router_lab.runs.text import count, duration, fixed, listing, p_value, percent, si

MAX_VIO = "routing.mean.max_vio"


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
    if best.unmatched:
        answer += f" It does not match {base.name}: {best.mismatch}."
    if best.arm.sees_the_future:
        without = next((row for row in rows if not row.arm.sees_the_future), None)
        reasons.append(
            f"{best.name} looks ahead in evaluation: later tokens affect a token's experts, so "
            "this quality cannot be reached when generating text."
            + (f" The best arm that does not is {without.name}." if without else "")
        )
    return answer, (*reasons, *_balance(comparison))


def _against_the_others(comparison: Comparison, lowest: str) -> tuple[str, str]:
    best, second, *_ = comparison.ranked
    others = {row.name: comparison.pairs[best.name, row.name] for row in comparison.ranked[1:]}
    worse = [name for name, difference in others.items() if difference.real]
    undecided = [name for name in others if name not in worse]
    tests = count(len(comparison.pairs), "comparison")
    if not undecided:
        answer = f"{lowest} and is better than every other arm."
        if len(worse) > 1:
            reason = f"Every difference is significant after Holm's correction for {tests}."
            return answer, reason
    elif worse:
        answer = (
            f"{lowest} and is better than {listing(worse)}; against {listing(undecided)} the "
            "comparison is not decided yet."
        )
    else:
        answer = f"{lowest}, but the comparison is not decided yet: no difference is significant."
    difference = others[second.name]
    reason = (
        f"Against the runner-up {second.name}: {_test_words(comparison, difference)} "
        f"(paired by seed, Holm's correction for {tests})"
    )
    if not difference.real:
        reason += f". {_seeds_words(comparison, difference)}"
    return answer, reason + "."


def _seeds_words(comparison: Comparison, difference: Difference) -> str:
    """How many seeds would decide a comparison."""
    needed, at_least = seeds_to_decide(difference, len(comparison.pairs))
    if needed is not None:
        return f"Not decided yet: about {needed} seeds per arm would decide it"
    return f"Not decided yet: that takes more than {at_least or MOST_SEEDS} seeds per arm"


def _against_baseline(comparison: Comparison, difference: Difference) -> str:
    base = comparison.baseline
    share = f" ({percent(difference.mean / base.quality.mean, 1, signed=True)})"
    decided = "." if difference.real else "; not decided yet."
    return (
        f"Against the baseline {base.name}: {_test_words(comparison, difference, share)}{decided}"
    )


def _test_words(comparison: Comparison, difference: Difference, share: str = "") -> str:
    words = f"{fixed(difference.mean, 4)} {comparison.bits}{share}"
    if difference.half is None or difference.p_holm is None:
        return words
    low, high = difference.mean - difference.half, difference.mean + difference.half
    p = p_value(difference.p_holm)
    p = p.replace("<", "< ") if p.startswith("<") else f"= {p}"
    return f"{words}, 95% interval {fixed(low, 4)} to {fixed(high, 4)}, p {p}"


def _tally(comparison: Comparison) -> list[str]:
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not decided": []}
    for row in comparison.rows:
        if row.difference is not None and row.difference.p is not None:
            direction = "better" if row.difference.mean < 0 else "worse"
            groups[direction if row.difference.real else "not decided"].append(row.name)
    if sum(map(len, groups.values())) < 2:
        return []
    parts = [f"{word}: {listing(names)}" for word, names in groups.items() if names]
    return [f"Against {comparison.baseline.name}: {'; '.join(parts)}."]


def _balance(comparison: Comparison) -> list[str]:
    routed = [
        (value, row.name) for row in comparison.rows if (value := row.arm.mean(MAX_VIO)) is not None
    ]
    if len(routed) < 2:
        return []
    (least, balanced), (most, skewed) = min(routed), max(routed)
    return [
        f"Balance: the busiest expert of a layer carried {fixed(1 + least, 2)} times its fair "
        f"share in {balanced} (the most balanced arm) and {fixed(1 + most, 2)} times in {skewed}."
    ]
