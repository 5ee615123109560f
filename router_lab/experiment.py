"""What a configuration describes, built; and a finished run loaded back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from omegaconf import OmegaConf

from router_lab.check import Count, Option, Rule, at_least
from router_lab.data import Corpus, load_corpus
from router_lab.errors import UserError
from router_lab.losses import BalanceLoss, build_losses
from router_lab.model.budget import Budget, Cost, Match, cost, solve_width
from router_lab.model.optim import OPTIMISERS, Optimiser
from router_lab.model.transformer import MODELS, Transformer
from router_lab.registry import Registry, load_plugin, register
from router_lab.runs.status import read_json

Precision = Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true"]
SEED = Option.of("seed", Annotated[int, Rule("0 to 4294967295", lambda v: 0 <= v < 2**32)])


@dataclass(frozen=True)
class TrainerOptions:
    """How a run trains and evaluates, apart from the model and the optimiser.

    Args:
        batch_size: sequences in a micro-batch.
        accumulate: micro-batches in an optimiser step.
        validations: validations in the whole run, evenly spread.
        val_windows: windows of the validation set.
        val_batch: windows in a validation batch, whatever batch_size is: a capacity limit is shared
            by a batch, so its size changes what is dropped.
        probe_tokens: tokens probed for routing regret at the end; as `router-lab probe` does.
        log_every: steps between points in TensorBoard.
        accelerator: where to train; `auto` takes a GPU if there is one.
        devices: devices of a run, each with a process of its own; `auto` takes all GPUs.
        precision: as Lightning names it.
        threads: threads of torch; one per run is best when runs go side by side.
        workers: processes that load data.
        compile: whether torch.compile is applied to the model.
    """

    batch_size: Count = 8
    accumulate: Count = 1
    validations: Count = 10
    val_windows: Count = 64
    val_batch: Count = 8
    probe_tokens: Annotated[int, at_least(0)] = 0
    log_every: Count = 10
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: Count | Literal["auto"] = 1
    precision: Precision = "32-true"
    threads: Count = 1
    workers: Annotated[int, at_least(0)] = 0
    compile: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for devices that are not there, or a precision that they lack."""
        n_mps, n_cuda = int(torch.backends.mps.is_available()), torch.cuda.device_count()
        if self.accelerator == "mps" and not n_mps:
            raise UserError("trainer.accelerator=mps: there is no MPS device; give auto or cpu.")
        if self.accelerator in ("gpu", "cuda") and not n_cuda:
            raise UserError(
                f"trainer.accelerator={self.accelerator}: there is no CUDA device; "
                "give auto or cpu."
            )
        n = {"mps": n_mps, "cuda": n_cuda}.get(self.device_kind)
        if n is not None and self.devices != "auto" and self.devices > n:
            raise UserError(
                f"trainer.devices={self.devices}, but there are {n} of kind {self.device_kind}."
            )
        if n is None and self.precision in ("16-mixed", "16-true"):
            raise UserError(
                f"trainer.precision={self.precision} needs a GPU; give 32-true, or bf16-mixed "
                "(which is several times slower on most CPUs)."
            )

    @property
    def device_kind(self) -> Literal["cpu", "cuda", "mps"]:
        """What Lightning will choose."""
        auto = self.accelerator == "auto"
        if self.accelerator in ("gpu", "cuda") or (auto and torch.cuda.is_available()):
            return "cuda"
        if self.accelerator == "mps" or (auto and torch.backends.mps.is_available()):
            return "mps"
        return "cpu"

    @property
    def n_devices(self) -> int:
        """How many devices the run uses, each with a process of its own."""
        if self.devices != "auto":
            return self.devices
        return torch.cuda.device_count() if self.device_kind == "cuda" else 1


TRAINERS: Registry[TrainerOptions] = Registry(
    "trainer", TrainerOptions, "router_lab.experiment", "trainers"
)
register("lightning")(TrainerOptions)


@dataclass(frozen=True, repr=False)
class Experiment:
    """Everything a configuration describes, built and checked before anything trains."""

    config: dict[str, Any]
    seed: int
    trainer: TrainerOptions
    optimiser: Optimiser
    corpus: Corpus
    model: Transformer
    losses: dict[str, BalanceLoss]
    cost: Cost
    match: Match | None
    budget: Budget
    trained: int = 0
    """Optimiser steps that the model has done."""

    def __repr__(self) -> str:
        ffn, kind = self.config["ffn"], self.budget.kind
        router = f" with {name}" if (name := (ffn.get("router") or {}).get("name")) else ""
        return (
            f"Experiment({ffn['name']}{router} on {self.corpus.name}, seed {self.seed}: "
            f"{self.cost.total / 1e6:.2f}M parameters, {kind}:{self.budget.amount:g})"
        )

    @property
    def tokens_per_step(self) -> int:
        sequences = self.trainer.batch_size * self.trainer.accumulate * self.trainer.n_devices
        return sequences * self.model.seq_len

    @property
    def steps(self) -> int | None:
        """Optimiser steps of the run; None if its budget is in seconds."""
        return self.budget.steps(self.tokens_per_step, self.cost.flops_per_token)

    @property
    def d_hidden(self) -> int:
        """Width of the slot's FFN, of one expert where it has any."""
        return next(iter(self.model.ffns().values())).d_hidden


def build(config: dict[str, Any]) -> Experiment:
    """Raises UserError for whatever in the configuration cannot be trained."""
    seed = SEED.checked(config["seed"], "seed")
    plugins = config.get("plugins") or []
    if not isinstance(plugins, list):
        raise UserError(f"plugins={plugins} is not possible; give a list of files: [my_router.py].")
    for path in plugins:
        load_plugin(path)
    trainer = TRAINERS.build(config["trainer"])
    optimiser = OPTIMISERS.build(config["optim"])
    options = MODELS.build(config["model"])
    budget = Budget.parse(config["budget"])
    ffn = config["ffn"]
    match = solve_width(config["match"], ffn, options.d_model, options.d_ffn)
    corpus = load_corpus(config["data"], options.seq_len)
    model = Transformer(
        corpus.vocab_size,
        ffn,
        options,
        d_hidden=match.d_hidden if match else None,
        seed=seed,
        token_counts=corpus.token_counts,
    )
    ffns = list(model.ffns().values())
    losses = build_losses(config["loss"], ffns[0].default_losses if ffns else {})
    return Experiment(
        config, seed, trainer, optimiser, corpus, model, losses, cost(model), match, budget
    )


def load_run(folder: str | Path) -> Experiment:
    """A finished run's configuration, data and trained model.

    Raises UserError where the folder holds no finished run.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file() or not (folder / "final.ckpt").is_file():
        raise UserError(
            f"{folder} is not the folder of a finished run: it needs config.yaml and final.ckpt."
        )
    saved = OmegaConf.load(folder / "config.yaml")
    config: Any = OmegaConf.to_container(saved, resolve=True)
    config["trainer"] |= {"accelerator": "auto", "devices": 1, "precision": "32-true"}
    result = read_json(folder / "result.json")
    match = result.get("match")
    if match:  # solved then; how costs are counted may have changed since
        config["ffn"]["d_hidden"] = match["d_hidden"]
    experiment = build(config)
    experiment.model.load_state_dict(torch.load(folder / "final.ckpt", map_location="cpu"))
    return replace(experiment, trained=result.get("train", {}).get("steps", 0))
