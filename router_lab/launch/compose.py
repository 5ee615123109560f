"""The configuration of every run of a grid, composed once an arm."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, open_dict

from router_lab.errors import UserError


class Composer:
    """Hydra takes about 0.1 s to compose; runs that differ by their seed alone share one."""

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader = loader
        self.master = master
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The whole configuration, hydra's node included, as if given on the command line.

        Raises:
            UserError: the seed is not a whole number.
            hydra.errors.ConfigCompositionException: an override that the configuration refuses.
        """
        arm = tuple(override for override in overrides if not override.startswith("seed="))
        if arm not in self._composed:
            self._composed[arm] = self.loader.load_sweep_config(self.master, list(arm))
        cfg = copy.deepcopy(self._composed[arm])
        seeds = [override[5:] for override in overrides if override.startswith("seed=")]
        with open_dict(cfg):
            cfg.hydra.overrides.task = list(overrides)
            if seeds:
                try:
                    cfg.seed = int(seeds[-1])
                except ValueError as error:
                    raise UserError(f"seed={seeds[-1]}: a seed is a whole number.") from error
        return cfg
