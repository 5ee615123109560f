"""What TensorBoard needs once per grid: layouts that compare the arms, and the table of runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router_lab.routing import Router

EXCESS = "quality/excess_bits$"
LAYOUT = {
    "Quality": {
        "bits per byte (validation)": "quality/bits_per_byte$",
        "excess over the Bayes-optimal loss, bits": EXCESS,
        "training loss, nats": "loss/train$",
    },
    "Balance": {
        "MaxVio: max load / mean load − 1, 0 is perfect": "routing/max_vio$",
        "effective experts, 1 is perfect": "routing/effective_experts$",
        "dead experts, share": "routing/dead_experts$",
        "coefficient of variation of the load": "routing/cv_load$",
    },
    "Drops": {
        "assignments dropped, share": "routing/dropped$",
        "tokens left with no expert, share": "routing/dropped_tokens$",
        "experts per token": "routing/k_used$",
    },
    "Cost": {
        "tokens per second": "cost/tokens_per_second$",
        "seconds of training": "cost/seconds$",
    },
}
"""Custom scalars: category → chart → tag, as a regular expression."""

METRICS = (
    "quality/bits_per_byte",
    "routing/max_vio",
    "routing/effective_experts",
    "routing/dropped",
    "cost/tokens_per_second",
)
"""Tags that are columns of the HParams table. TensorBoard shows five by default."""

HPARAMS = {"arm": str, "seed": float, "experts": float, "k": float, "active params": float}
"""The table's columns before METRICS. TensorBoard shows five by default; the text panel has all."""


def write_overview(folder: Path, floor_known: bool) -> None:
    """Writes layout and table into the folder of a grid; the first of its runs does it.

    Args:
        floor_known: whether the Bayes-optimal loss of the data is known, so that the excess over it
            can be drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(folder / ".overview", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    from torch.utils.tensorboard import SummaryWriter

    layout = {
        category: {
            name: ["Multiline", [tag]]
            for name, tag in charts.items()
            if floor_known or tag != EXCESS
        }
        for category, charts in LAYOUT.items()
    }
    with SummaryWriter(str(folder)) as writer:
        writer.add_custom_scalars(layout)
        columns, _, _ = summaries({name: kind() for name, kind in HPARAMS.items()})
        writer.file_writer.add_summary(columns)


def hparams(arm: str, seed: int, routers: Sequence[Router], active: float) -> dict[str, Any]:
    """A run's row of the table. A dense model has no experts and k = 0."""
    return {
        "arm": arm,
        "seed": float(seed),
        "experts": float(routers[0].n_experts) if routers else 0.0,
        "k": float(routers[0].mean_k) if routers else 0.0,
        "active params": active,
    }


def summaries(row: Mapping[str, str | float]) -> tuple[Any, Any, Any]:
    """Summaries for the table of runs: the columns, a run's row, and its end."""
    from torch.utils.tensorboard.summary import hparams as summaries_of

    columns, start, end = summaries_of(dict(row), dict.fromkeys(METRICS))
    return columns, start, end


def config_text(config: Mapping[str, Any], overrides: tuple[str, ...]) -> str:
    """The text panel: the overrides, then the whole configuration."""
    from omegaconf import OmegaConf

    changed = "\n".join(f"    {override}" for override in overrides) or "    (nothing)"
    whole = OmegaConf.to_yaml(OmegaConf.create(dict(config)), sort_keys=False)
    indented = "\n".join(f"    {line}" for line in whole.splitlines())
    return f"**Changed from the default**\n\n{changed}\n\n**The whole configuration**\n\n{indented}"
