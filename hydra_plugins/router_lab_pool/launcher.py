"""`hydra/launcher=pool`: a process per run. See conf/hydra/launcher/pool.yaml for its options."""

# Hydra imports this module without entering it in sys.modules, so @dataclass can't read string
# annotations here: no `from __future__ import annotations`.

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from router_lab.launch.child import Job, Outcome
    from router_lab.launch.pool import Slot


@dataclass
class PoolLauncher(Launcher):
    """Runs every job in its own process; a failed job does not affect the others.

    A stop (Ctrl-C, SIGTERM) ends the process with status 130 once every run has been checkpointed.
    """

    workers: int | None = None
    gpus: Any = "auto"
    gpus_per_run: int = 1
    jobs_per_gpu: int = 1
    grace: float = 60.0
    report_every: float = 30.0
    preload: Sequence[str] = ()

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        from router_lab.launch.compose import Composer

        self.config = config
        self.task_function = task_function
        self.composer = Composer(hydra_context.config_loader, config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from router_lab.launch.pool import Pool
        from router_lab.launch.view import View

        jobs = [self._job(initial_job_idx + i, one) for i, one in enumerate(job_overrides)]
        places = self.places([job.config for job in jobs])
        view = View(places=len(places), report_every=self.report_every)
        pool = Pool(places, view, preload=self.preload, grace=self.grace)
        outcomes = pool.run(jobs)
        for job, end in zip(jobs, outcomes, strict=True):
            if end.state == "failed":
                print(f"failed: {job.run.name}: {end.reason}\n  {job.run.folder / 'train.log'}")
        if pool.interrupted:
            print("Interrupted: the same command goes on from here.", file=sys.stderr)
            raise SystemExit(130)
        return [_job_return(one, end) for one, end in zip(job_overrides, outcomes, strict=True)]

    def _job(self, index: int, overrides: Sequence[str]) -> "Job":
        from router_lab.launch.child import Job
        from router_lab.launch.plan import label, named, searched
        from router_lab.runs.folder import arm_name, run_dir

        cfg = self.composer.compose(overrides)
        if parameters := searched(overrides, self.config.hydra.overrides.task):
            arm = ",".join([arm_name(cfg), *map(label, parameters)])[:120]
            cfg = self.composer.compose([*overrides, named(arm)])
        hydra = OmegaConf.masked_copy(cfg, "hydra")
        config: Any = OmegaConf.to_container(cfg)
        del config["hydra"]
        module = self.task_function.__module__
        if module == "__main__" and (spec := sys.modules[module].__spec__):  # `python -m`
            module = spec.name
        task = module, self.task_function.__qualname__
        return Job(index, run_dir(cfg), config, hydra, task)

    def places(self, configs: Sequence[Mapping[str, Any]]) -> "list[Slot]":
        """The places that runs of these configurations share, one run at a time in each."""
        from router_lab.launch.pool import slots

        on_cpu = all(one.get("trainer", {}).get("accelerator") == "cpu" for one in configs)
        if self.gpus == "none" or on_cpu:
            gpus = []
        elif self.gpus != "auto":
            gpus = [str(gpu) for gpu in self.gpus]
        elif visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
            gpus = visible.split(",")
        else:
            import torch

            gpus = [str(index) for index in range(torch.cuda.device_count())]
        return slots(self.workers, gpus, self.gpus_per_run, self.jobs_per_gpu)


def _job_return(overrides: Sequence[str], outcome: "Outcome") -> JobReturn:
    job = JobReturn(overrides=list(overrides))
    if outcome.state in ("finished", "busy"):
        job.status, job.return_value = JobStatus.COMPLETED, outcome.value
    else:
        job.status, job.return_value = JobStatus.FAILED, RuntimeError(outcome.reason)
    return job
