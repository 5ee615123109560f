"""One run in its own process, forked from one that has loaded torch and lightning."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from typing import Any

from omegaconf import DictConfig, open_dict

from router_lab.runs.folder import RunDir
from router_lab.runs.status import Busy, describe


@dataclass(frozen=True)
class Job:
    """All that a process needs, picklable.

    Attributes:
        config: the composed configuration as plain containers, as the generated classes behind a
            router's options can't be pickled.
        hydra: Hydra's own node, `{hydra: ...}`, which must keep its type.
        task: module and name of the task function.
    """

    index: int
    run: RunDir
    config: dict[str, Any]
    hydra: DictConfig
    task: tuple[str, str]


@dataclass(frozen=True)
class Outcome:
    """How a run ended: finished, failed, interrupted, or busy (another launch is training it)."""

    state: str
    reason: str | None = None
    value: Any = None


def main(job: Job, gpus: tuple[str, ...] | None, pipe: connection.Connection) -> None:
    """Runs the job with its output in train.log, and sends its Outcome. Raises no Exception.

    Args:
        gpus: the devices that this run may see; None leaves the environment as it is.
    """
    os.setsid()  # Ctrl-C reaches only the parent, which then asks each run to stop
    job.run.folder.mkdir(parents=True, exist_ok=True)
    log = os.open(job.run.folder / "train.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    _stop_with_parent()
    try:
        outcome = Outcome("finished", value=_run(job))
    except Busy as busy:
        outcome = Outcome("busy", describe(busy))
    except SystemExit as end:
        pipe.send(Outcome("failed", describe(end)))
        raise
    except Exception as error:
        traceback.print_exc()
        outcome = Outcome("failed", describe(error))
    pipe.send(outcome)


def _stop_with_parent() -> None:
    """Ends the run if the launch is killed."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _run(job: Job) -> Any:
    """Runs the job as Hydra does, so that the task finds HydraConfig set."""
    import logging

    from hydra._internal.callbacks import Callbacks
    from hydra.core.utils import JobStatus, run_job, setup_globals
    from hydra.types import HydraContext, RunMode

    logging.basicConfig(level=logging.INFO, format="[%(asctime)s][%(name)s] %(message)s")
    setup_globals()
    cfg = job.hydra
    with open_dict(cfg):
        cfg.update(job.config)
        cfg.hydra.mode = RunMode.MULTIRUN
        cfg.hydra.job.id = cfg.hydra.job.num = job.index
        cfg.hydra.sweep.dir = str(job.run.folder)
        cfg.hydra.sweep.subdir = "."
    module, name = job.task  # by name, as what `hydra.main` wraps can't be pickled
    ended = run_job(
        task_function=getattr(importlib.import_module(module), name),
        config=cfg,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=HydraContext(config_loader=None, callbacks=Callbacks(cfg)),  # type: ignore
        configure_logging=False,
    )
    if ended.status != JobStatus.COMPLETED:
        raise ended._return_value
    return ended.return_value
