"""One run in several processes (DDP): starts them and passes on a stop or a failure."""

from __future__ import annotations

import os
import signal
import traceback
from multiprocessing import SimpleQueue, get_context
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch.multiprocessing.spawn import ProcessException, start_processes

from router_lab.errors import UserError
from router_lab.experiment import build
from router_lab.runs.folder import RunDir
from router_lab.runs.status import describe
from router_lab.runs.stop import Interrupted
from router_lab.training.fit import fit

POLL = 0.2  # seconds
GRACE = 5.0  # seconds that the others have to end after one has failed


def fit_on_ranks(n: int, config: dict[str, Any], run: RunDir) -> None:
    """Trains the run in n new processes. (Lightning would rerun the command line in each.)

    Raises:
        UserError, RuntimeError: one of the processes failed.
        Interrupted: a stop was requested, and all have ended.
    """
    failures = get_context("spawn").SimpleQueue()
    context = start_processes(
        _rank, (n, find_free_network_port(), config, run, failures), nprocs=n, join=False
    )
    forwarded = False
    try:
        while not context.join(timeout=POLL, grace_period=GRACE):
            if run.stop.signal and not forwarded:
                forwarded = True
                for process in context.processes:
                    process.terminate()
    except ProcessException as error:
        if failures.empty():
            raise RuntimeError(f"A process of the run ended: {error}.") from None
        kind, reason = failures.get()
        raise kind(reason) from None
    finally:
        for process in context.processes:
            process.kill()
    run.stop.check()


def _rank(
    rank: int, n: int, port: int, config: dict[str, Any], run: RunDir, failures: SimpleQueue[Any]
) -> None:
    """One of the processes. Ctrl-C reaches all of them; the parent forwards other signals."""

    def stop(number: int, _frame: FrameType | None) -> None:
        run.stop.signal = signal.Signals(number).name

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    os.environ.update(  # Lightning reads these if it did not start the processes
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NODE_RANK="0", LOCAL_RANK=str(rank)
    )
    try:
        experiment = build(config)
        torch.set_num_threads(experiment.trainer.threads)
        fit(experiment, run, ranks=n)
    except Interrupted:
        return
    except UserError as error:
        failures.put((UserError, str(error)))
        raise
    except Exception as error:
        traceback.print_exc()
        failures.put((RuntimeError, describe(error)))
        raise
