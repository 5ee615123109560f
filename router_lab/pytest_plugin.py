"""`pytest --router my_package.my_module:MyRouter` tests a router's contract, one test per check.

The router is named by module and class, by file and class (`my_router.py:MyRouter`), or by its
registered name. Its options: `--router-option k=4`, repeatable. Without paths on the command line
nothing else is run. Every pytest in the environment loads this module, so it imports late.
"""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from router_lab.testing import Check, Subject


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("router_lab")
    for option, metavar, about in (
        ("--router", "MODULE:CLASS", "test a router: module:Class, file.py:Class or its name"),
        ("--router-option", "NAME=VALUE", "an option of these routers, or d_model, n_experts"),
    ):
        group.addoption(option, action="append", default=[], metavar=metavar, help=about)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--router") and config.args_source is not config.ArgsSource.ARGS:
        config.args.clear()  # only the contract


def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    specs, pairs = (session.config.getoption(name) for name in ("--router", "--router-option"))
    if not specs:
        return
    from router_lab.testing import CHECKS

    # torch.compile narrates itself at level DEBUG, which pytest would print under a failure.
    logging.getLogger("torch.__trace").propagate = False
    for spec in specs:
        subject = subject_of(spec, pairs, session.config.invocation_params.dir)
        for check in CHECKS:
            fields = {"name": check.name, "nodeid": f"{subject.name}::{check.name}"}
            items.append(CheckItem.from_parent(session, check=check, subject=subject, **fields))


def subject_of(spec: str, pairs: list[str], folder: Path) -> Subject:
    """What `--router spec --router-option pair …` names, paths relative to the folder.

    Raises:
        pytest.UsageError: there is no such router, or it refuses the options.
    """
    import yaml

    from router_lab.errors import UserError
    from router_lab.testing import Subject

    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise pytest.UsageError(f"--router-option {pair}: write it as NAME=VALUE, like k=4.")
        options[name] = yaml.safe_load(value)
    sizes = {key: options.pop(key) for key in ("d_model", "n_experts") if key in options}
    try:
        subject = Subject(_find(spec, folder), options, **sizes)
        subject.build()
    except UserError as error:
        raise pytest.UsageError(f"--router {spec}: {error}") from error
    return subject


def _find(spec: str, folder: Path) -> Any:
    """The class that the command line names. Raises UserError."""
    from router_lab.errors import UserError
    from router_lab.registry import load_plugin
    from router_lab.routing import ROUTERS, Router

    place, colon, name = spec.rpartition(":")
    if not colon:
        return ROUTERS.get(spec)
    if place.endswith(".py"):
        module = load_plugin(folder / place)
    else:
        sys.path.insert(0, str(folder))
        try:
            module = importlib.import_module(place)
        except Exception as error:  # the module is someone else's and may fail in any way
            raise UserError(
                f"{place} cannot be imported ({type(error).__name__}: {error})."
            ) from error
    classes = {n: c for n, c in vars(module).items() if isinstance(c, type)}
    routers = {n: c for n, c in classes.items() if issubclass(c, Router) and c is not Router}
    if name not in routers:
        names = ", ".join(routers) or "none"
        raise UserError(f"{name} is no router in {place}; the routers there are: {names}.")
    return routers[name]


class CheckItem(pytest.Item):
    """One check of one router as a test."""

    def __init__(self, *, check: Check, subject: Subject, **fields: Any) -> None:
        super().__init__(**fields)
        self.check = check
        self.subject = subject

    def runtest(self) -> None:
        from router_lab.testing import NotApplicable

        try:
            self.check(self.subject)
        except NotApplicable as reason:
            pytest.skip(str(reason))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The message alone; where the router itself raised, its traceback too."""
        from router_lab.testing import ContractError

        if not isinstance(excinfo.value, ContractError):
            return super().repr_failure(excinfo)
        cause = excinfo.value.__cause__
        if cause is None:
            return str(excinfo.value)
        inner = pytest.ExceptionInfo.from_exception(cause)
        inner.traceback = inner.traceback.filter(lambda e: "torch" not in Path(e.path).parts)
        return f"{excinfo.value}\n\n{inner.getrepr(style='short')}"

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"{self.subject.name}::{self.check.name}"
