"""One run from Python: built, trained, or loaded back with its model and data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from router_lab.check import shown
from router_lab.errors import UserError
from router_lab.runs.schema import Result
from router_lab.runs.state import RunState, read_state

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from router_lab.data import Corpus
    from router_lab.experiment import Experiment
    from router_lab.model.transformer import ModelOutput, Transformer
    from router_lab.routing import Routing


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run; its model and its data are loaded when they are asked for.

    Attributes:
        folder: of the run.
    """

    folder: Path

    def __repr__(self) -> str:
        state, bits = self.state, self.state.bits_per_byte
        quality = state.state if bits is None else f"{bits:.4f} bits per {state.unit}"
        return f"Run({state.arm}, seed {state.seed}: {quality}; {self.folder})"

    @cached_property
    def state(self) -> RunState:
        """The run's files, as they were when they were first read."""
        return read_state(self.folder)

    @property
    def result(self) -> Result:
        """result.json; see docs/result.md."""
        return cast(Result, self.state.result)

    @cached_property
    def experiment(self) -> Experiment:
        """The configuration, built, with the trained weights.

        Raises UserError if the folder holds no finished run.
        """
        from router_lab.experiment import load_run

        return load_run(self.folder)

    @property
    def model(self) -> Transformer:
        """The trained model, in evaluation mode."""
        return self.experiment.model.eval()

    @property
    def corpus(self) -> Corpus:
        return self.experiment.corpus

    def routings(self, text: str | Sequence[int]) -> dict[str, Routing]:
        """How each routed layer routes the tokens of a text: records by layer, in evaluation.

        Args:
            text: as text, in UTF-8, or as token ids. Each model.seq_len tokens form a sequence; all
                sequences are one batch, which shares the room under a capacity limit.

        Raises UserError if the run's data have no tokenizer, or for an empty text.
        """
        import torch

        ids = torch.tensor(self._ids(text) if isinstance(text, str) else text)
        model, S = self.model, min(self.model.seq_len, max(len(ids), 1))
        if not len(ids):
            raise UserError("The text is empty; give at least one token.")
        if not 0 <= int(ids.min()) <= int(ids.max()) < self.corpus.vocab_size:
            raise UserError(f"A token id is from 0 to {self.corpus.vocab_size - 1}.")
        n = -len(ids) % S
        mask_BS = (torch.arange(len(ids) + n) < len(ids)).view(-1, S)
        tokens_BS = torch.nn.functional.pad(ids.long(), (0, n)).view(-1, S)
        with torch.no_grad():
            output: ModelOutput = model(tokens_BS, mask_BS, step=self.experiment.trained)
        return output.routings

    def _ids(self, text: str) -> list[int]:
        from router_lab.data.tokenizer import load_tokenizer

        data = self.experiment.config["data"]
        if "tokenizer" not in data and self.corpus.vocab_size != 256:
            raise UserError(f"data={data['name']} has no tokenizer; give token ids.")
        (token_ids,) = load_tokenizer(data.get("tokenizer") or "bytes").encode([text.encode()])
        return [int(token) for token in token_ids]


def build(*overrides: str | Mapping[str, Any]) -> Experiment:
    """What `router-lab train` with these overrides would train: data, model, losses, cost.

    Args:
        overrides: as on the command line, `"router=switch", "router.factor=2"`, or a mapping,
            `{"router": {"name": "switch", "factor": 2}}`.

    Raises UserError for a configuration that cannot be trained.
    """
    from omegaconf import OmegaConf

    from router_lab.experiment import build
    from router_lab.runs.fingerprint import without_hydra

    config: Any = OmegaConf.to_container(without_hydra(_composed(overrides)), resolve=True)
    return build(config)


def train(*overrides: str | Mapping[str, Any]) -> Run:
    """Trains the run that `router-lab train` with these overrides would; a finished one is kept.

    Args:
        overrides: as for `build`. A grid is trained by the command alone.

    Raises UserError for a configuration that cannot be trained, and KeyboardInterrupt when it is
    interrupted; the same call resumes it.
    """
    import torch

    from router_lab.runs.folder import run_dir
    from router_lab.training.run import train

    cfg = _composed(overrides)
    threads = torch.get_num_threads()
    try:
        train(cfg)
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        torch.set_num_threads(threads)
    return Run(run_dir(cfg).folder)


def _composed(overrides: Sequence[str | Mapping[str, Any]]) -> DictConfig:
    from router_lab.commands.arguments import checked
    from router_lab.commands.mistakes import mistake
    from router_lab.commands.train import load_named_plugins
    from router_lab.launch.compose import compose_config
    from router_lab.registry import store_configs

    texts = [text for one in overrides for text in ([one] if isinstance(one, str) else _texts(one))]
    try:
        texts = checked(texts)[1]
        load_named_plugins(texts)
        store_configs()
        cfg = compose_config(texts)
    except Exception as error:
        if sentence := mistake(error):
            raise UserError(sentence) from error
        raise
    if cfg.grid.get("arms") or cfg.grid.get("product"):
        raise UserError("A grid has several runs; train it by `router-lab train grid=…`.")
    return cfg


def _texts(options: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Options as overrides; the name in a mapping chooses what its other options are of."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            if "name" in value:
                yield f"{prefix}{key}={value['name']}"
            others = {name: option for name, option in value.items() if name != "name"}
            yield from _texts(others, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={_text(value)}"


def _text(value: Any) -> str:
    """A value in Hydra's grammar, quoted where it has to be."""
    if isinstance(value, str) and not re.fullmatch(r"[\w.:/@+-]+", value):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    return shown(value)
