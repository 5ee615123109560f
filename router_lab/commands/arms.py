"""The arms of a grid before it runs: their runs, what they build, how long they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from router_lab.commands.mistakes import mistake
from router_lab.errors import UserError
from router_lab.launch.estimate import tokens_per_second
from router_lab.launch.skip import will_train
from router_lab.runs.fingerprint import without_hydra
from router_lab.runs.folder import RunDir, run_dir
from router_lab.runs.state import RunState, number, read_state
from router_lab.runs.status import describe

if TYPE_CHECKING:
    from router_lab.experiment import Experiment

Overrides = tuple[str, ...]


@dataclass(frozen=True)
class PlannedRun:
    dir: RunDir
    state: RunState
    to_do: bool


@dataclass(frozen=True)
class ArmPlan:
    """An arm: its runs, one per seed, and what its configuration describes.

    Attributes:
        tokens_per_second: of training, None if unknown.
        source: how that is known: from earlier runs, or from a few steps.
    """

    overrides: Overrides  # without the seed
    runs: list[PlannedRun]
    experiment: Experiment
    tokens_per_second: float | None
    source: str | None

    @property
    def name(self) -> str:
        return self.runs[0].dir.arm

    @property
    def tokens(self) -> int | None:
        """Tokens that a run trains on; None if its budget is in seconds."""
        steps = self.experiment.steps
        return steps * self.experiment.tokens_per_step if steps else None

    @property
    def seconds(self) -> float | None:
        """Seconds per run. A validation window counts as a third of a training window."""
        if self.tokens is None:
            return self.experiment.budget.amount
        if self.tokens_per_second is None:
            return None
        trainer, seq_len = self.experiment.trainer, self.experiment.model.seq_len
        validation = trainer.validations * trainer.val_windows * seq_len / 3
        return (self.tokens + validation) / self.tokens_per_second

    def seconds_left(self) -> list[float | None]:
        """Of each run to do, in the order of the seeds."""
        left = []
        for run in self.runs:
            step, steps = (number(run.state.status, key) for key in ("step", "steps"))
            share = 1 - step / steps if step and steps else 1.0
            if run.to_do:
                left.append(self.seconds and self.seconds * share)
        return left


def planned_arms(
    overrides: Sequence[Overrides], compose: Callable[[Overrides], DictConfig], measure: bool
) -> list[ArmPlan]:
    """The arms of the runs with these overrides.

    Args:
        measure: whether to time a few steps of arms that have never been trained here.

    Raises:
        UserError: an arm cannot be trained; the message lists all such arms.
    """
    seeds: dict[Overrides, list[str]] = {}
    for one in overrides:
        seeds.setdefault(one[:-1], []).append(one[-1])
    arms: list[ArmPlan] = []
    mistakes: dict[str, str] = {}
    for of_arm, of_seeds in seeds.items():
        try:
            arms.append(_arm(of_arm, [compose((*of_arm, seed)) for seed in of_seeds], arms))
        except Exception as error:
            mistakes[_label(of_arm)] = mistake(error) or describe(error)
    if mistakes:
        raise UserError(_sentence(mistakes, len(seeds)))
    return [_timed(arm) for arm in arms] if measure else arms


def _arm(overrides: Overrides, configs: list[DictConfig], before: Sequence[ArmPlan]) -> ArmPlan:
    """The plan of an arm; runs that an arm before it stands for are not to do."""
    planned = {arm.runs[0].dir.fingerprint for arm in before}
    runs: dict[Any, PlannedRun] = {}
    for cfg in configs:
        run = run_dir(cfg)
        state = read_state(run.folder)
        to_do = run.fingerprint not in planned and will_train(state, cfg.retry)
        runs[run.folder] = PlannedRun(run, state, to_do)
    config: Any = OmegaConf.to_container(without_hydra(configs[0]), resolve=True)
    speed = tokens_per_second(one.state for one in runs.values())
    source = "earlier runs on this machine" if speed else None
    return ArmPlan(overrides, list(runs.values()), _counted(config), speed, source)


def _counted(config: dict[str, Any]) -> Experiment:
    """The experiment, its model on the meta device if the constructors allow it."""
    import torch

    from router_lab.experiment import build

    try:
        with torch.device("meta"):
            return build(config)
    except UserError:
        raise
    except Exception:  # a constructor that looks at values, which a meta tensor lacks
        return build(config)


def _timed(arm: ArmPlan) -> ArmPlan:
    """The arm with its speed measured, if it has runs to do and the speed is unknown."""
    if arm.seconds is not None or not arm.seconds_left():
        return arm
    from router_lab.experiment import build
    from router_lab.training import measure

    speed = measure.tokens_per_second(build(arm.experiment.config))
    return replace(arm, tokens_per_second=speed, source="a few steps measured now")


def _label(overrides: Overrides) -> str:
    """The arm's name if it has one, otherwise all of its overrides."""
    named = [text for text in overrides if text.startswith("arm=")]
    return named[-1].partition("=")[2].strip("'") if named else " ".join(overrides)


def _sentence(mistakes: dict[str, str], arms: int) -> str:
    if arms == 1:
        return next(iter(mistakes.values()))
    who = f"{len(mistakes)} of {arms} arms" if len(mistakes) < arms else f"all {arms} arms"
    return "\n  ".join([f"{who} cannot be trained:", *(f"{k}: {v}" for k, v in mistakes.items())])
