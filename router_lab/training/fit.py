"""Trains one run to its end and writes its result. Lightning is imported here."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace

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
from router_lab.training.callbacks.checkpoint import Checkpoint
from router_lab.training.callbacks.clock import Clock
from router_lab.training.callbacks.evaluation import Evaluation
from router_lab.training.callbacks.layers import LayerFigures
from router_lab.training.callbacks.progress import TerminalProgress
from router_lab.training.callbacks.status import Status
from router_lab.training.callbacks.tensorboard import Board
from router_lab.training.callbacks.watch import ExpertWatch
from router_lab.training.result import result_of
from router_lab.training.task import LMTask

NEVER = 10**12
"""Batches between validations where the Clock says when they are due."""


def fit(
    experiment: Experiment, run: RunDir, ranks: int = 1, callbacks: Sequence[Callback] = ()
) -> None:
    """Trains from the run's checkpoint, or from the beginning, and writes result.json.

    Args:
        ranks: processes that train the run; this is one of them.
        callbacks: called after ours.

    Raises:
        Interrupted: a stop was asked for; the checkpoint is written.
        UserError: training diverged.
    """
    quiet()
    options = experiment.trainer
    seed_everything(experiment.seed, verbose=False)
    clock = Clock(experiment.steps, experiment.budget.amount, options.validations)
    watch = ExpertWatch(options.validations, options.log_every)
    figures = LayerFigures(experiment.corpus.vocab_size, len(experiment.corpus.domains), watch)
    table = experiment.corpus.token_bytes
    evaluation = Evaluation(
        clock,
        figures,
        experiment.tokens_per_step,
        experiment.cost.flops_per_token,
        None if table is None else torch.as_tensor(table),
    )
    if options.compile:
        for module in experiment.model.modules():
            if isinstance(module, MoE):
                module.keep_experts_eager()
        experiment.model.compile()
    task = LMTask(
        experiment.model,
        experiment.losses,
        experiment.optimiser,
        clock.done,
        experiment.seed,
    )
    board = Board(
        evaluation,
        options.log_every,
        hparams(
            run.arm, run.seed, list(experiment.model.routers().values()), experiment.cost.active
        ),
        experiment.config,
        run.overrides,
        experiment.corpus.domains,
    )
    write_overview(run.folder.parent, experiment.corpus.val.floor is not None)
    trainer = Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=_strategy(experiment.model, ranks),
        precision=options.precision,
        max_steps=experiment.steps or -1,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=experiment.optimiser.clip,
        val_check_interval=NEVER,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=TensorBoardLogger(
            run.folder,
            name="",
            version="",
            default_hp_metric=False,
            purge_step=_purge_step(experiment, run),
        ),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=10**9,
        callbacks=[  # in this order: a checkpoint keeps what the others saw of the same step
            clock,
            watch,
            evaluation,
            board,
            TerminalProgress(evaluation, experiment.corpus.unit),
            Status(run, evaluation),
            Checkpoint(run, clock),
            *callbacks,
        ],
    )
    data = WindowsDataModule(
        experiment.corpus,
        seq_len=experiment.model.seq_len,
        batch_size=options.batch_size,
        seed=experiment.seed,
        val_windows=options.val_windows,
        val_batch=options.val_batch,
        workers=options.workers,
    )
    trainer.fit(task, data, ckpt_path=run.checkpoint, weights_only=False)
    if not evaluation.curve or evaluation.curve[-1]["step"] != trainer.global_step:
        trainer.validate(task, data, verbose=False)  # it was killed just before
    result = result_of(experiment, run, evaluation, watch, trainer.global_step)
    if trainer.is_global_zero:
        if options.probe_tokens and routed_layers(experiment.model):
            trained = replace(experiment, trained=trainer.global_step)
            result["probe"] = Job(trained, options.probe_tokens).run()
        torch.save(experiment.model.state_dict(), run.folder / "final.ckpt")
        write_json(run.folder / "result.json", result)
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)  # three times the weights


def _purge_step(experiment: Experiment, run: RunDir) -> int | None:
    """The step from which TensorBoard drops what a killed process wrote after its checkpoint."""
    if run.checkpoint is None:
        return None
    saved = torch.load(run.checkpoint, map_location="cpu", weights_only=False, mmap=True)
    return int(saved["global_step"]) * experiment.tokens_per_step + 1


def _strategy(model: Transformer, ranks: int) -> str | Strategy:
    if ranks == 1:
        return "auto"
    return DDPStrategy(
        # An expert in a list is unused in a step in which it gets no token.
        find_unused_parameters=any(isinstance(m, ExpertList) for m in model.modules()),
        # Routers' buffers change by the sums over all ranks, so they are the same already; and in
        # validation, ranks may have different numbers of batches.
        broadcast_buffers=False,
    )


def quiet() -> None:
    """Silences Lightning's tips, which are not about the experiment."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*called before the ``update`` method.*")  # no token
