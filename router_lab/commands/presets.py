"""The presets in conf/: options of a registered class under one name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from router_lab.paths import conf_dir


@dataclass(frozen=True)
class Preset:
    """A file of conf/GROUP.

    Attributes:
        about: its first comment.
        of: the registered class whose options it sets; empty if there is none.
        values: those options.
        chooses: choices in other groups.
    """

    name: str
    path: Path
    about: str
    of: str
    values: dict[str, Any]
    chooses: dict[str, str]


def presets(group: str) -> list[Preset]:
    """The presets of a Hydra group, by name."""
    return [_read(path) for path in sorted((conf_dir() / group).glob("*.yaml"))]


def _read(path: Path) -> Preset:
    text = path.read_text()
    comments = [line[2:] for line in text.splitlines() if re.match(r"# (?!@)", line)]
    values = yaml.safe_load(text) or {}
    chosen = values.pop("defaults", [])
    of = next((one for one in chosen if isinstance(one, str) and one != "_self_"), "")
    chooses = {
        re.sub(r"^override /|@.*", "", group): name
        for one in chosen
        if isinstance(one, dict)
        for group, name in one.items()
    }
    if not of:
        values = {}
    elif of in values:  # the options of a loss are under its name
        values = values[of]
    return Preset(path.stem, path, " ".join(comments), of, values, chooses)
