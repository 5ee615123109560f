"""The arguments of `train` and `plan`, checked before Hydra reads them; your own grid files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from router_lab.check import choices_text, shown
from router_lab.errors import UserError
from router_lab.launch.plan import KEYS, root
from router_lab.paths import conf_dir

WITH_VALUE = ("--config-dir", "-cd", "--cfg", "-c", "--package", "-p", "--info", "-i")
FLAGS = ("--multirun", "-m", "--resolve", "--help", "-h", "--hydra-help", *WITH_VALUE)
HYDRAS = ("--run", "-r", "--version", "--shell-completion", "-sc", "--config-path", "-cp")
"""Flags of Hydra's that need no advertisement."""


def checked(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags and overrides of these arguments; `grid=FILE` is read and becomes a choice.

    Raises:
        UserError: an argument is neither, sets what does not exist, or names a broken grid file.
    """
    flags: list[str] = []
    overrides: list[str] = []
    folders: list[Path] = []
    rest = iter(arguments)
    for text in rest:
        name, _, value = text.partition("=")
        if name in WITH_VALUE:
            value = value or next(rest, "")
            flags += [name, value]
            if name in ("--config-dir", "-cd"):
                folders.append(Path(value))
        elif text in FLAGS + HYDRAS:
            flags.append(text)
        else:
            overrides.append(text)
    if {"--shell-completion", "-sc", "--hydra-help"} & set(flags):
        return flags, overrides
    config: Any = OmegaConf.load(conf_dir() / "config.yaml")
    groups = {key for one in config.defaults if not isinstance(one, str) for key in one}
    roots = {str(key) for key in (*config, *groups) if " " not in str(key)} - {"defaults"}
    roots |= {path.name for folder in folders for path in folder.glob("*/")}
    for text in overrides:
        _refuse_mistakes(text, sorted(roots), groups)
    overrides = [_read_grid(text, folders) for text in overrides]
    has_grid = any(re.match(r"\+*grid=(?!null$)", text) for text in overrides)
    if has_grid and not {"-m", "--multirun", "--cfg", "-c", "--info", "-i"} & set(flags):
        flags.append("--multirun")
    for text in overrides:
        if root(text) == "grid" and not has_grid and not re.match(r"\+*grid(\.name)?=", text):
            raise UserError(f"{text} has no effect without a grid; add grid=NAME.")
    return flags, overrides


def _refuse_mistakes(text: str, roots: Sequence[str], groups: set[str]) -> None:
    """Raises UserError if the text is not an override of something that exists."""
    if text.startswith("-"):
        option, _, value = text.lstrip("-").partition("=")
        right = choices_text(text, FLAGS, what="the flags are")
        if root(option) in roots:
            right = f"options are written without dashes: {option}={value or '…'}"
        raise UserError(f"There is no flag {text}; {right}.")
    key, equals, value = text.partition("=")
    if not equals and not text.startswith("~"):
        from router_lab.commands.help import groups as choices_by_group

        near = [f"{group}={text}" for group, names in choices_by_group().items() if text in names]
        such_as = f", such as {' or '.join(near) or 'router=switch'}"
        raise UserError(f"{text} is not an override; write key=value{such_as}.")
    if root(text) not in roots:
        right = choices_text(root(text), roots, "`router-lab train --help` shows all options")
        raise UserError(f"There is no option {key.lstrip('+~')}; {right}.")
    if key in groups and re.fullmatch(r"[-+.\de]*\d", value):
        hint = "the factor is capacity.factor, with a limit such as capacity=position"
        right = hint if key == "capacity" else "it must be one of the choices of --help"
        raise UserError(f"{text} is not possible; {right}.")
    if key == "budget" and "=" in value and value[:1] not in "'\"":
        raise UserError(f"{text} is not possible; write budget={value.replace('=', ':')}.")


def _read_grid(text: str, folders: Sequence[Path]) -> str:
    """`grid=NAME` as it is if it is one of ours; a file is stored as a choice of its own."""
    key, _, value = text.partition("=")
    if key.lstrip("+") != "grid":
        return text
    value = value.strip("'\"")
    path = Path(value).expanduser()
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        named = [folder / "grid" / f"{value}.yaml" for folder in folders]
        path = next((path for path in named if path.is_file()), Path())
        if path == Path():
            return text
    if not path.is_file():
        raise UserError(f"grid={value}: there is no such file.")
    name = re.sub(r"[^\w.-]", "_", path.stem)
    content = grid_of(path)
    content["grid"] = {"name": name, **content["grid"]}
    ConfigStore.instance().store(group="grid/file", name=name, node=content, package="_global_")
    return f"{key}=file/{name}"


def grid_of(path: Path) -> dict[str, Any]:
    """The content of a grid's file, whether or not it has the line `# @package _global_`.

    Raises:
        UserError: it can't be read, or has keys that a grid ignores.
    """
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}).") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path} is not YAML: {problem}{where}.") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} is not a grid: it must have the key grid, with arms in it.")
    if "grid" not in content:  # written for the package `grid`
        inner = {key: value for key, value in content.items() if key not in ("hydra", "defaults")}
        content = {"grid": inner} | {k: v for k, v in content.items() if k not in inner}
    for key in content:
        if key not in ("grid", "hydra", "defaults"):
            where = "under grid:" if key in KEYS else f"in grid.common, as {key}=…"
            raise UserError(f"{path}: {key} has no effect there; write it {where}.")
    if not isinstance(content["grid"], dict):
        raise UserError(f"{path}: grid must be a mapping; it is {shown(content['grid'])}.")
    return {str(key): value for key, value in content.items()}
