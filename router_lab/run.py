"""One run: built from its configuration, trained, evaluated, written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from router_lab.budget import Budget, Cost, Match, cost, solve_width
from router_lab.check import check, n_devices
from router_lab.data import Corpus, load_corpus
from router_lab.errors import UserError
from router_lab.grid import RunDir, prepare_run, run_dir
from router_lab.losses import BalanceLoss, build_losses
from router_lab.paths import conf_dir
from router_lab.registry import load_plugin
from router_lab.status import read_json
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
        return int(n * n_devices(trainer))

    @property
    def d_hidden(self) -> int:
        """Width of the slot's FFN, of one expert where it has any."""
        return next(iter(self.model.ffns().values())).d_hidden


def build(config: dict[str, Any]) -> Parts:
    """Raises UserError for whatever in the configuration cannot be trained."""
    check(config)
    for path in config.get("plugins") or []:
        load_plugin(path)
    budget = Budget.parse(config["budget"])
    shape = dict(config["model"])
    shape.pop("name", None)
    ffn = dict(config["ffn"])
    match = solve_width(config["match"], ffn, shape["d_model"], shape["d_ffn"])
    corpus = load_corpus(config["data"], shape["seq_len"])
    model = Transformer(
        corpus.vocab_size,
        with_token_counts(ffn, corpus),
        d_hidden=match.d_hidden if match else None,
        seed=config["seed"],
        **shape,
    )
    ffns = list(model.ffns().values())
    losses = build_losses(config["loss"], ffns[0].default_losses if ffns else {})
    parts = Parts(config, corpus, model, losses, cost(model), match, budget, None)
    steps = budget.steps(parts.tokens_per_step, parts.cost.flops_per_token)
    return Parts(config, corpus, model, losses, parts.cost, match, budget, steps)


def with_token_counts(node: Mapping[str, Any], corpus: Corpus) -> dict[str, Any]:
    """The node, and those within it, with the corpus' counts for a router that balances by them."""
    told = {
        name: with_token_counts(inner, corpus) if isinstance(inner, Mapping) else inner
        for name, inner in node.items()
    }
    if told.get("table") == "balanced" and told.get("token_counts", 0) is None:
        counts = np.bincount(corpus.train.tokens, minlength=corpus.vocab_size)
        told["token_counts"] = counts.tolist()
    return told


def train(cfg: DictConfig) -> float | None:
    """Trains the run that the configuration describes, or finds it finished.

    Returns: its bits per byte, which a search minimises.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config.pop("hydra", None)
    if (known := run_dir(cfg)).finished:
        print(f"Already finished: {known.quality:.4f} bits per byte in {known.folder}")
        return known.quality
    parts = build(config)
    torch.set_num_threads(config["trainer"]["threads"])
    ranks = n_devices(config["trainer"])
    with prepare_run(cfg) as run:
        if run.finished:  # by another process, while this one was building
            return run.quality
        print(describe(parts, run), flush=True)
        if ranks > 1:
            from router_lab.ranks import fit_on_ranks

            fit_on_ranks(ranks, config, run)
        else:
            from router_lab.fit import fit

            fit(parts, run)
        seconds = run.result["train"]["seconds"]
        print(f"Finished: {run.quality:.4f} bits per byte after {seconds:.0f} seconds of training.")
    return run.quality


def describe(parts: Parts, run: RunDir) -> str:
    """The run in three lines."""
    c, unit = parts.cost, 1e6
    length = f"{parts.steps:,} steps" if parts.steps else f"{parts.budget.amount:g} seconds, steps"
    lines = [
        f"{run.arm}, seed {run.seed} → {run.folder}",
        f"{c.total / unit:.2f}M parameters, {c.active / unit:.2f}M active; "
        f"{c.flops_per_token / unit:.1f} MFLOPs a token; "
        f"{length} of {parts.tokens_per_step:,} tokens",
    ]
    if match := parts.match:
        kind = match.kind.replace("_", " ")
        how = f"solved for {kind}" if match.solved else f"as given, {kind} not matched"
        lines.append(f"ffn.d_hidden={match.d_hidden} {how}: {match.error:+.2%} of a dense FFN's")
    return "\n".join(lines)


def load_run(folder: str | Path) -> Parts:
    """A finished run's configuration, data and trained model.

    Raises UserError where the folder holds no finished run.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file() or not (folder / "final.ckpt").is_file():
        raise UserError(
            f"{folder} is not the folder of a finished run: it needs config.yaml and final.ckpt."
        )
    saved = OmegaConf.load(folder / "config.yaml")
    # An option that did not exist then has its default.
    trainer = OmegaConf.load(conf_dir() / "trainer" / "default.yaml")
    config: Any = OmegaConf.to_container(OmegaConf.merge({"trainer": trainer}, saved), resolve=True)
    config["trainer"] |= {"accelerator": "auto", "devices": 1, "precision": "32-true"}
    match = read_json(folder / "result.json").get("match")
    if match:  # solved then; how costs are counted may have changed since
        config["ffn"]["d_hidden"] = match["d_hidden"]
    parts = build(config)
    parts.model.load_state_dict(torch.load(folder / "final.ckpt", map_location="cpu"))
    return parts
