"""One run: built from its configuration, trained, evaluated, written down."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from router_lab.budget import Budget, Cost, Match, cost, solve_width
from router_lab.data import Corpus, load_corpus
from router_lab.errors import UserError
from router_lab.grid import RunDir, prepare_run
from router_lab.losses import BalanceLoss, build_losses
from router_lab.registry import load_plugin
from router_lab.transformer import Transformer


@dataclass(frozen=True)
class Parts:
    """Everything a configuration describes, built and checked before anything trains."""

    config: dict[str, Any]
    corpus: Corpus
    model: Transformer
    losses: dict[str, BalanceLoss]
    cost: Cost
    match: Match | None
    budget: Budget
    steps: int | None

    @property
    def tokens_per_step(self) -> int:
        trainer = self.config["trainer"]
        n = trainer["batch_size"] * trainer["accumulate"] * int(self.config["model"]["seq_len"])
        return int(n * devices(trainer))

    @property
    def d_hidden(self) -> int:
        """Width of the slot's FFN, of one expert where it has any."""
        return next(iter(self.model.ffns().values())).d_hidden


def build(config: dict[str, Any]) -> Parts:
    """Raises UserError for whatever in the configuration cannot be trained."""
    for path in config.get("plugins") or []:
        load_plugin(path)
    check_trainer(config["trainer"])
    budget = Budget.parse(config["budget"])
    shape = dict(config["model"])
    shape.pop("name", None)
    ffn = dict(config["ffn"])
    match = solve_width(config["match"], ffn, shape["d_model"], shape["d_ffn"])
    corpus = load_corpus(config["data"], shape["seq_len"])
    model = Transformer(
        corpus.vocab_size,
        ffn,
        d_hidden=match.d_hidden if match else None,
        seed=config["seed"],
        **shape,
    )
    ffns = list(model.ffns().values())
    losses = build_losses(config["loss"], ffns[0].default_losses if ffns else {})
    parts = Parts(config, corpus, model, losses, cost(model), match, budget, None)
    steps = budget.steps(parts.tokens_per_step, parts.cost.flops_per_token)
    return Parts(config, corpus, model, losses, parts.cost, match, budget, steps)


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """Raises UserError for a device that is not there, or a size that is not positive."""
    wanted = trainer["accelerator"]
    if wanted not in ("auto", "cpu", "gpu", "cuda", "mps"):
        raise UserError(f"trainer.accelerator={wanted} is unknown; give auto, cpu, gpu or mps.")
    if wanted in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={wanted}: no CUDA device is there; give auto or cpu.")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UserError("trainer.accelerator=mps: no MPS device is there; give auto or cpu.")
    for name in ("batch_size", "accumulate", "validations", "val_windows", "log_every", "threads"):
        if not isinstance(trainer[name], int) or trainer[name] < 1:
            raise UserError(f"trainer.{name}={trainer[name]} is not possible; give 1 or more.")
    if not isinstance(trainer["probe_tokens"], int) or trainer["probe_tokens"] < 0:
        raise UserError(
            f"trainer.probe_tokens={trainer['probe_tokens']} is not possible; give 0 or more."
        )
    if "16" in str(trainer["precision"]) and wanted != "gpu" and not torch.cuda.is_available():
        print(
            f"trainer.precision={trainer['precision']} is several times slower than 32-true on a CPU.",
            file=sys.stderr,
        )


def devices(trainer: Mapping[str, Any]) -> int:
    """How many devices the run will use."""
    asked = trainer["devices"]
    if isinstance(asked, int) and asked > 0:
        return asked
    return max(torch.cuda.device_count(), 1)


def train(cfg: DictConfig) -> float | None:
    """Trains the run that the configuration describes, or finds it finished.

    Returns: its bits per byte, which a search minimises.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config.pop("hydra", None)
    torch.set_num_threads(int(config["trainer"]["threads"]))
    parts = build(config)
    ranks = devices(config["trainer"])
    with prepare_run(cfg) as run:
        if run.finished:
            print(f"Already finished: {run.folder} ({run.quality:.4f} bits per byte).")
            return run.quality
        print(describe(parts, run), flush=True)
        if ranks > 1:
            from router_lab.ranks import fit_on_ranks

            fit_on_ranks(ranks, config, run)
        else:
            from router_lab.fit import fit

            fit(parts, run)
    return run.quality


def describe(parts: Parts, run: RunDir) -> str:
    """The run in two lines."""
    c, unit = parts.cost, 1e6
    length = f"{parts.steps:,} steps" if parts.steps else f"{parts.budget.amount:g} seconds"
    lines = [
        f"{run.arm}, seed {run.seed}: {c.total / unit:.2f}M parameters, {c.active / unit:.2f}M active, "
        f"{c.flops_per_token / unit:.1f} MFLOPs a token, {length} of {parts.tokens_per_step:,} tokens"
    ]
    if parts.match:
        lines.append(
            f"ffn.d_hidden={parts.match.d_hidden} solved for {parts.match.kind} "
            f"({parts.match.error:+.2%} of a dense FFN's)"
        )
    return "\n".join([*lines, f"→ {run.folder}"])


def load_run(folder: str | Path) -> Parts:
    """A finished run's configuration, data and trained model.

    Raises UserError where the folder holds no finished run.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file() or not (folder / "final.ckpt").is_file():
        raise UserError(f"{folder} is not the folder of a finished run: it needs config.yaml and final.ckpt.")
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True)
    parts = build(config)
    parts.model.load_state_dict(torch.load(folder / "final.ckpt", map_location="cpu"))
    return parts
