"""Numbers and lists for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

MINUS = "\N{MINUS SIGN}"
DURATIONS = (86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")


def fixed(value: float | None, digits: int, *, signed: bool = False) -> str:
    """`-0.0213` → `−0.021`; empty for None."""
    if value is None:
        return ""
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0.0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def with_interval(
    value: float | None, half: float | None, digits: int, *, signed: bool = False
) -> str:
    """`2.171 ± 0.012`; without an interval the number alone."""
    text = fixed(value, digits, signed=signed)
    return text if half is None or not text else f"{text} ± {fixed(half, digits)}"


def digits_for(halves: Iterable[float | None], low: int = 3, high: int = 5) -> int:
    """Decimals that show the narrowest interval with two significant digits, within bounds."""
    smallest = min(filter(None, halves), default=None)
    if smallest is None:
        return low
    return max(low, min(high, 1 - math.floor(math.log10(smallest))))


def p_value(p: float | None) -> str:
    """`<0.001`, `0.012`, `0.27`; a p just below 0.05 is never rounded up to it."""
    if p is None:
        return ""
    if p < 0.001:
        return "<0.001"
    return fixed(min(p, 0.049) if p < 0.05 else p, 3 if p < 0.1 else 2)


def percent(share: float | None, digits: int = 1, *, signed: bool = False) -> str:
    return "" if share is None else f"{fixed(100 * share, digits, signed=signed)}%"


def si(value: float | None) -> str:
    """Three digits and a prefix: `1.23M`, `400k`, `7.20G`; small whole numbers as they are."""
    if value is None:
        return ""
    if value == int(value) and abs(value) < 1000:
        return str(int(value)).replace("-", MINUS)
    thousands = max(0, min(6, math.floor(math.log10(abs(value) * 1.0005) / 3)))
    digits = f"{value / 1000**thousands:#.3g}".rstrip(".").replace("-", MINUS)
    return digits + " kMGTPE"[thousands].strip()


def gibibytes(count: float | None) -> str:
    if count is None:
        return ""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: float | None) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds is None:
        return ""
    whole = round(seconds)
    for size, unit, part, part_unit in DURATIONS:
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {part_unit}" if rest else "")
    return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"


def listing(items: Sequence[str], most: int = 8) -> str:
    """`a, b and c`; `a, b, c and 5 others`."""
    items = list(items)
    if len(items) > most:
        items = [*items[: most - 1], f"{len(items) - most + 1} others"]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def count(n: int, word: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"
