"""Names for routers, FFNs, losses, …: a class and its typed constructor are its configuration.

    @register("my_router")
    class MyRouter(Router):
        def __init__(self, d_model: int, n_experts: int, k: int = 2, temperature: float = 1.0): ...

makes `router=my_router router.temperature=0.5` work on the command line, with no YAML. The base
class says what kind of thing it is: `register` takes a router, an FFN, a balance loss, a capacity
limit, a corpus or an optimiser. Another package adds its own by an entry point, such as
`router_lab.routers` (a module that registers, or the class, which then takes the entry point's
name); a loose file is named by its path, `plugins=[my_router.py]`.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar
from zlib import crc32

from router_lab.check import Option, choices_text, options_of
from router_lab.errors import UserError

T = TypeVar("T")
C = TypeVar("C", bound=type)
LOOSE = "router_lab_plugin_"
"""Prefix of the module name of a file that was loaded by its path."""
REGISTRIES: dict[str, Registry[Any]] = {}
"""By kind; each is created beside its base class."""
KINDS = ("routers", "ffns", "losses", "capacities", "data", "optimisers", "engines")
"""The kinds that can be extended, by plural name; `model` and `trainer` have one class each."""
HOMES = (
    "router_lab.routing",
    "router_lab.model.ffn",
    "router_lab.model.engines",
    "router_lab.model.transformer",
    "router_lab.model.optim",
    "router_lab.losses",
    "router_lab.capacity",
    "router_lab.data.sources",
    "router_lab.experiment",
)
"""Modules that create the registries."""


@dataclass(eq=False)
class Registry(Generic[T]):
    """The classes of one kind, by name.

    Args:
        kind: what a class is called in messages; also its Hydra group.
        base: the class that all of them derive from.
        package: module, or package of modules, that holds ours; imported on first use.
        plural: names the kind in `router-lab list` and its entry points, `router_lab.<plural>`.
        given: constructor parameters that the caller passes and no configuration names.
        linked: defaults that come from the configuration in place of the constructor's.
        several: a configuration holds any number of them, by name (the losses).

    Attributes:
        problems: plugins that could not be imported: name → why.
    """

    kind: str
    base: type[Any]
    package: str
    plural: str
    given: Iterable[str] = ()
    linked: Mapping[str, Any] = field(default_factory=dict)
    several: bool = False
    problems: dict[str, str] = field(default_factory=dict, init=False)
    _classes: dict[str, type[T]] = field(default_factory=dict, init=False)
    _loaded: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        REGISTRIES[self.kind] = self

    def add(self, name: str, cls: type[T]) -> None:
        """Raises UserError if it is not derived from the base class, or the name is taken."""
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise UserError(
                f"The {self.kind} {name!r} must be a class derived from "
                f"{self.base.__module__}.{self.base.__qualname__}; it is {cls!r}."
            )
        other = self._classes.get(name)
        if other is not None and _source(other) != _source(cls):
            raise UserError(
                f"The {self.kind} name {name!r} of {_source(cls)} is taken by "
                f"{_source(other)}; choose another name."
            )
        self._classes[name] = cls

    def load(self) -> None:
        """Imports our own modules and the installed plugins; a broken plugin is only reported."""
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
            importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=f"router_lab.{self.plural}"):
            try:
                loaded = point.load()
                if not isinstance(loaded, types.ModuleType) and not self.name_of(loaded):
                    self.add(point.name, loaded)
            except (Exception, SystemExit) as error:  # someone else's code may fail in any way
                self.problems[point.name] = f"{type(error).__name__}: {error}"

    def names(self) -> list[str]:
        self.load()
        return sorted(self._classes)

    def get(self, name: str | type[T]) -> type[T]:
        """The class of a name; a class itself, which need not be registered.

        Raises UserError with the right names for an unknown one.
        """
        if isinstance(name, type):
            return name
        self.load()
        if name not in self._classes:
            why = self.problems.get(name)
            broken = f" ({name!r} failed to import: {why})" if why else ""
            right = choices_text(name, self.names(), f"`router-lab list {self.plural}` has all")
            raise UserError(f"There is no {self.kind} named {name!r}{broken}; {right}.")
        return self._classes[name]

    def name_of(self, cls: type) -> str | None:
        """The name of a class; None if it is not registered."""
        self.load()
        return next((name for name, other in self._classes.items() if other is cls), None)

    def options(self, name: str | type[T]) -> list[Option]:
        """The options of a registered class, read from its constructor."""
        options = [one for one in options_of(self.get(name)) if one.name not in self.given]
        return [
            one.with_default(self.linked[one.name]) if one.name in self.linked else one
            for one in options
        ]

    def build(self, config: Mapping[str, Any], **given: Any) -> T:
        """The object that a config node `{"name": …, option: value, …}` describes.

        Of `given`, a constructor gets what it asks for. The name may be a class (see `get`). Raises
        UserError for an unknown name or option, a wrong type or a value that is not possible.
        """
        config = dict(config)
        if "name" not in config:
            right = f"the choices are {', '.join(self.names())}"
            raise UserError(f"The configuration of a {self.kind} needs a name; {right}.")
        name = config.pop("name")
        cls = self.get(name)
        options = {option.name: option for option in self.options(name)}
        where = f"{self.kind}.{name}" if self.several else self.kind
        for key, value in config.items():
            if key not in options:
                raise UserError(self.no_option(name, key))
            config[key] = options[key].checked(value, f"{where}.{key}")
        for option in options.values():
            if option.required and option.name not in config and option.name not in given:
                raise UserError(f"The {self.kind} {name} needs a value for {option.name}.")
        wanted = inspect.signature(cls).parameters
        try:
            return cls(**{**{k: v for k, v in given.items() if k in wanted}, **config})
        except Exception as error:
            if isinstance(error, UserError) or not cls.__module__.startswith(LOOSE):
                raise
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"The {self.kind} {name} can't be built ({reason}).") from error

    def no_option(self, name: str | type[T], key: str) -> str:
        """The sentence about an option that a class does not have."""
        options = [option.name for option in self.options(name)]
        right = choices_text(key, options, what="its options are")
        shown = name.__name__ if isinstance(name, type) else name
        return f"The {self.kind} {shown} has no option {key}; {right}."

    def store_configs(self) -> None:
        """Puts every class into Hydra's ConfigStore, so that `router=name` works without YAML."""
        from hydra.core.config_store import ConfigStore

        for name in self.names():
            ConfigStore.instance().store(
                group=self.kind,
                name=name,
                node=self.schema(name),
                package=f"{self.kind}.{name}" if self.several else None,
            )

    def schema(self, name: str) -> type:
        """A dataclass with the class's options: the typed config that Hydra checks against."""
        fields: list[Any] = [] if self.several else [("name", str, field(default=name))]
        for option in self.options(name):
            default = "???" if option.required else option.default
            if isinstance(default, tuple | Mapping):
                default = list(default) if isinstance(default, tuple) else dict(default)
            if isinstance(default, list | dict):
                fresh = field(default_factory=partial(copy.copy, default))
                fields.append((option.name, Any, fresh))
            else:
                linked = isinstance(default, str) and default.startswith("${")
                kind = Any if linked else option.hydra_type()
                fields.append((option.name, kind, field(default=default)))
        # Hydra reads only the fields; generating unused methods is what takes time.
        schema = make_dataclass(f"{name}_config", fields, init=False, repr=False, eq=False)
        schema.registered = (self, name)  # type: ignore[attr-defined]  # for error messages
        return schema


def registries() -> dict[str, Registry[Any]]:
    """All registries, by kind."""
    for module in HOMES:
        importlib.import_module(module)
    return REGISTRIES


def store_configs() -> None:
    """Every registered class as a choice of its Hydra group."""
    for registry in registries().values():
        registry.store_configs()


def register(name: str) -> Callable[[C], C]:
    """Class decorator: gives a router, an FFN, a loss, … its name.

    Raises:
        UserError: another class has the name, or the class derives from none of the base classes.
    """

    def add(cls: C) -> C:
        for registry in REGISTRIES.values():
            if isinstance(cls, type) and issubclass(cls, registry.base):
                registry.add(name, cls)
                return cls
        bases = ", ".join(sorted(registry.base.__name__ for registry in registries().values()))
        raise UserError(f"{name!r} can't be registered: {cls!r} derives from none of {bases}.")

    return add


def _source(cls: type) -> str:
    """Where a class comes from: a module that is imported again may register it again."""
    try:
        place = inspect.getsourcefile(cls)
    except TypeError:  # typed in, as in a notebook
        place = None
    return f"{place or cls.__module__}:{cls.__qualname__}"


def load_plugin(path: str | Path) -> types.ModuleType:
    """Imports a loose file that registers something, once.

    Raises UserError when the file is missing or fails to import.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"The plugin {path} does not exist; give the path of a Python file.")
    name = f"{LOOSE}{path.stem}_{crc32(str(path).encode()):08x}"
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # someone else's code may fail in any way
        del sys.modules[name]
        raise UserError(
            f"The plugin {path} could not be imported ({type(error).__name__}: {error}); "
            f"`python {path}` shows where."
        ) from error
    return module
