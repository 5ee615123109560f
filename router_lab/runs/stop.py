"""Stopping a run cleanly: a signal becomes a request that the run honours after its step."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any


class Interrupted(BaseException):
    """The run was asked to stop. Not an Exception, so that nothing handles it as a failure."""


@dataclass
class StopRequest:
    """A request to stop.

    Attributes:
        signal: name of the signal that asked; None if none did.
        requeue: puts the job back into the cluster's queue and ends the process.
    """

    signal: str | None = None
    requeue: Callable[[], object] | None = None

    def check(self) -> None:
        """To call after each step, when the checkpoint of a requested stop has been written.

        Raises:
            Interrupted: the run was asked to stop.
        """
        if self.signal:
            raise Interrupted(self.signal)


@contextlib.contextmanager
def stop_on_signals(stop: StopRequest) -> Iterator[None]:
    """Turns the first signal into a request, and a second SIGINT or SIGTERM into Interrupted.

    If something handles SIGUSR1 or SIGUSR2 already, such as submitit, which then requeues a
    preempted job, its handler is called when the checkpoint is written.
    """
    handlers: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number in (signal.SIGUSR1, signal.SIGUSR2):
            stop.requeue = functools.partial(handlers[number], number, frame)
        elif stop.signal:
            raise Interrupted(name)
        stop.signal = stop.signal or name
        # Not by print(), which is not reentrant. In a terminal it replaces the progress bar.
        clear = "\r\x1b[K" if os.isatty(2) else ""
        line = f"{clear}{name}: stopping after this step; once more to stop at once.\n"
        os.write(2, line.encode())

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            handler = signal.getsignal(number)
            if number in (signal.SIGINT, signal.SIGTERM) or callable(handler):
                handlers[number] = signal.signal(number, ask)
    try:
        yield
    finally:
        for replaced, handler in handlers.items():
            signal.signal(replaced, handler)
