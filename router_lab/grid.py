"""A run's folder: its name, its lock, its status. No torch here: grids are planned before it loads.

A run lives in `out/<grid>/<arm>-s<seed>-<fingerprint>/`. The fingerprint covers everything that
decides the result, so the same command finds the same folder (finished: nothing to do; interrupted:
goes on from `checkpoints/last.ckpt`) and a changed option makes another one. It leaves the seed and
the arm's name out: all seeds of an arm share one fingerprint.

    with prepare_run(cfg) as run:          # takes the lock, writes config.yaml and status.json
        if run.finished:
            return run.quality
        train(..., ckpt_path=run.checkpoint)   # a callback calls run.stop.check() after each step
        write(run.folder / "result.json")

Leaving the block marks the run finished, failed (with the reason) or interrupted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from router_lab.errors import UserError

SCHEMA = 1
SINGLE = "single"

# What a run's result does not depend on. Everything else in the configuration counts.
IGNORED = (
    "hydra", "grid", "out", "arm", "seed", "retry", "plugins",
    "trainer.threads", "trainer.workers", "trainer.log_every",
)  # fmt: skip


class Interrupted(BaseException):
    """The run was asked to stop. Not an Exception: nothing on the way may take it for a failure."""


class Busy(UserError):
    """Another process is training this run."""


def fingerprint(cfg: DictConfig) -> str:
    """16 hex digits of everything that decides the result, the content of loose files included.

    Raises:
        UserError: a file named in `plugins` is not there.
    """
    tree = OmegaConf.to_container(_without_hydra(cfg), resolve=True)
    assert isinstance(tree, dict)
    plugins = tree.get("plugins") or []
    for path in IGNORED:
        *parents, last = path.split(".")
        node: Any = tree
        for key in parents:
            node = node.get(key) or {}
        node.pop(last, None)
    tree["plugin_contents"] = sorted(_digest(_plugin_bytes(path)) for path in plugins)
    return _digest(json.dumps(tree, sort_keys=True, default=str).encode())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _plugin_bytes(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"plugins: {path} can't be read ({error.strerror}).") from error


def _without_hydra(cfg: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def arm_name(cfg: DictConfig) -> str:
    """The arm's name: given, or else the router's, or the FFN's where there is no router.

    Raises:
        UserError: the name can't be a folder's.
    """
    name = cfg.get("arm")
    if name is None:
        ffn = OmegaConf.select(cfg, "ffn.name")
        name = OmegaConf.select(cfg, "router.name") if ffn in (None, "moe") else ffn
    name = str(name)
    if not re.fullmatch(r"[A-Za-z0-9][\w.,=+@-]{0,119}", name):
        raise UserError(
            f"arm={name!r} can't name a folder: use at most 120 letters, digits and any of _.,=+@-"
        )
    return name


@dataclass
class StopRequest:
    """Set by the first SIGINT or SIGTERM; a second one ends the run at once."""

    signal: str | None = None

    def check(self) -> None:
        """Call after each step, once the checkpoint of a requested stop has been written.

        Raises:
            Interrupted: the run was asked to stop.
        """
        if self.signal:
            raise Interrupted(self.signal)


@dataclass(frozen=True)
class RunDir:
    """Who a run is and where it lives. Nothing on disk is touched by making one."""

    folder: Path
    grid: str
    arm: str
    seed: int
    fingerprint: str
    overrides: tuple[str, ...] = ()
    stop: StopRequest = field(default_factory=StopRequest, compare=False)

    @property
    def name(self) -> str:
        return f"{self.arm} s{self.seed}"

    @property
    def finished(self) -> bool:
        return is_finished(self.folder)

    @property
    def checkpoint(self) -> Path | None:
        """Where to go on from, or None at the beginning."""
        path = self.folder / "checkpoints" / "last.ckpt"
        return path if path.exists() else None

    @property
    def result(self) -> dict[str, Any]:
        return read_json(self.folder / "result.json")

    @property
    def quality(self) -> float | None:
        """Bits per byte of the finished run: what a search minimises."""
        return self.result.get("quality", {}).get("bits_per_byte")

    @property
    def command(self) -> str:
        """The command that makes this run, and no other."""
        import shlex

        return shlex.join(["router-lab", "train", *self.overrides])

    def status(self, **fields: Any) -> None:
        """Update status.json: `step=120, steps=400, bits_per_byte=2.1, seconds_left=30.0, ...`."""
        write_status(self.folder, **fields)


def run_dir(cfg: DictConfig, overrides: tuple[str, ...] = ()) -> RunDir:
    """The run that this configuration describes.

    Raises:
        UserError: the arm's name or a plugin's path is not usable.
    """
    arm, seed, print_ = arm_name(cfg), int(cfg.seed), fingerprint(cfg)
    grid = OmegaConf.select(cfg, "grid.name") or SINGLE
    folder = Path(cfg.out) / grid / f"{arm}-s{seed}-{print_[:8]}"
    return RunDir(folder, grid, arm, seed, print_, overrides)


def is_finished(folder: Path) -> bool:
    """Whether the run has its result. result.json is written last, and by a rename."""
    return (folder / "result.json").exists()


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; empty if there is none (yet)."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write all or nothing: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1))
    draft.replace(path)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_status(folder: Path, **fields: Any) -> None:
    """Change these fields of status.json, and the time in `updated`."""
    path = folder / "status.json"
    write_json(path, {**read_json(path), **fields, "updated": now()})


def read_status(folder: Path) -> dict[str, Any]:
    """status.json as it is now; a run that says it is running, but holds no lock, was interrupted.

    Empty if the run has not begun.
    """
    status = read_json(folder / "status.json")
    if is_finished(folder):
        status["state"] = "finished"
    elif status.get("state") == "running" and not is_locked(folder):
        status |= {"state": "interrupted", "reason": "its process ended without a word"}
    return status


def is_locked(folder: Path) -> bool:
    """Whether a process is training this run at the moment."""
    try:
        with (folder / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the run. The kernel lets go of it however the process ends.

    Raises:
        Busy: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        for attempt in range(10):  # `is_locked` of another launch may hold it for a moment
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02 * attempt)
        else:
            file.seek(0)
            raise Busy(f"{folder} is being trained by another process ({file.read().strip()}).")
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def prepare_run(cfg: DictConfig) -> Iterator[RunDir]:
    """Hold the run's folder for as long as it trains; see the module's docstring.

    A stop that was asked for ends the process with status 130, after the run is marked interrupted.

    Raises:
        Busy: another process is training this run.
        UserError: see `run_dir`.
    """
    run = run_dir(cfg, _overrides())
    with lock(run.folder), _stop_on_signals(run.stop):
        if run.finished:
            yield run
            return
        OmegaConf.save(_without_hydra(cfg), run.folder / "config.yaml", resolve=True)
        (run.folder / "overrides.yaml").write_text(OmegaConf.to_yaml(list(run.overrides)))
        first = read_json(run.folder / "status.json")
        write_json(
            run.folder / "status.json",
            {
                "schema": SCHEMA, "state": "running", "reason": None,
                "pid": os.getpid(), "host": socket.gethostname(),
                "arm": run.arm, "seed": run.seed, "fingerprint": run.fingerprint,
                "step": 0, "steps": 0, "tokens": 0,
                "bits_per_byte": None, "max_vio": None, "seconds_left": None,
                "started": first.get("started") or now(), "updated": now(),
            },
        )  # fmt: skip
        try:
            yield run
        except BaseException as error:
            # Once a stop is asked for, Lightning may end the process by SystemExit before we do.
            asked = run.stop.signal and isinstance(error, SystemExit)
            if not (asked or isinstance(error, Interrupted | KeyboardInterrupt)):
                run.status(state="failed", reason=describe(error))
                raise
            run.status(state="interrupted", reason=run.stop.signal or "SIGINT")
            print(
                "Interrupted: the same command goes on from the last checkpoint.", file=sys.stderr
            )
            raise SystemExit(130) from None
        if run.finished:
            run.status(state="finished", reason=None, seconds_left=0.0)
        else:
            run.status(state="failed", reason="it ended without a result")


def describe(error: BaseException) -> str:
    """A failure in one line."""
    text = (str(error).strip() or "no message").splitlines()[0]
    if isinstance(error, UserError):
        return text
    if isinstance(error, SystemExit):
        return f"it called exit({text if str(error) else 0})"
    return f"{type(error).__name__}: {text}"


def _overrides() -> tuple[str, ...]:
    from hydra.core.hydra_config import HydraConfig

    return tuple(HydraConfig.get().overrides.task) if HydraConfig.initialized() else ()


@contextlib.contextmanager
def _stop_on_signals(stop: StopRequest) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a request, the second one into Interrupted.

    A SIGTERM handler that is there already (a cluster's, which requeues the job) stays.
    """

    def ask(number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if stop.signal:
            raise Interrupted(name)
        stop.signal = name
        print(f"{name}: stopping after this step; once more to stop at once.", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    replaced = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            replaced[number] = signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


OmegaConf.register_new_resolver(
    "run_folder", lambda _root_: str(run_dir(_root_).folder), replace=True
)
