"""Sentences for errors that the user's input caused."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from router_lab.check import Option, choices_text
from router_lab.errors import UserError


def mistake(error: BaseException | None) -> str | None:
    """A sentence for an error that the user's input caused; None for a bug of ours."""
    if isinstance(error, UserError):
        return str(error)
    hydra, omegaconf = sys.modules.get("hydra.errors"), sys.modules.get("omegaconf.errors")
    if hydra is not None and isinstance(error, hydra.MissingConfigException):
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        from router_lab.commands.help import groups

        if choices := error.options or groups().get(group):
            return f"{group}={name} does not exist; {choices_text(name, choices)}."
        return f"{error.missing_cfg_file}: there is no such configuration."
    if hydra is not None and isinstance(error, hydra.HydraException):
        cause = error.__cause__
        if match := re.match(r"Could not override '([^']+)'", str(error)):
            return no_option(match[1], cause)
        first = str(error).splitlines()[0].removeprefix("Error merging override ")
        if match := re.match(r"Ambiguous value for argument '([^']+)'", first):
            return f"{match[1]} has several values; add -m to train a run for each of them."
        if option := option_of(cause):
            return f"{first} is not possible; it must be {option.right}."
        return f"{first}: {str(cause).splitlines()[0]}" if cause and str(cause) else first
    if "Unknown plugin class : 'hydra_plugins.hydra_submitit" in str(error):
        return "This launcher needs an extra: pip install 'router-lab[slurm]'."
    if omegaconf is not None and isinstance(error, omegaconf.OmegaConfBaseException):
        return str(error).splitlines()[0]
    return None


@contextmanager
def in_arm(overrides: Sequence[str]) -> Iterator[None]:
    """Puts the arm's name before the sentence about a mistake in the block."""
    try:
        yield
    except Exception as error:
        arm = next((one for one in overrides if one.startswith("arm=")), None)
        sentence = mistake(error)
        if arm is None or sentence is None:
            raise
        name = arm.partition("=")[2].strip("'")
        raise UserError(f"The arm {name}: {sentence}") from error


def option_of(cause: Any) -> Option | None:
    """The option of a registered class whose value OmegaConf refused."""
    registry, name = getattr(getattr(cause, "object_type", None), "registered", (None, ""))
    options = registry.options(name) if registry else ()
    return next((option for option in options if option.name == cause.key), None)


def no_option(given: str, cause: Any) -> str:
    """A sentence for an option that does not exist.

    Args:
        given: the override's key.
        cause: OmegaConf's error, which has the full key if the option is inside a value.
    """
    key = getattr(cause, "full_key", None) or given
    section, _, name = key.rpartition(".")
    registry, owner = getattr(getattr(cause, "object_type", None), "registered", (None, ""))
    if registry:
        return str(registry.no_option(owner, name))
    hint = "`router-lab train --help` shows all options"
    if section == "capacity":
        hint = "choose a limit first: capacity=position, probability or priority"
    elif section.partition(".")[0] == "loss":
        loss = key.split(".")[1]
        hint = f"choose the loss first, loss={loss}, or add it to the others: +{given}=…"
    elif section.partition(".")[0] == "ffn":
        hint = f"++{key}=… adds one that the layer or its expert takes"
    return f"There is no option {key} here; {hint}."
