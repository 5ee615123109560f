"""One run: built from its configuration, trained, evaluated, written down."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from router_lab.budget import Budget, Cost, Match, cost, solve_width
from router_lab.data import Corpus, load_corpus
from router_lab.errors import UserError
from router_lab.grid import RunDir, prepare_run, write_json
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

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is done."""
        if self.steps is None:
            return min(seconds / self.budget.amount, 1.0)
        return min(step / self.steps, 1.0)


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
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    config.pop("hydra", None)
    torch.set_num_threads(int(config["trainer"]["threads"]))
    parts = build(config)
    with prepare_run(cfg) as run:
        if run.finished:
            print(f"Already finished: {run.folder} ({run.quality:.4f} bits per byte).")
        else:
            _fit(parts, run)
    return run.quality


def _fit(parts: Parts, run: RunDir) -> None:
    from lightning import Trainer, seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import TensorBoardLogger

    from router_lab.board.overview import hparams, write_overview
    from router_lab.callbacks.clock import Clock
    from router_lab.callbacks.evaluation import Evaluation
    from router_lab.callbacks.layers import LayerFigures
    from router_lab.callbacks.progress import TerminalProgress
    from router_lab.callbacks.status import Status
    from router_lab.callbacks.tensorboard import Board
    from router_lab.callbacks.watch import ExpertWatch
    from router_lab.data.module import WindowsDataModule
    from router_lab.result import result_of
    from router_lab.task import LMTask

    _quiet()
    config, options = parts.config, parts.config["trainer"]
    seed_everything(config["seed"], verbose=False)
    print(describe(parts, run), flush=True)
    write_overview(run.folder.parent, parts.corpus.val.floor is not None)
    table = parts.corpus.token_bytes
    token_bytes = None if table is None else torch.as_tensor(table)
    clock = Clock(parts.budget.amount if parts.steps is None else None)
    watch = ExpertWatch(options["validations"], options["log_every"])
    figures = LayerFigures(parts.corpus.vocab_size, len(parts.corpus.domains), watch)
    evaluation = Evaluation(
        clock, figures, parts.tokens_per_step, parts.cost.flops_per_token, token_bytes
    )
    task = LMTask(
        torch.compile(parts.model) if options["compile"] else parts.model,  # type: ignore[arg-type]
        parts.losses,
        config["optim"],
        lambda step: parts.progress(step, clock.seconds),
    )
    interval: Any
    if parts.steps is None:
        interval, every = timedelta(seconds=parts.budget.amount / options["validations"]), 100
    else:
        every = max(1, parts.steps // options["validations"])
        interval = every * options["accumulate"]
    trainer = Trainer(
        accelerator=options["accelerator"],
        devices=options["devices"],
        precision=options["precision"],
        max_steps=-1 if parts.steps is None else parts.steps,
        accumulate_grad_batches=options["accumulate"],
        gradient_clip_val=config["optim"]["clip"],
        val_check_interval=interval,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=TensorBoardLogger(run.folder, name="", version="", default_hp_metric=False),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=10**9,
        callbacks=[
            clock,
            watch,
            evaluation,
            Board(
                evaluation,
                options["log_every"],
                hparams(config, run.arm, parts.d_hidden, parts.cost.active),
                config,
                run.overrides,
                parts.corpus.domains,
            ),
            TerminalProgress(evaluation, parts.steps),
            Status(run, evaluation, parts.steps),
            ModelCheckpoint(
                run.folder / "checkpoints",
                filename="last",
                every_n_train_steps=every,
                enable_version_counter=False,
            ),
        ],
    )
    data = WindowsDataModule(
        parts.corpus,
        seq_len=parts.model.seq_len,
        batch_size=options["batch_size"],
        seed=config["seed"],
        val_windows=options["val_windows"],
        workers=options["workers"],
    )
    trainer.fit(task, data, ckpt_path=run.checkpoint, weights_only=False)
    if not evaluation.curve or evaluation.curve[-1]["step"] != trainer.global_step:
        trainer.validate(task, data, verbose=False)
    if trainer.is_global_zero:
        torch.save(parts.model.state_dict(), run.folder / "final.ckpt")
        write_json(run.folder / "result.json", result_of(parts, run, evaluation, trainer.global_step))


def _quiet() -> None:
    """Lightning's tips and advice are not about the experiment."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


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
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True)
    assert isinstance(config, dict)
    parts = build(config)
    parts.model.load_state_dict(torch.load(folder / "final.ckpt", map_location="cpu"))
    return parts
