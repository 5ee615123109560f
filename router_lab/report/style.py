"""One look for an arm wherever it is drawn: figures and page share colours, dashes and markers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from router_lab.report.comparison import Comparison, Row

BASELINE = "#4a4a4a"
# Okabe & Ito (2008), distinguishable with any colour vision; without its black and its pale yellow.
# Wine is from Tol's muted scheme; with it a usual grid needs no colour twice.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255")
MARKERS = ("o", "s", "^", "D", "v", "P", "p")
DASHES = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
FOCUS = 10  # a static figure cannot show more arms legibly


@dataclass(frozen=True)
class Style:
    colour: str
    index: int  # of the colour: 0 is the baseline's grey, then the palette
    dash: tuple[float, ...]  # lengths of ink and gap in points; empty for a solid line
    marker: str  # matplotlib's name


@lru_cache(maxsize=1)
def styles(comparison: Comparison) -> dict[str, Style]:
    """The look of every arm by name. The baseline is grey; the others follow the grid's order.

    The arms in focus come first, so that among many arms they share no colour if possible.
    """
    looks = {comparison.baseline.name: Style(BASELINE, 0, (), "X")}
    focus = in_focus(comparison)
    others = [row for row in (*focus, *comparison.in_grid_order) if row.name not in looks]
    for index, name in enumerate(dict.fromkeys(row.name for row in others)):
        turn, place = divmod(index, len(PALETTE))
        marker = MARKERS[(place + turn) % len(MARKERS)]
        looks[name] = Style(PALETTE[place], place + 1, DASHES[turn % len(DASHES)], marker)
    return looks


def in_focus(comparison: Comparison) -> list[Row]:
    """The arms that a figure names if there are many: the best ones and the baseline."""
    best = [row for row in comparison.rows if row is not comparison.baseline]
    names = {row.name for row in best[: FOCUS - 1]} | {comparison.baseline.name}
    return [row for row in comparison.in_grid_order if row.name in names]


def darker(colour: str) -> str:
    """The colour for small text on white."""
    return "#" + "".join(f"{int(colour[i : i + 2], 16) * 3 // 4:02x}" for i in (1, 3, 5))


def lighter(colour: str, white: float = 0.5) -> str:
    """The colour on a dark ground, mixed with that share of white."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + white * (255 - part)):02x}" for part in parts)
