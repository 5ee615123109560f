"""`hydra/sweeper=grid`: grids by name and Hydra's comma lists, without the runs that are done."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from router_lab.launch.compose import Composer


class GridSweeper(Sweeper):
    """Expands the `grid` node (see `router_lab.launch.plan`) and launches the runs that are to do.

    Ends the process with status 1 if a run failed, now or earlier without `retry=true`.

    Raises:
        UserError: see `router_lab.launch.plan.arms_of`.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        from router_lab.launch.skip import left_to_do
        from router_lab.runs.folder import run_dir

        composer, overrides = self.runs(arguments)
        todo, failed_before = left_to_do(composer, overrides, retry=self.config.retry)
        returns = self.launcher.launch(todo, initial_job_idx=0) if todo else []
        failed = [job for job in returns if job.status != JobStatus.COMPLETED]
        if not hasattr(self.launcher, "composer"):  # ours prints them itself
            for job in failed:
                print(f"failed: {' '.join(job.overrides or ())}: {job._return_value}")
        folder = run_dir(composer.compose(overrides[0])).folder.parent
        if any(folder.glob("*/result.json")):
            print(f"Next: router-lab compare {shlex.quote(str(folder))}")
        if failed or failed_before:
            sys.exit(1)
        return [returns]

    def runs(self, arguments: list[str]) -> tuple[Composer, list[tuple[str, ...]]]:
        """The overrides of each run, checked, and what composes their configurations."""
        from router_lab.launch.compose import Composer
        from router_lab.launch.plan import refuse_no_effect, refuse_same, without_idle

        overrides = self.expand(arguments)
        load_plugins(overrides)
        composer = getattr(self.launcher, "composer", None)
        composer = composer or Composer(self.hydra_context.config_loader, self.config)
        arms = dict.fromkeys(one[:-1] for one in overrides)  # the seed is last
        configs = {arm: cfg for arm in arms if (cfg := self.composed(composer, arm)) is not None}
        refuse_no_effect(configs)
        overrides = [without_idle(one, configs.get(one[:-1])) for one in overrides]
        if self.config.hydra.runtime.choices.get("grid") and not self.swept:
            refuse_same(configs)
        return composer, overrides

    def composed(self, composer: Composer, arm: tuple[str, ...]) -> DictConfig | None:
        """The configuration of an arm. Raises UserError, with its name, if it can't be composed."""
        from router_lab.commands.mistakes import in_arm

        with in_arm(arm):
            return composer.compose(arm)

    def expand(self, arguments: list[str]) -> list[tuple[str, ...]]:
        """The overrides of each run, from what the command line gives."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        from router_lab.launch.plan import Arm, arms_of, cross

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        extras: dict[str, list[str]] = {}
        for override in parser.parse_overrides(arguments):
            key = override.get_key_element()
            if override.is_sweep_override():
                extras[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            else:
                extras[key] = [str(override.input_line)]

        grid = self.config.grid
        chosen = self.config.hydra.runtime.choices.get("grid")
        name = chosen if chosen and grid.name == "single" else grid.name
        names = extras.pop("grid.name", [f"grid.name={name}"])
        extras = {k: v for k, v in extras.items() if k != "grid" and not k.startswith("grid.")}
        arms = arms_of(grid)
        if arm := extras.pop("arm", None):
            arms = [Arm(arm[0].partition("=")[2], one.overrides) for one in arms]
        seeds = [value.partition("=")[2] for value in extras.pop("seed", [])]
        if not seeds:
            seeds = [str(seed) for seed in (grid.seeds if chosen else [self.config.seed])]
        self.swept = any(len(alternatives) > 1 for alternatives in extras.values())
        return cross(arms, [names[:1], *extras.values()], seeds)


class PlanSweeper(GridSweeper):
    """`router-lab plan`: shows the runs instead of launching them.

    Args:
        measure: whether to time a few steps of arms that have not been trained yet.
    """

    def __init__(self, measure: bool = True) -> None:
        self.measure = measure

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        from router_lab.commands.plan import show

        composer, overrides = self.runs(arguments)
        show(overrides, composer.compose, self.launcher, self.measure)
        return []

    def composed(self, composer: Composer, arm: tuple[str, ...]) -> DictConfig | None:
        """None if it can't be composed: the plan names all such arms."""
        try:
            return composer.compose(arm)
        except Exception:
            return None


def load_plugins(runs: list[tuple[str, ...]]) -> None:
    """Imports the loose files that a grid names, so that its arms can use what they register."""
    if given := {one for overrides in runs for one in overrides if one.startswith("plugins=")}:
        from router_lab.commands.train import load_named_plugins
        from router_lab.registry import store_configs

        load_named_plugins(sorted(given))
        store_configs()
