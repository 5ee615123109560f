"""Runs side by side on one machine: a process per run, GPUs divided among them, a clean stop."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from types import FrameType
from typing import Any, Literal

from router_lab.launch import child
from router_lab.launch.child import Job, Outcome
from router_lab.launch.view import View
from router_lab.runs.status import now, read_json, write_status

Slot = tuple[str, ...] | None
"""A place for one run: the GPUs that it sees; None leaves the environment as it is."""


@dataclass
class Running:
    job: Job
    slot: Slot
    process: Any
    pipe: connection.Connection
    asked_to_stop: bool = False


def slots(
    workers: int | None, gpus: Sequence[str], gpus_per_run: int = 1, jobs_per_gpu: int = 1
) -> list[Slot]:
    """The places for runs; without GPUs one for each core.

    With GPUs, `gpus_per_run` neighbours form a place, and each place is listed `jobs_per_gpu`
    times, in rounds: no GPU gets a second run while another has none.
    """
    if not gpus:
        return [None] * (workers or cores())
    starts = range(0, len(gpus) - gpus_per_run + 1, gpus_per_run)
    places: list[Slot] = [tuple(gpus[i : i + gpus_per_run]) for i in starts]
    return (places * jobs_per_gpu)[: workers or None]


def cores() -> int:
    """Cores that this process may use; a container or a batch system often grants only a few."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """Runs jobs until all have ended; a failed run does not affect the others.

    Args:
        slots: one run at a time in each.
        view: displays the runs.
        preload: modules imported once, in the process that all runs are forked from.
        grace: seconds that runs have to write a checkpoint after they are asked to stop.
    """

    def __init__(
        self, slots: Sequence[Slot], view: View, preload: Sequence[str] = (), grace: float = 60.0
    ) -> None:
        self.view = view
        self.grace = grace
        self.free = list(slots)
        self.running: list[Running] = []
        self.stopped_at = 0.0
        self.stop_requests = 0
        # One thread per run: two processes with one thread do in 7 s what two with two do in 36 s.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(preload))

    @property
    def interrupted(self) -> bool:
        return self.stop_requests > 0

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Every job's outcome, in order; `interrupted` for those that a stop kept from starting."""
        outcomes = {job.index: Outcome("interrupted", "it had not begun") for job in jobs}
        waiting = list(jobs)
        with self._signals(), self.view:
            while self.running or (waiting and not self.interrupted):
                while waiting and self.free and not self.interrupted:
                    self._start(waiting.pop(0))
                if self.interrupted:
                    self._stop_runs()
                connection.wait([one.process.sentinel for one in self.running], timeout=0.5)
                for one in [one for one in self.running if not one.process.is_alive()]:
                    outcome = outcomes[one.job.index] = self._end(one)
                    self.view.ended(one.job.run, outcome.state, outcome.reason)
                self.view.update(
                    [one.job.run for one in self.running], len(waiting), self.interrupted
                )
        return [outcomes[job.index] for job in jobs]

    def _start(self, job: Job) -> None:
        slot = self.free.pop(0)
        if "started" not in read_json(job.run.folder / "status.json"):
            # Written here to keep the order of the grid, which reports sort arms by.
            write_status(job.run.folder, started=now())
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(
            target=child.main, args=(job, slot, theirs), name=job.run.name
        )
        process.start()
        theirs.close()
        self.running.append(Running(job, slot, process, ours))
        self.view.started(job.run)

    def _end(self, one: Running) -> Outcome:
        """What the process reported; what it could not report is written to status.json."""
        self.running.remove(one)
        self.free.append(one.slot)
        one.process.join()
        message: Outcome | None = None
        with contextlib.suppress(EOFError, OSError):
            message = one.pipe.recv() if one.pipe.poll() else None
        one.pipe.close()
        folder, pid, code = one.job.run.folder, one.process.pid, one.process.exitcode
        one.process.close()

        if message and message.state in ("finished", "busy"):
            return message
        status = read_json(folder / "status.json")
        if status.get("pid") == pid and status.get("state") in ("failed", "interrupted"):
            return Outcome(status["state"], status.get("reason"))
        # It was killed, or it ended before it locked its folder.
        state: Literal["interrupted", "failed"] = "interrupted" if one.asked_to_stop else "failed"
        reason = message.reason if message else exit_reason(code)
        write_status(folder, state=state, reason=reason)
        return Outcome(state, reason)

    def _stop_runs(self) -> None:
        """Asks each run to stop once; kills them after `grace` or a second Ctrl-C."""
        late = time.monotonic() - self.stopped_at > self.grace
        for one in self.running:
            if late or self.stop_requests > 1:
                one.process.kill()
            elif not one.asked_to_stop:
                one.process.terminate()
            one.asked_to_stop = True

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(_number: int, _frame: FrameType | None) -> None:
            self.stop_requests += 1
            self.stopped_at = self.stopped_at or time.monotonic()

        handlers = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def exit_reason(code: int | None) -> str:
    """Why a process ended without reporting.

    >>> exit_reason(-9)
    'killed by SIGKILL (the kernel does so when memory runs out)'
    """
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (the kernel does so when memory runs out)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return f"its process ended with status {code}"
