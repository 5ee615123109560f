"""Trains one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf

from router_lab.errors import UserError
from router_lab.experiment import Experiment, build
from router_lab.registry import LOOSE
from router_lab.routing import ROUTERS
from router_lab.runs.fingerprint import without_hydra
from router_lab.runs.folder import RunDir, prepare_run, run_dir

if TYPE_CHECKING:
    from lightning import Callback


def train(cfg: DictConfig, callbacks: Sequence[Callback] = ()) -> float | None:
    """Trains the run that the configuration describes, unless it is finished.

    Args:
        callbacks: further ones, for a run on one device.

    Returns: its bits per byte, which a search minimises.
    """
    config: Any = OmegaConf.to_container(without_hydra(cfg), resolve=True)
    run = run_dir(cfg)
    if run.finished:
        unit = run.result["data"].get("unit", "byte")
        print(f"Already finished: {run.quality:.4f} bits per {unit} in {run.folder}")
        return run.quality
    experiment = build(config)
    refuse_broken_plugin(experiment)
    torch.set_num_threads(experiment.trainer.threads)
    ranks = experiment.trainer.n_devices
    with prepare_run(cfg) as run:
        if run.finished:  # by another process, while this one was building
            return run.quality
        print(describe(experiment, run), flush=True)
        if ranks > 1:
            from router_lab.training.processes import fit_on_ranks

            fit_on_ranks(ranks, config, run)
        else:
            from router_lab.training.fit import fit

            fit(experiment, run, callbacks=callbacks)
        seconds = run.result["train"]["seconds"]
        quality = f"{run.quality:.4f} bits per {experiment.corpus.unit}"
        print(f"Finished: {quality} after {seconds:.0f} seconds of training.")
    return run.quality


def refuse_broken_plugin(experiment: Experiment) -> None:
    """Raises UserError if the router is from a loose file and its record is not as it must be."""
    options = dict(experiment.config["ffn"].get("router") or {})
    cls = ROUTERS.get(options.pop("name")) if options else None
    if cls is None or not cls.__module__.startswith(LOOSE):
        return
    from router_lab.testing.contract import CHECKS
    from router_lab.testing.subject import ContractError, Subject

    router = next(iter(experiment.model.routers().values()))
    try:
        CHECKS[0](Subject(cls, options, experiment.config["model"]["d_model"], router.n_experts))
    except ContractError as error:
        raise UserError(str(error)) from error


def describe(experiment: Experiment, run: RunDir) -> str:
    """The run in three lines; a fourth if the budget is rounded up by more than 10%."""
    cost = experiment.cost
    steps, amount = experiment.steps, experiment.budget.amount
    length = f"{steps:,} steps" if steps else f"{amount:g} seconds, steps"
    lines = [
        f"{run.arm}, seed {run.seed} → {run.folder}",
        f"{cost.total / 1e6:.2f}M parameters, {cost.active / 1e6:.2f}M active; "
        f"{cost.flops_per_token / 1e6:.1f} MFLOPs per token;  "
        f"{length} of {experiment.tokens_per_step:,} tokens",
    ]
    tokens = (steps or 0) * experiment.tokens_per_step
    if experiment.budget.kind == "tokens" and tokens > 1.1 * amount:
        lines.append(
            f"budget=tokens:{amount:g} is rounded up to whole steps: {tokens:,} tokens are trained"
        )
    if match := experiment.match:
        kind = match.kind.replace("_", " ")
        how = f"solved for {kind}" if match.solved else f"as given, {kind} not matched"
        lines.append(f"ffn.d_hidden={match.d_hidden} {how}: {match.error:+.2%} of a dense FFN's")
    return "\n".join(lines)
