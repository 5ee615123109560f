"""Training through the harness with everything on, over a bare loop of the same model."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from hydra import compose, initialize_config_dir
from lightning import Callback, LightningModule, Trainer
from omegaconf import OmegaConf

from router_lab.bench.record import Cell, cell
from router_lab.bench.sizes import HEADS, Size
from router_lab.bench.step import Step
from router_lab.bench.turns import Spread, Times, one_thread
from router_lab.data.module import WindowsDataModule
from router_lab.experiment import build
from router_lab.paths import conf_dir
from router_lab.registry import store_configs
from router_lab.runs.folder import prepare_run
from router_lab.training.fit import fit

TURN = 0.05  # seconds


class Alternate(Callback):
    """Makes the same number of bare steps after every few steps of the Trainer.

    A turn of the harness is all that happens between two calls at the end of a batch: the loop of
    the Trainer, the data, every callback.
    """

    def __init__(self, bare: Callable[[], object], calls: int) -> None:
        self.bare, self.calls = bare, calls
        self.harness: list[float] = []
        self.loop: list[float] = []
        self._since: float | None = None

    def on_train_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.calls:
            return
        now = time.process_time()  # of all threads: TensorBoard writes in one of its own
        if self._since is not None:
            self.harness.append(now - self._since)
            for _ in range(self.calls):
                self.bare()
            self.loop.append(time.process_time() - now)
        self._since = time.process_time()


def measure_harness(size: Size, rounds: int) -> dict[str, Cell]:
    """The cells of the bare loop and the harness."""
    with tempfile.TemporaryDirectory() as folder, one_thread():
        store_configs()
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = compose("config", _overrides(size, folder))
        twin = build(_plain(cfg))
        data = WindowsDataModule(twin.corpus, size.S, size.B, val_windows=size.B)
        bare = Step(twin.model, data.train_batch(0)["tokens"])
        indices = itertools.count()

        def step() -> None:
            bare.tokens_BS = data.train_batch(next(indices))["tokens"]
            bare()

        for _ in range(2):
            start = time.process_time()
            step()
        calls = max(1, round(TURN / (time.process_time() - start)))
        alternate = Alternate(step, calls)
        steps = (rounds + 1) * calls
        cfg.budget = f"tokens:{steps * size.B * size.S}"
        experiment = build(_plain(cfg))
        with redirect_stdout(StringIO()), prepare_run(cfg) as run:
            fit(experiment, run, callbacks=[alternate])
    ratios = [a / b for a, b in zip(alternate.harness, alternate.loop, strict=True)]
    middle = len(ratios) // 2
    return {
        "bare loop": cell(Times(sorted(alternate.loop)[middle] / calls, Spread(1, 1, 1))),
        "harness": cell(Times(sorted(alternate.harness)[middle] / calls, Spread.of(ratios))),
    }


def _plain(cfg: Any) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config.pop("hydra", None)
    return dict(config)


def _overrides(size: Size, folder: str) -> list[str]:
    D, L, B, S, F = size
    return [
        f"out={folder}",
        *(f"model.{key}={value}" for key, value in {"d_model": D, "n_layers": L, "n_heads": HEADS,
          "d_ffn": 2 * F, "seq_len": S}.items()),
        f"trainer.batch_size={B}", "trainer.validations=1", "match=none", f"ffn.d_hidden={F}",
        "data=languages", "data.n_tokens=200000",
    ]  # fmt: skip
