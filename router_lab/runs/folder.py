"""A run's folder: its name, its lock, its status. Grids are planned before torch is imported.

A run lives in `out/<grid>/<arm>-s<seed>-<fingerprint>/`. The fingerprint covers everything that
decides the result, except the seed and the arm's name: the seeds of an arm share one fingerprint.
So the same command finds the same folder (a finished run is left alone, an interrupted one resumes
from `checkpoints/last.ckpt`), and a changed option leads to another one.

    with prepare_run(cfg) as run:          # takes the lock, writes config.yaml and status.json
        if run.finished:
            return run.quality
        train(..., ckpt_path=run.checkpoint)   # a callback calls run.stop.check() after each step
        write(run.folder / "result.json")

Leaving the block marks the run finished, failed (with the reason) or interrupted.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from omegaconf import DictConfig, OmegaConf

from router_lab.errors import UserError
from router_lab.runs.fingerprint import fingerprint, without_hydra
from router_lab.runs.schema import SCHEMA, Status
from router_lab.runs.state import SILENT_SECONDS, elsewhere, seconds_silent
from router_lab.runs.status import (
    Busy,
    describe,
    heartbeat,
    is_finished,
    lock,
    now,
    read_json,
    write_json,
    write_status,
)
from router_lab.runs.stop import Interrupted, StopRequest, stop_on_signals

SINGLE = "single"


def arm_name(cfg: DictConfig) -> str:
    """The name of the arm: as given, else of its router, else of its FFN.

    Raises:
        UserError: the name can't be used for a folder.
    """
    name = cfg.get("arm")
    if name is None:
        ffn = OmegaConf.select(cfg, "ffn.name")
        name = OmegaConf.select(cfg, "router.name") if ffn in (None, "moe") else ffn
        if OmegaConf.select(cfg, "ffn.expert.name") == "moe":
            name = f"hierarchical_{name}"
    name = str(name)
    if not re.fullmatch(r"[A-Za-z0-9][\w.,=+@-]{0,119}", name):
        raise UserError(
            f"arm={name!r} can't name a folder: use at most 120 letters, digits and any of _.,=+@-"
        )
    return name


@dataclass(frozen=True)
class RunDir:
    """The identity and the folder of a run. Making one touches nothing on disk."""

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
        """The checkpoint to resume from; None at the beginning."""
        path = self.folder / "checkpoints" / "last.ckpt"
        return path if path.exists() else None

    @property
    def result(self) -> dict[str, Any]:
        return read_json(self.folder / "result.json")

    @property
    def quality(self) -> float | None:
        """Bits per byte of the finished run: what a search minimises."""
        quality: float | None = self.result.get("quality", {}).get("bits_per_byte")
        return quality

    @property
    def command(self) -> str:
        """The command that makes this run and no other."""
        return shlex.join(["router-lab", "train", *self.overrides])

    def status(self, **fields: Unpack[Status]) -> None:
        """Updates these fields of status.json."""
        write_status(self.folder, **fields)


def run_dir(cfg: DictConfig, overrides: tuple[str, ...] = ()) -> RunDir:
    """The run that this configuration describes.

    Raises:
        UserError: the arm's name, the seed or a plugin's path is not usable.
    """
    if not isinstance(cfg.seed, int):
        raise UserError(f"seed={cfg.seed}: a seed is a whole number.")
    arm, digits = arm_name(cfg), fingerprint(cfg)
    grid = OmegaConf.select(cfg, "grid.name") or SINGLE
    folder = Path(cfg.out) / grid / f"{arm}-s{cfg.seed}-{digits[:8]}"
    return RunDir(folder, grid, arm, cfg.seed, digits, overrides)


@contextlib.contextmanager
def prepare_run(cfg: DictConfig) -> Iterator[RunDir]:
    """Locks the run's folder while it trains; see the module's docstring.

    A requested stop ends the process with status 130 after the run is marked interrupted.

    Raises:
        Busy: another process is training this run.
        UserError: see `run_dir`.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = cfg.get("hydra") or (HydraConfig.get() if HydraConfig.initialized() else None)
    run = run_dir(cfg, tuple(hydra.overrides.task) if hydra else ())
    with lock(run.folder), stop_on_signals(run.stop):
        if run.finished:
            yield run
            return
        OmegaConf.save(without_hydra(cfg), run.folder / "config.yaml", resolve=True)
        (run.folder / "overrides.yaml").write_text(OmegaConf.to_yaml(list(run.overrides)))
        previous = read_json(run.folder / "status.json")
        _refuse_if_elsewhere(run, previous)
        status: Status = {
            "schema": SCHEMA, "state": "running", "reason": None,
            "pid": os.getpid(), "host": socket.gethostname(),
            "arm": run.arm, "seed": run.seed, "fingerprint": run.fingerprint,
            "step": 0, "steps": 0, "tokens": 0,
            "bits_per_byte": None, "max_vio": None, "seconds_left": None,
            "started": previous.get("started") or now(), "updated": now(),
        }  # fmt: skip
        write_json(run.folder / "status.json", status)
        try:
            with heartbeat(run.folder):
                yield run
        except BaseException as error:
            # After a stop request, Lightning may raise SystemExit before we raise Interrupted.
            requested = run.stop.signal and isinstance(error, SystemExit)
            if not (requested or isinstance(error, Interrupted | KeyboardInterrupt)):
                run.status(state="failed", reason=describe(error))
                raise
            run.status(state="interrupted", reason=run.stop.signal or "SIGINT")
            if run.stop.requeue:
                run.stop.requeue()
            print(
                "Interrupted: the same command resumes from the last checkpoint.", file=sys.stderr
            )
            raise SystemExit(130) from None
        if run.finished:
            run.status(state="finished", reason=None, seconds_left=0.0)
        else:
            run.status(state="failed", reason="it ended without a result")


def _refuse_if_elsewhere(run: RunDir, status: Mapping[str, Any]) -> None:
    """Raises Busy if another machine, which may not see our lock, is training the run."""
    silent = seconds_silent(status)
    if status.get("state") == "running" and elsewhere(status) and silent <= SILENT_SECONDS:
        raise Busy(
            f"{run.folder} is being trained on {status['host']}, which wrote its status "
            f"{silent:.0f} s ago; a run counts as dead after {SILENT_SECONDS:.0f} s without one."
        )
