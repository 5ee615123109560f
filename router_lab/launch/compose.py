"""The configuration of every run of a grid, without composing each from files."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from router_lab.paths import conf_dir


class Composer:
    """Composes each choice of groups once (65 ms) and sets plain values on copies of it (5 ms).

    The result is the same, as Hydra sets plain values last too.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader = loader
        self.master = master
        self.parser = OverridesParser.create()
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The whole configuration, including hydra's node, as if given on the command line.

        Raises:
            hydra.errors.HydraException: the configuration refuses an override.
        """
        parsed = self.parser.parse_overrides(list(overrides))
        values = [one for one in parsed if self._is_value(one)]
        choices = tuple(str(one.input_line) for one in parsed if one not in values)
        if choices not in self._composed:
            self._composed[choices] = self.loader.load_sweep_config(self.master, list(choices))
        cfg = copy.deepcopy(self._composed[choices])
        try:
            for one in values:
                OmegaConf.update(cfg, one.key_or_group, one.value(), merge=True)
        except OmegaConfBaseException:
            return self.loader.load_sweep_config(
                self.master, list(overrides)
            )  # for its error message
        cfg.hydra.overrides.task = list(overrides)
        return cfg

    def _is_value(self, one: Override) -> bool:
        key = one.key_or_group
        group = "/" in key or key in self.master.hydra.runtime.choices
        return one.type == OverrideType.CHANGE and one.package is None and not group


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The configuration of one run with these overrides, Hydra's own node included.

    Raises hydra.errors.HydraException for overrides that do not fit.
    """
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)
