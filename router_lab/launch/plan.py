"""Which runs a grid has: arms are named lists of overrides, and the seeds go across all of them.

    grid:
      name: first_look            # the folder; the file's name if left out
      seeds: [0, 1]
      common: [model=micro]       # every arm's, before its own
      arms:                       # a union, one arm per line
        mlp: [ffn=mlp]
        switch: [router=switch, router.factor=1.25]
      product:                    # and a product: one more arm for each combination
        - [router=softmax_topk, router=noisy_topk]          # named softmax_topk, noisy_topk
        - {tight: [capacity.factor=1.0], loose: [capacity.factor=2.0]}
      only: []                    # a subset of the arms, by name

Overrides on the command line go to every arm and win over the grid's; a comma list there crosses
the arms (`optim.lr=1e-3,3e-3`). Without a grid, `-m` is a grid of one unnamed arm.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from router_lab.check import choices_text, shown
from router_lab.errors import UserError
from router_lab.runs.fingerprint import idle_nodes
from router_lab.runs.folder import run_dir

Overrides = tuple[str, ...]
KEYS = ("name", "seeds", "common", "arms", "product", "only")
AXIS = ", each a list of overrides, such as [[router=switch, router=gshard], [router.k=1]]"
MISPLACED = {
    "hydra": "give it on the command line, or under hydra: in the file",
    "grid": "write it under grid: in the file",
    "retry": "give it on the command line",
    "seed": "use grid.seeds",
    "arm": "an arm is named by its key",
}
"""Nodes that an arm can't change, and where to change them."""


@dataclass(frozen=True)
class Arm:
    """One arm of a grid. Its name defaults to its router's: `router_lab.runs.folder.arm_name`."""

    name: str | None
    overrides: Overrides

    def crossed(self, label: str, overrides: Overrides) -> Arm:
        name = f"{self.name},{label}" if self.name else label
        return Arm(name, (*self.overrides, *overrides))


def arms_of(grid: Mapping[str, Any]) -> list[Arm]:
    """The arms that the `grid` node describes, `common` included; one unnamed arm if it has none.

    Raises:
        UserError: something in the node is not as in this module's docstring, `only` names an arm
            that does not exist, or two arms have one name.
    """
    for key in grid:
        if key not in KEYS:
            raise UserError(
                f"grid has no key {key}; {choices_text(key, KEYS, what='its keys are')}."
            )
    seeds = grid.get("seeds")
    if seeds is not None and not (_is_list(seeds) and all(type(one) is int for one in seeds)):
        raise UserError(
            f"grid.seeds={shown(seeds)} must be a list of whole numbers, such as [0, 1]."
        )
    common = _overrides(grid.get("common"), "grid.common")
    named = grid.get("arms") or {}
    if not isinstance(named, Mapping):
        raise UserError("grid.arms must be a mapping of names to overrides: {a: [router=switch]}.")
    arms = [Arm(str(name), _overrides(own, f"grid.arms.{name}")) for name, own in named.items()]
    axes = grid.get("product")
    if not _is_list(axes or []):
        raise UserError(f"grid.product must be a list of axes{AXIS}; it is {shown(axes)}.")
    if axes:
        combinations = [Arm(None, ())]
        for axis in axes:
            combinations = [
                arm.crossed(label, own) for arm in combinations for label, own in _axis(axis)
            ]
        arms += combinations
    names = [str(arm.name) for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"grid: two arms are called {name}; give one of them another name.")
    if only := grid.get("only"):
        only = [only] if isinstance(only, str) else [str(name) for name in only]
        for name in only:
            if name not in names:
                right = choices_text(name, names, what="the arms are")
                raise UserError(f"grid.only: there is no arm {name}; {right}.")
        arms = [arm for arm in arms if arm.name in only]
    return [Arm(arm.name, common + arm.overrides) for arm in arms or [Arm(None, ())]]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _axis(axis: Any) -> list[tuple[str, Overrides]]:
    if isinstance(axis, Mapping):
        return [(str(name), _overrides(own, f"grid.product.{name}")) for name, own in axis.items()]
    if not _is_list(axis):
        raise UserError(f"grid.product must be a list of axes{AXIS}; {shown(axis)} is not an axis.")
    return [(label(one), (one,)) for one in _overrides(axis, "grid.product")]


def _overrides(values: Any, where: str) -> Overrides:
    """The overrides of a list, checked to be overrides that belong there."""
    if not _is_list(values or []):
        raise UserError(
            f"{where} must be a list of overrides, such as [router=switch, router.k=1]; "
            f"it is {shown(values)}."
        )
    for one in values or []:
        if not (isinstance(one, str) and re.match(r"~|[^\s=]+=", one)):
            raise UserError(f"{where}: {shown(one)} is not an override, such as router=switch.")
        if reason := MISPLACED.get(root(one)):
            raise UserError(f"{where}: {one} has no effect there; {reason}.")
    return tuple(values or ())


def root(override: str) -> str:
    """The node of the configuration that an override is about: `router` of `+router.k=2`."""
    key = override.partition("=")[0].lstrip("+~")
    return re.split(r"[./@]", key)[0]


def label(override: str) -> str:
    """How an override shows in an arm's name: `router=switch` is switch, `router.k=2` is k=2."""
    path, _, value = override.partition("=")
    parents, _, key = path.lstrip("+~").rpartition(".")
    value = value.strip("'\"").replace("\\", "") or "none"
    number = re.fullmatch(r"[-+.\de]*\d", value)
    if number and len(value) > 6:  # a search came up with it
        value = f"{float(value):.4g}"
    safe = "".join(c if c.isalnum() or c in "_.=+@-" else "_" for c in value)
    return f"{key}={safe}" if parents or number else safe.strip("_")


def named(arm: str) -> str:
    """The override that names an arm."""
    return f"arm={arm}" if re.fullmatch(r"[\w.@-]+", arm) else f"arm='{arm}'"


def cross(
    arms: Iterable[Arm], extras: Sequence[Sequence[str]], seeds: Sequence[str]
) -> list[Overrides]:
    """The overrides of every run, the first seed of all arms first.

    Args:
        extras: one list of alternatives for each key of the command line; those with more than one
            alternative cross the arms and show in their names.
        seeds: values of `seed`.
    """
    crossed = []
    for arm, choices in itertools.product(arms, list(itertools.product(*extras))):
        for choice, alternatives in zip(choices, extras, strict=True):
            if len(alternatives) > 1:
                arm = arm.crossed(label(choice), (choice,))
            else:
                arm = Arm(arm.name, (*arm.overrides, choice))
        crossed.append(arm)
    return [
        (
            *_last_wins(arm.overrides),
            *([named(arm.name)] if arm.name else []),
            f"seed={seed}",
        )
        for seed in seeds
        for arm in crossed
    ]


def refuse_no_effect(configs: Mapping[Overrides, DictConfig]) -> None:
    """Raises UserError for an override that has no effect in any of the configurations with it."""
    idle_with: dict[str, str] = {}
    for overrides, cfg in configs.items():
        idle = idle_nodes(cfg)
        for one in overrides:
            if root(one) not in idle or one.endswith(("=none", "=null")):
                idle_with[one] = ""
            else:
                idle_with.setdefault(one, f"ffn={cfg.ffn.name}")
    for override, ffn in idle_with.items():
        if ffn:
            raise UserError(f"{override} has no effect with {ffn}; leave it out.")


def without_idle(overrides: Overrides, cfg: DictConfig | None) -> Overrides:
    """Those that act, so that the command of the run alone is accepted too."""
    idle = idle_nodes(cfg) if cfg is not None else ()
    return tuple(one for one in overrides if root(one) not in idle)


def refuse_same(configs: Mapping[Overrides, DictConfig]) -> None:
    """Raises UserError if two arms describe the same run."""
    arms: dict[str, str] = {}
    for cfg in configs.values():
        run = run_dir(cfg)
        other = arms.setdefault(run.fingerprint, run.arm)
        if other != run.arm:
            raise UserError(
                f"grid: the arms {other} and {run.arm} are the same; change one or leave it out."
            )


def searched(overrides: Sequence[str], given: Sequence[str]) -> list[str]:
    """What a search adds to the overrides that were given; empty where a grid has named the arm."""
    if any(override.startswith("arm=") for override in overrides):
        return []
    fixed = ("seed=", "grid.name=")
    return [one for one in overrides if one not in given and not one.startswith(fixed)]


def _last_wins(overrides: Overrides) -> Overrides:
    """Hydra refuses a key given twice; here what comes later is meant."""
    by_key = {override.partition("=")[0].lstrip("+"): override for override in overrides}
    return tuple(by_key.values())
