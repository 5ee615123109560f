"""`router-lab plan …`: what `router-lab train` with the same arguments would do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from router_lab.commands.arms import Overrides, planned_arms
from router_lab.commands.train import hand_to_hydra
from router_lab.errors import UserError
from router_lab.launch.plan import refuse_no_effect
from router_lab.paths import conf_dir

HELP = """\
usage: router-lab plan [--no-time] ARGUMENTS OF TRAIN

Shows what `router-lab train` with the same arguments would do, without training or writing
anything: the arms, what they differ in, their widths and cost, how many runs are done, and how long
the others take. Arms that were never trained here are timed for a second each, unless --no-time.

  router-lab plan grid=first_look
  router-lab plan -m router=switch,gshard seed=0,1
"""


def plan_command(arguments: list[str]) -> None:
    """Prints the plan for these arguments of train.

    Raises:
        UserError, or an error of Hydra's, for a configuration that cannot be trained.
    """
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    if any(text.startswith("hydra/sweeper=") for text in arguments):
        raise UserError(
            "A search chooses its runs as it goes, so it has no plan; leave hydra/sweeper out."
        )
    ConfigStore.instance().store(
        group="hydra/sweeper",
        name="plan",
        node={
            "_target_": "hydra_plugins.router_lab_pool.sweeper.PlanSweeper",
            "measure": "--no-time" not in arguments,
        },
    )
    given = [text for text in arguments if text != "--no-time"]
    hand_to_hydra("plan", [*given, "hydra/sweeper=plan", "hydra.run.dir=."])
    main()


@hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Hydra calls this for a single run, and PlanSweeper for a grid."""
    hydra_config = HydraConfig.get()
    overrides = (*hydra_config.overrides.task, f"seed={cfg.seed}")
    try:
        refuse_no_effect({overrides: cfg})
        show([overrides], lambda _: cfg, None, hydra_config.sweeper.measure)
    except UserError as error:
        print(f"router-lab: {error}", file=sys.stderr)
        sys.exit(2)


def show(
    overrides: Sequence[Overrides],
    compose: Callable[[Overrides], DictConfig],
    launcher: Any,
    measure: bool,
) -> None:
    """Prints the plan for the runs with these overrides.

    Args:
        launcher: has `places` if it trains on this machine.
        measure: see `planned_arms`.

    Raises:
        UserError: see `planned_arms`.
    """
    from router_lab.commands.plan_table import print_plan

    arms = planned_arms(overrides, compose, measure)
    places = 1
    if hasattr(launcher, "places"):
        places = len(launcher.places([arm.experiment.config for arm in arms]))
    print_plan(arms, places)
