"""`router-lab dev FILE`: at each save the contract, then a short run against softmax_topk."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from router_lab.errors import UserError

SHORT = (
    "model=nano", "data=languages", "budget=tokens:200k",
    "trainer.validations=10", "trainer.val_windows=32",
)  # fmt: skip
"""About 20 seconds on one core; command-line overrides come after."""
REFERENCE = "softmax_topk"
CHILD = "router_lab.commands.dev_child"
PRELOAD = [CHILD, "router_lab.training.task", "torch.utils.tensorboard", "torch._dynamo"]


@dataclass
class Child:
    """A process that sends (kind, value) pairs, and what it has sent."""

    process: Any
    pipe: Connection
    points: dict[int, float] = field(default_factory=dict)
    alive: bool = True

    def messages(self) -> Iterator[tuple[str, Any]]:
        """Those that have arrived; keeps the points of the curve (tokens: bits per byte)."""
        while self.alive and self.pipe.poll():
            try:
                kind, value = self.pipe.recv()
            except EOFError:
                kind, value = "end", None
            self.alive = kind != "end"
            if kind == "point":
                self.points[value[0]] = value[1]
            yield kind, value

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


class Dev:
    """The loop of a router's author: save, see the contract, see the difference grow.

    Args:
        path: the router's file.
        router: its name, where the file registers several; None: the last one.
        overrides: of the short runs, after `SHORT`.
        folder: where they are trained; each has a folder of its own in it.
    """

    def __init__(
        self, path: Path, router: str | None, overrides: list[str], folder: str, console: Console
    ) -> None:
        self.path, self.router, self.overrides = path, router, overrides
        self.folder, self.console = folder, console
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)
        self.reference: Child | None = None
        self.n_runs = 0

    def watch(self, saves: int | None = None) -> None:
        """Goes on until Ctrl-C.

        Args:
            saves: ends after this many versions of the file; None: never.
        """
        try:
            while saves is None or saves > 0:
                version = self._version()
                self._say(Text(f"{time.strftime('%X')}  {self.path.name}", "bold"))
                name = self._check(version)
                if name is not None:
                    self._compare(name, version)
                saves = None if saves is None else saves - 1
                while saves != 0 and self._version() == version:
                    time.sleep(0.2)
        finally:
            if self.reference is not None:
                self.reference.kill()

    def _version(self) -> bytes | None:
        return self.path.read_bytes() if self.path.exists() else None

    def _check(self, version: bytes | None) -> str | None:
        """Prints how the contract is kept; the router's name if all of it is."""
        start, passed, problems, name = time.monotonic(), 0, 0, None
        with self._child("check", str(self.path), self.router) as child:
            while child.alive and self._version() == version:
                for kind, value in child.messages():
                    if kind == "router":
                        name = value
                    elif kind == "error":
                        problems += 1
                        self._say(Text(f"  {value}", "red"))
                    elif kind == "check" and value[1] is not None:
                        problems += 1
                        self._say(Text(f"  {value[1]}", "red"))
                    elif kind == "check":
                        passed += 1
                child.pipe.poll(0.1)
            if child.alive or problems:
                return None
        self._say(f"  {name} keeps the contract: {passed} checks in {_since(start)}")
        return name

    def _compare(self, name: str, version: bytes | None) -> None:
        """Prints both curves and their difference as they grow, until the end or the next save."""
        if self.reference is None:
            self.reference = self._start("train", self._run(REFERENCE))
        shown: set[int] = set()
        with self._child("train", [f"plugins=[{self.path}]", *self._run(name)]) as child:
            while self._version() == version:
                for one in (child, self.reference):
                    for kind, value in one.messages():
                        if kind == "error":
                            self._say(Text(f"  {value}", "red"))
                            return
                both = child.points.keys() & self.reference.points.keys()
                for tokens in sorted(both - shown):
                    if not shown:
                        self._say(f"  bits per byte   {name:>16}   {REFERENCE:>16}    difference")
                    self._row(tokens, child.points[tokens], self.reference.points[tokens])
                shown |= both
                if not child.alive and not self.reference.alive:
                    more = f"'plugins=[{self.path.name}]' router={REFERENCE},{name} seed=0,1,2"
                    self._say("  One seed decides nothing; to decide:")
                    self._say(f"  router-lab train -m {more}")
                    return
                time.sleep(0.1)

    def _row(self, tokens: int, bits: float, reference: float) -> None:
        difference = bits - reference
        bar = "▇" * min(round(abs(difference) / 0.005), 40)
        row = Text(
            f"  {tokens:>9,} tokens {bits:>18.4f}   {reference:>16.4f}   {difference:>+11.4f}  "
        )
        self._say(row + Text(bar, "green" if difference < 0 else "yellow"))

    def _run(self, router: str) -> list[str]:
        self.n_runs += 1
        return [f"router={router}", *SHORT, *self.overrides, f"out={self.folder}/{self.n_runs}"]

    def _start(self, task: str, *arguments: Any) -> Child:
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(
            target=_in_child, args=(task, theirs, *arguments), daemon=True
        )
        process.start()
        theirs.close()
        return Child(process, ours)

    @contextmanager
    def _child(self, task: str, *arguments: Any) -> Iterator[Child]:
        child = self._start(task, *arguments)
        try:
            yield child
        finally:
            child.kill()

    def _say(self, text: str | Text) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


def _in_child(task: str, *arguments: Any) -> None:
    from router_lab.commands import dev_child

    dev_child.in_child(getattr(dev_child, task), *arguments)


def dev(path: str, router: str | None = None, overrides: list[str] | None = None) -> None:
    """Watches a router's file until Ctrl-C, which leaves nothing behind.

    Raises:
        UserError: the file does not exist.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UserError(
            f"{path} does not exist; `router-lab new NAME` writes a router to start from."
        )
    with tempfile.TemporaryDirectory(prefix="router-lab-dev-") as folder:
        console = Console()
        console.print(f"Watching {path}; Ctrl-C ends.", highlight=False)
        Dev(file, router, list(overrides or []), folder, console).watch()


def _since(start: float) -> str:
    return f"{time.monotonic() - start:.1f} s"
