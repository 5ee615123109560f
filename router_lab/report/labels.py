"""Where to write the names in a figure, so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as near as may be to the wanted ones, `gap` apart, in the same order.

    Neighbours that are too close are merged into blocks, each centred on the mean of its members
    (the least-squares answer); blocks stay within [low, high] where they fit.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[tuple[float, list[int]]] = []  # centre, members
    for index in order:
        blocks.append((wanted[index], [index]))
        while True:
            centre, members = blocks[-1]
            room = gap * (len(members) - 1) / 2
            centre = max(low + room, min(high - room, centre))
            blocks[-1] = (centre, members)
            if len(blocks) < 2:
                break
            before, earlier = blocks[-2]
            if centre - room - (before + gap * (len(earlier) - 1) / 2) >= gap:
                break
            merged = earlier + members
            # What each member would like the centre of the merged block to be, on average.
            likes = [wanted[m] - gap * (i - (len(merged) - 1) / 2) for i, m in enumerate(merged)]
            blocks[-2:] = [(sum(likes) / len(likes), merged)]
    found = [0.0] * len(wanted)
    for centre, members in blocks:
        for place, index in enumerate(members):
            found[index] = centre + gap * (place - (len(members) - 1) / 2)
    return found


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    obstacles: Sequence[tuple[float, float]] = (),
) -> list[Box]:
    """A box for the label of each point, beside it: greedily the place that covers least.

    All in pixels; `sizes` are width and height of the labels, `obstacles` are points not to cover.
    """
    taken: list[Box] = []
    marks = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    marks += [(x - 2, y - 2, x + 2, y + 2) for x, y in obstacles]
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        options = [
            (x + dx - (width if dx < 0 else 0 if dx > 0 else width / 2), y + dy - height / 2)
            for away in (8, 16, 26)
            for dx, dy in ((away, 0), (-away, 0), (0, away + 4), (0, -away - 4),
                           (away, away), (away, -away), (-away, away), (-away, -away))
        ]  # fmt: skip
        boxes = [(left, low, left + width, low + height) for left, low in options]

        def cost(item: tuple[int, Box]) -> float:
            rank, box = item
            covered = sum(_overlap(box, other) for other in taken)
            covered += 0.5 * sum(_overlap(box, mark) for mark in marks)
            return covered + 2.0 * _outside(box, frame) + 0.5 * rank

        taken.append(min(enumerate(boxes), key=cost)[1])
    return taken


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def _outside(box: Box, frame: Box) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return area - _overlap(box, frame)
