"""`router-lab list` and `router-lab explain NAME`: what there is to choose from."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from router_lab.check import Option, choices_text, shown
from router_lab.commands.docstrings import meanings, split_docstring, summary
from router_lab.commands.presets import Preset, presets
from router_lab.errors import UserError
from router_lab.losses import acting, build_losses
from router_lab.registry import KINDS, LOOSE, Registry, load_plugin, registries
from router_lab.routing import ROUTERS, Lookahead, Router, furthest

REFERENCES = Path(__file__).with_name("references.json")
"""What the tests compared each router with; written by `make references`."""


def list_kinds(kind: str | None = None, plugins: Iterable[str] = ()) -> None:
    """Prints the choices, presets included, and the plugins that could not be imported.

    Args:
        kind: `routers`, `ffns`, …; None for all.
        plugins: paths of loose files that register something.
    """
    problems = {}
    for path in plugins:
        try:
            load_plugin(path)
        except UserError as error:
            problems[str(path)] = str(error)
    console = Console(highlight=False)
    for registry in registries().values():
        if registry.plural == kind or (kind is None and registry.plural in KINDS):
            console.print(_listing(registry))
            problems |= registry.problems
    if kind == "metrics":  # torchmetrics takes two seconds to import
        from router_lab import metrics
        from router_lab.commands.metrics import metric_rows

        metrics.load_installed()
        console.print(_table(("metric", "computed from", "what it is"), metric_rows()))
        problems |= metrics.PROBLEMS
    more = "" if kind else " `router-lab list metrics` lists what is measured."
    console.print(f"`router-lab explain NAME` explains one.{more}", markup=False)
    for name, why in problems.items():
        console.print(Text(f"Plugin {name} could not be imported: {why}", "red"))


def _listing(registry: Registry[Any]) -> Table:
    """One kind as a table: its classes and then its presets."""
    routes = registry.kind in ("router", "ffn")
    looks = ["looks ahead"] if routes else []
    table = _table((f"{registry.kind}=", "options", *looks, "what it is"))
    for name in registry.names():
        cls = registry.get(name)
        options = ", ".join(
            f"{option.name}={_default(option)}" for option in registry.options(name)
        )
        about = Text(_short(getattr(cls, "paper", "")) or summary(cls)) + _origin(cls)
        lookahead = [_lookahead(registry, name)] if routes else []
        table.add_row(Text(name, "bold"), Text(options), *lookahead, about)
    for preset in presets(registry.kind):
        values = ", ".join(f"{key}={shown(value)}" for key, value in preset.values.items())
        lookahead = [Text()] if routes else []
        table.add_row(Text(preset.name, "bold"), Text(values), *lookahead, Text(preset.about))
    return table


def explain(name: str, plugins: Iterable[str] = ()) -> None:
    """Prints what a router, FFN, loss, metric, … or preset does, and its options.

    Args:
        name: as it is chosen; or `model`, `optim`, `trainer`: that part of the configuration; or a
            metric, as `metric.NAME` if something else has the name too.
        plugins: paths of loose files that register something.

    Raises:
        UserError: nothing has the name.
    """
    for path in plugins:
        load_plugin(path)
    console = Console(highlight=False)
    choices: set[str] = set()
    for kind, registry in registries().items():
        choices |= {kind, *registry.names()}
        if name in registry.names():
            _explain(console, registry, name)
        elif name == kind and len(registry.names()) == 1:
            _explain(console, registry, *registry.names())
        elif name == kind:
            console.print(_listing(registry))
        for preset in presets(kind):
            choices.add(preset.name)
            if preset.name == name:
                _explain_preset(console, registry, preset)
    if name in choices:
        return
    from router_lab.commands.metrics import explain_metric
    from router_lab.metrics import METRICS, load_installed

    load_installed()
    if (metric := name.removeprefix("metric.")) in METRICS:
        explain_metric(console, metric)
    else:
        right = choices_text(name, sorted(choices | METRICS.keys()), "`router-lab list` has all")
        raise UserError(f"Nothing is named {name!r}; {right}.")


def _explain(console: Console, registry: Registry[Any], name: str) -> None:
    cls = registry.get(name)
    console.print(Text(f"{name}: {cls.__name__} in {inspect.getsourcefile(cls)}", "bold"))
    console.print(Text(f"{getattr(cls, 'paper', '')}\n".lstrip("\n")))
    console.print(Text(split_docstring(cls)[0] + "\n"))
    _print_options(console, cls, registry.options(name))
    loose = _loose_file(cls)
    plugin = f"plugins=[{loose}] " if loose else ""
    facts = {
        "train": f"router-lab train {plugin}{registry.kind}={name}",
        **_facts(registry, name),
    }
    if named := presets(registry.kind):
        facts["presets"] = ", ".join(preset.name for preset in named)
    _print_facts(console, facts)
    checks = [check for check in references() if check["router"] == name]
    if checks and hasattr(cls, "reference"):
        titles = ("compared in the tests with", "reference", "tolerance", "largest error")
        rows = (
            (Text(check["against"]), check["kind"], f"{check['tolerance']:.0e}",
             f"{check['error']:.1e}")
            for check in checks
        )  # fmt: skip
        console.print(_table(titles, rows))


def _explain_preset(console: Console, registry: Registry[Any], preset: Preset) -> None:
    console.print(Text(f"{preset.name}: a preset of {registry.kind} in {preset.path}", "bold"))
    console.print(Text(preset.about + "\n"))
    facts = {"train": f"router-lab train {registry.kind}={preset.name}"}
    if preset.of:
        options = {option.name: option for option in registry.options(preset.of)}
        options |= {key: options[key].with_default(value) for key, value in preset.values.items()}
        _print_options(console, registry.get(preset.of), options.values())
        facts["built on"] = f"{preset.of}: `router-lab explain {preset.of}`"
    _print_facts(console, facts | preset.chooses)


def _print_options(console: Console, cls: type, options: Iterable[Option]) -> None:
    about = meanings(cls)
    table = _table(("option", "type", "default", ""))
    for option in options:
        cells = (option.type_text, _default(option), about.get(option.name, ""))
        table.add_row(Text(option.name, "bold"), *map(Text, cells))
    if table.row_count:
        console.print(table)


def _facts(registry: Registry[Any], name: str) -> dict[str, str]:
    """Facts about a class that its docstring and options do not give."""
    cls = registry.get(name)
    facts = {}
    if registry is ROUTERS:
        router = typical(name)
        lookahead = (router or cls).lookahead
        with_limit = router_lookahead(router) if router else lookahead
        k = f"{router.mean_k:g}" if router else "k"
        varies = f"{k} on average; the number varies"
        facts["looks ahead"] = _lookahead_text(lookahead, with_limit)
        facts["experts per token"] = f"exactly {k}" if cls.fixed_k else varies
        facts["loss=default"] = _losses_text(router or cls)
    elif registry.kind == "ffn" and name != "moe":
        facts["looks ahead"] = _lookahead_text(cls.lookahead, cls.lookahead)
        facts["loss=default"] = _losses_text(cls)
    if registry.kind == "loss":
        users = [
            router
            for router in ROUTERS.names()
            if name in (typical(router) or ROUTERS.get(router)).default_losses
        ]
        facts["loss=default of"] = ", ".join(users) or "no router"
    if hasattr(cls, "reference"):
        facts["checked against"] = cls.reference or "nothing: it names no reference"
    return facts


def references() -> list[dict[str, Any]]:
    """The recorded checks, each with router, against, kind ("independent" or "own loop"),
    tolerance, error and test. Empty if none is recorded."""
    return json.loads(REFERENCES.read_text()) if REFERENCES.is_file() else []


def typical(name: str) -> Router | None:
    """The router with default options and eight experts; None if they do not fit together."""
    try:
        return ROUTERS.build({"name": name}, d_model=16, n_experts=8)
    except UserError:
        return None


def router_lookahead(router: Router) -> Lookahead:
    """How far a layer with this router looks ahead, with the router's capacity limit."""
    limit = router.capacity
    return furthest(router.lookahead, limit.lookahead(router) if limit else "never")


def _lookahead(registry: Registry[Any], name: str) -> Text:
    """How far a class looks ahead with default options."""
    if name == "moe":
        return Text("as its router")
    router = typical(name) if registry is ROUTERS else None
    lookahead = router_lookahead(router) if router else registry.get(name).lookahead
    return Text(lookahead, "yellow" if lookahead == "always" else "")


def _print_facts(console: Console, facts: Mapping[str, str]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(Text(name, "bold"), Text(fact))
    console.print(table)


def _table(titles: Iterable[str], rows: Iterable[Iterable[Any]] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _default(option: Option) -> str:
    """As it is written on the command line."""
    return "required" if option.required else shown(option.default)


def _losses_text(owner: Any) -> str:
    """What acts with `loss=default`: the configuration's terms and the router's own.

    The own losses of a class may be a property of its instances; then they are left out.
    """
    own = owner.own_losses if isinstance(owner.own_losses, Mapping) else {}
    texts = []
    for term in acting(build_losses({"default": {}}, owner.default_losses), [own]):
        options = ", ".join(f"{key}={value}" for key, value in term.items() if key != "name")
        texts.append(f"{term['name']} ({options})")
    return "; ".join(texts) or "no loss"


def _lookahead_text(alone: Lookahead, with_limit: Lookahead) -> str:
    """How far a router or layer looks ahead, alone and with its capacity limit, in words."""
    if with_limit == "never":
        return "never: a token's routing depends on no later token and on no other sequence"
    cause = "a token's routing depends on later tokens"
    if alone != with_limit:
        cause = "the room under its capacity limit grows with the tokens, later ones included"
    if with_limit == "in training":
        return f"in training, not in evaluation: {cause}"
    return f"always, in evaluation too: {cause}, which a model that writes text does not have"


def _short(paper: str) -> str:
    """A source up to its first arXiv number, or its first clause."""
    number = re.match(r".*?arXiv:\d+\.\d+", paper)
    return number[0] if number else paper.split(";")[0]


def _origin(cls: type) -> Text:
    """Where a class comes from, if it is not ours."""
    if cls.__module__.startswith("router_lab."):
        return Text()
    return Text(f" (from {_loose_file(cls) or cls.__module__})", "dim")


def _loose_file(cls: type) -> str | None:
    """The path of the loose file that defines the class; None if it was installed."""
    return sys.modules[cls.__module__].__file__ if cls.__module__.startswith(LOOSE) else None
