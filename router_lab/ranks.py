"""Several processes of one run (DDP): starting them, and what they have to agree on."""

from __future__ import annotations

import os
import signal
import socket
import traceback
from collections.abc import Hashable, Mapping, Sequence
from multiprocessing import SimpleQueue, get_context
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException, start_processes

from router_lab.errors import UserError
from router_lab.grid import Interrupted, RunDir
from router_lab.status import describe

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
POLL = 0.2  # seconds
GRACE = 5.0  # seconds the others have to end once one has failed


def n_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def agreed(values: Sequence[float], device: torch.device) -> list[float]:
    """What rank 0 says. Clocks and signals differ between ranks, and all must do the same."""
    if n_ranks() == 1:
        return list(values)
    shared = torch.tensor(values, dtype=torch.float32, device=device)
    dist.broadcast(shared, src=0)
    return shared.tolist()


def everywhere(own: Mapping[K, T]) -> dict[K, T]:
    """This rank's entries, and those of others that it lacks, in one order on all ranks.

    An inner expert that got no token on a rank has no record there.
    """
    if n_ranks() == 1:
        return dict(own)
    ranks: list[Any] = [None] * n_ranks()
    dist.all_gather_object(ranks, dict(own))
    union = {name: value for one in ranks for name, value in one.items()} | dict(own)
    return {name: union[name] for name in sorted(union)}


def fit_on_ranks(n: int, config: dict[str, Any], run: RunDir) -> None:
    """Trains the run in n processes of its own.

    Lightning would run the command line again in each of them, which knows nothing of subcommands.

    Raises:
        UserError, RuntimeError: what went wrong in one of them.
        Interrupted: a stop was asked for, and all have ended.
    """
    failures = get_context("spawn").SimpleQueue()
    context = start_processes(_rank, (n, _free_port(), config, run, failures), nprocs=n, join=False)
    asked = False
    try:
        while not context.join(timeout=POLL, grace_period=GRACE):
            if run.stop.signal and not asked:
                asked = True
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
    rank: int, n: int, port: int, config: dict[str, Any], run: RunDir, failures: SimpleQueue
) -> None:
    """One process. Ctrl-C reaches all of them, and so does what the first process forwards."""

    def stop(number: int, _frame: FrameType | None) -> None:
        run.stop.signal = signal.Signals(number).name

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    os.environ.update(  # what Lightning looks for where it did not start the processes
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NODE_RANK="0", LOCAL_RANK=str(rank)
    )
    from router_lab.fit import fit
    from router_lab.run import build

    try:
        torch.set_num_threads(int(config["trainer"]["threads"]))
        fit(build(config), run, ranks=n)
    except Interrupted:
        return
    except UserError as error:
        failures.put((UserError, str(error)))
        raise
    except Exception as error:
        traceback.print_exc()
        failures.put((RuntimeError, describe(error)))
        raise


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
