"""`router-lab train`: the Hydra application."""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig

from router_lab.commands.arguments import checked
from router_lab.errors import UserError
from router_lab.launch.plan import refuse_no_effect
from router_lab.paths import conf_dir
from router_lab.registry import load_plugin, store_configs


def train_command(arguments: list[str]) -> None:
    """Composes the configuration of these Hydra arguments and trains what it describes.

    Raises:
        UserError, or an error of Hydra's: the configuration is invalid.
    """
    if {"-h", "--help"} & set(arguments):
        from router_lab.commands.help import print_help

        load_named_plugins(arguments)
        store_configs()
        print_help([text for text in arguments if not text.startswith("-")])
        return
    make_out(arguments)
    hand_to_hydra("train", arguments)
    main()


def hand_to_hydra(command: str, arguments: list[str]) -> None:
    """Checks the arguments and prepares plugins, the choices of groups and sys.argv for Hydra."""
    flags, overrides = checked(arguments)
    load_named_plugins(arguments)
    store_configs()
    # Makes Hydra raise its errors, which `main` turns into sentences.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Our preset deliberately has the name of submitit's own.
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/submitit_slurm' is validated")
    sys.argv = [f"router-lab {command}", *flags, *for_the_arms(overrides)]


def for_the_arms(overrides: list[str]) -> list[str]:
    """The overrides, those that only a grid's arms can take marked for the sweeper.

    Hydra applies plain values before the arms choose their router or FFN, when they may not fit; a
    choice of one value goes to the sweeper alone.
    """
    if not any(text.startswith("grid=") for text in overrides):
        return overrides
    parser = OverridesParser.create()

    def left(text: str) -> str:
        if not re.match(r"(router|ffn|loss|capacity|data|optim)\.[\w.]+=.", text):
            return text
        [one] = parser.parse_overrides([text])
        if one.is_sweep_override():
            return text
        return f"{one.key_or_group}=choice({text.partition('=')[2]})"

    return [left(text) for text in overrides]


def load_named_plugins(arguments: list[str]) -> None:
    """Imports the loose files of `plugins=[…]`, so that their names can be chosen."""
    for override in _given(arguments, "plugins"):
        paths = override.value()
        for path in paths if isinstance(paths, list) else [paths]:
            load_plugin(str(path))


def make_out(arguments: list[str]) -> None:
    """Creates the folder that `out=` names, before Hydra fails on it less clearly."""
    for override in _given(arguments, "out"):
        try:
            Path(str(override.value())).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"out={override.value()} can't be a folder for runs ({error.strerror}); "
                "give one that can be written."
            ) from error


def _given(arguments: list[str], key: str) -> list[Override]:
    texts = [text for text in arguments if text.startswith(f"{key}=")]
    return OverridesParser.create().parse_overrides(texts)


@hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    try:
        if hydra_config.mode == RunMode.RUN:
            refuse_no_effect({tuple(hydra_config.overrides.task): cfg})
        from router_lab.training.run import train

        return train(cfg)
    except UserError as error:
        if hydra_config.mode == RunMode.MULTIRUN:
            raise  # the launcher records it and goes on
        print(f"router-lab: {error}", file=sys.stderr)
        sys.exit(2)
