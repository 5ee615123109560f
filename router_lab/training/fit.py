"""Trains one run to its end and writes its result. Lightning is imported here."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from router_lab.board.overview import hparams, write_overview
from router_lab.data.module import WindowsDataModule
from router_lab.experiment import Experiment
from router_lab.model.experts import ExpertList
from router_lab.model.ffns.moe import MoE
from router_lab.model.transformer import Transformer
from router_lab.probe.run import Job
from router_lab.probe.trace import routed_layers
from router_lab.runs.folder import RunDir
from router_lab.runs.status import write_json
from router_lab.training.callbacks.checkpoint import SaveAndStop
from router_lab.training.callbacks.clock import Clock
from router_lab.training.callbacks.evaluation import Evaluation
from router_lab.training.callbacks.progress import StatusFile, TerminalProgress
from router_lab.training.callbacks.tensorboard import Board
from router_lab.training.result import result_of
from router_lab.training.task import LMTask


def fit(
    experiment: Experiment, run: RunDir, ranks: int = 1, callbacks: Sequence[Callback] = ()
) -> None:
    """Trains from the run's checkpoint, or from the beginning, and writes result.json.

    Args:
        ranks: number of processes that train the run, including this one.
        callbacks: further ones.

    Raises:
        Interrupted: a stop was asked for; the checkpoint is written.
        UserError: training diverged.
    """
    options, corpus, model = experiment.trainer, experiment.corpus, experiment.model
    seed_everything(experiment.seed, verbose=False)
    clock = Clock(experiment.steps, experiment.budget.amount, options.validations)
    evaluation = Evaluation(experiment, clock)
    if options.compile:
        for module in model.modules():
            if isinstance(module, MoE):
                module.keep_experts_eager()
        model.compile()
    task = task_of(experiment, clock.done)
    row = hparams(run.arm, run.seed, list(model.routers().values()), experiment.cost.active)
    write_overview(run.folder.parent, corpus.val.floor is not None)
    trainer = trainer_of(
        experiment,
        [
            clock,
            evaluation,
            evaluation.watch,
            Board(
                evaluation,
                options.log_every,
                row,
                experiment.config,
                run.overrides,
                corpus.domains,
            ),
            TerminalProgress(evaluation, corpus.unit),
            StatusFile(run, evaluation, corpus.unit),
            SaveAndStop(run, clock),
            *callbacks,
        ],
        devices=options.devices,
        strategy=_strategy(model, ranks),
        max_steps=experiment.steps or -1,
        enable_checkpointing=True,
        logger=TensorBoardLogger(
            run.folder,
            name="",
            version="",
            default_hp_metric=False,
            purge_step=_purge_step(experiment, run),
        ),
    )
    data = WindowsDataModule(
        corpus,
        seq_len=model.seq_len,
        batch_size=options.batch_size,
        seed=experiment.seed,
        val_windows=options.val_windows,
        val_batch=options.val_batch,
        workers=options.workers,
    )
    trainer.fit(task, data, ckpt_path=run.checkpoint, weights_only=False)
    if not evaluation.curve or evaluation.curve[-1]["step"] != trainer.global_step:
        trainer.validate(task, data, verbose=False)  # it was killed just before
    result = result_of(experiment, run, evaluation, trainer.global_step)
    if trainer.is_global_zero:
        if options.probe_tokens and routed_layers(model):
            trained = replace(experiment, trained=trainer.global_step)
            result["probe"] = Job(trained, options.probe_tokens).run()
        torch.save(model.state_dict(), run.folder / "final.ckpt")
        write_json(run.folder / "result.json", result)
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)  # three times the weights


def task_of(experiment: Experiment, progress: Callable[[int], float]) -> LMTask:
    """The task of an experiment; see LMTask for `progress`."""
    return LMTask(
        experiment.model, experiment.losses, experiment.optimiser, progress, experiment.seed
    )


HOOKS = (
    "on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward",
    "on_after_backward", "on_before_optimizer_step",
)  # fmt: skip


def without_empty_hooks(callbacks: list[Callback]) -> list[Callback]:
    """Hides the hooks of each step that a callback does not define.

    Lightning opens a profiler's context around each call, but passes over a hook that is not
    callable.
    """
    for callback in callbacks:
        for name in HOOKS:
            if getattr(type(callback), name) is getattr(Callback, name):
                setattr(callback, name, None)
    return callbacks


def trainer_of(experiment: Experiment, callbacks: list[Callback], **options: Any) -> Trainer:
    """A Trainer that trains as the experiment says and leaves the rest to the callbacks."""
    for name in ("lightning.pytorch", "lightning.fabric"):  # tips that are not about the experiment
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*called before the ``update`` method.*")  # no token
    return Trainer(
        accelerator=experiment.trainer.accelerator,
        precision=experiment.trainer.precision,
        accumulate_grad_batches=experiment.trainer.accumulate,
        gradient_clip_val=experiment.optimiser.clip,
        val_check_interval=10**12,  # the Clock says when a validation is due
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=10**9,
        callbacks=without_empty_hooks(callbacks),
        **options,
    )


def _purge_step(experiment: Experiment, run: RunDir) -> int | None:
    """Tokens from which TensorBoard drops what a killed process wrote after its checkpoint."""
    if run.checkpoint is None:
        return None
    saved = torch.load(run.checkpoint, map_location="cpu", weights_only=False, mmap=True)
    return int(saved["global_step"]) * experiment.tokens_per_step + 1


def _strategy(model: Transformer, ranks: int) -> str | Strategy:
    if ranks == 1:
        return "auto"
    return DDPStrategy(
        # An expert of an ExpertList is unused in a step in which it gets no token.
        find_unused_parameters=any(isinstance(m, ExpertList) for m in model.modules()),
        # Routers update their buffers from sums over all ranks, so they are equal; and ranks may
        # have different numbers of validation batches.
        broadcast_buffers=False,
    )
