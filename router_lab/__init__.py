"""router_lab: which Mixture-of-Experts router should I use, and how do I know?

`load`, `build` and `train` are described in `router_lab.api`; nothing heavy is imported before one
of them is used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
PYTHON = ("Compared", "Run", "Runs", "build", "load", "train")

if TYPE_CHECKING:
    from router_lab.api import (
        Compared as Compared,
        Run as Run,
        Runs as Runs,
        build as build,
        load as load,
        train as train,
    )
else:

    def __getattr__(name: str) -> Any:
        if name not in PYTHON:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from router_lab import api

        return getattr(api, name)


def __dir__() -> list[str]:
    return [*globals(), *PYTHON]
