"""Labelled heatmaps, drawn in milliseconds at every validation.

A plotting library takes a second to import and 0.1 s per picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
INK, FAINT, PAPER = (40, 40, 40), (120, 120, 120), (255, 255, 255)
MISSING = (225, 225, 225)
# Anchors of two scales that a colour-blind reader can tell: blue – white – red, white – blue.
DIVERGING = np.array(
    [[33, 102, 172], [146, 197, 222], [247, 247, 247], [244, 165, 130], [178, 24, 43]]
)
SEQUENTIAL = np.array([[247, 251, 255], [158, 202, 225], [66, 146, 198], [8, 69, 148], [8, 29, 88]])


@dataclass(frozen=True)
class Heatmap:
    """One panel.

    Attributes:
        values: [rows, columns]; NaN where there is nothing.
        rows, columns: their names; of many, only some are shown.
        title: a line above.
        low, high: ends of the colour scale; values beyond are clipped.
        scale: `diverging` is white halfway between low and high.
        legend: what the two ends mean.
    """

    values: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]
    title: str
    low: float = 0.0
    high: float = 2.0
    scale: Literal["diverging", "sequential"] = "diverging"
    legend: tuple[str, str] = ("unused", "twice the ideal")


def draw(panels: Sequence[Heatmap], width: int = 330) -> np.ndarray:
    """The panels below each other [height, width, 3], uint8; TensorBoard's cards are 330 wide."""
    pictures = [_panel(panel, width) for panel in panels]
    return np.concatenate([np.asarray(picture) for picture in pictures], axis=0)


def _panel(panel: Heatmap, width: int) -> Image.Image:
    font, small = ImageFont.load_default(12), ImageFont.load_default(10)
    n_rows, n_columns = panel.values.shape
    left = 12 + max(int(small.getlength(name)) for name in panel.rows)
    cell_w = max(1, (width - left - 16) // n_columns)
    cell_h = max(4, min(20, 260 // n_rows))
    top, bottom = 26, 48
    image = Image.new("RGB", (width, top + n_rows * cell_h + bottom), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((8, 5), panel.title, fill=INK, font=font)
    cells = Image.fromarray(_colours(panel)).resize(
        (n_columns * cell_w, n_rows * cell_h), Image.Resampling.NEAREST
    )
    image.paste(cells, (left, top))
    for r in _thin(n_rows, cell_h, 12):
        name = panel.rows[r]
        x = left - 6 - small.getlength(name)
        pen.text((x, top + r * cell_h + cell_h / 2), name, fill=INK, font=small, anchor="lm")
    base = top + n_rows * cell_h
    widest = max(small.getlength(name) for name in panel.columns) + 6
    for c in _thin(n_columns, cell_w, widest):
        x = left + c * cell_w + cell_w / 2
        pen.text((x, base + 9), panel.columns[c], fill=INK, font=small, anchor="mm")
    _legend(pen, panel, left, base + 26, small)
    return image


def _colours(panel: Heatmap) -> np.ndarray:
    anchors = DIVERGING if panel.scale == "diverging" else SEQUENTIAL
    share = np.clip((panel.values - panel.low) / (panel.high - panel.low), 0, 1)
    missing = np.isnan(share)
    place = np.where(missing, 0, share) * (len(anchors) - 1)
    marks = np.arange(len(anchors))
    pixels = np.stack([np.interp(place, marks, anchors[:, i]) for i in range(3)], axis=-1)
    pixels[missing] = MISSING
    return pixels.astype(np.uint8)


def _legend(pen: ImageDraw.ImageDraw, panel: Heatmap, x: float, y: float, font: Font) -> None:
    low, high = panel.legend
    pen.text((x, y + 5), low, fill=FAINT, font=font, anchor="lm")
    x += font.getlength(low) + 6
    ramp = Heatmap(np.linspace(0, 1, 40)[None], [""], [""], "", 0, 1, panel.scale)
    for i, colour in enumerate(_colours(ramp)[0]):
        pen.rectangle((x + 2 * i, y, x + 2 * i + 2, y + 9), fill=tuple(int(v) for v in colour))
    pen.text((x + 88, y + 5), high, fill=FAINT, font=font, anchor="lm")


def _thin(n: int, size: float, needed: float) -> range:
    """The names that fit: all, or every second, fifth, tenth …"""
    for step in (1, 2, 5, 10, 20, 50, 100):
        if step * size >= needed:
            return range(0, n, step)
    return range(0, n, n)
