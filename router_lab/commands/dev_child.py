"""What `router-lab dev` runs in processes of their own: the contract, and a short training."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from lightning import Callback, LightningModule, Trainer

from router_lab.commands.mistakes import mistake
from router_lab.commands.train import load_named_plugins
from router_lab.errors import UserError
from router_lab.launch.compose import compose_config
from router_lab.registry import load_plugin, store_configs
from router_lab.routing import ROUTERS
from router_lab.testing import CHECKS, ContractError
from router_lab.testing.subject import NotApplicable, Subject
from router_lab.training.callbacks.evaluation import Evaluation
from router_lab.training.run import train as train_run


def in_child(task: Callable[..., None], pipe: Connection, *arguments: Any) -> None:
    """Runs the task; sends ("error", sentence) if it fails, and ("end", None) at its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    with contextlib.suppress(BrokenPipeError):
        try:
            task(pipe, *arguments)
        except Exception as error:
            pipe.send(("error", mistake(error) or f"{type(error).__name__}: {error}"))
        pipe.send(("end", None))


def check(pipe: Connection, path: str, router: str | None) -> None:
    """Sends ("router", name), then ("check", (name, problem or None)) for each check.

    Raises:
        UserError: the file fails to import or registers no router.
    """
    module = load_plugin(path)
    names = [name for name in ROUTERS.names() if ROUTERS.get(name).__module__ == module.__name__]
    if router not in (None, *names) or not names:
        of_file = f"only {', '.join(names)}" if names else "no router"
        raise UserError(f'{path} registers {of_file}; `@register("name")` registers a class.')
    name = router or names[-1]
    pipe.send(("router", name))
    subject = Subject(ROUTERS.get(name), {})
    for one in sorted(CHECKS, key=lambda check: check.name == "compile"):  # it takes the longest
        problem = None
        try:
            one(subject)
        except NotApplicable:
            continue
        except ContractError as error:
            problem = str(error)
        pipe.send(("check", (one.name, problem)))


def train(pipe: Connection, overrides: list[str]) -> None:
    """Sends ("point", (tokens, bits per byte)) after each validation of a run.

    Raises:
        UserError: the run cannot be trained.
    """
    load_named_plugins(overrides)
    store_configs()
    train_run(compose_config(overrides), callbacks=[_Send(pipe)])


class _Send(Callback):
    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        [evaluation] = [one for one in trainer.callbacks if isinstance(one, Evaluation)]  # type: ignore[attr-defined]
        point = evaluation.curve[-1]
        self.pipe.send(("point", (point["tokens"], point["bits_per_byte"])))
