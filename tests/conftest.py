"""What all tests share: one thread, fixed seeds, and the record of checks against references."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Read by torch when it is imported, which many tests do late.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Nothing depends on the clock: cores are shared.
settings.register_profile("timeless", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# `make test` tries the same examples every time, `make fuzz` others every time.
settings.register_profile(
    "test", settings.get_profile("timeless"), derandomize=True, database=None, max_examples=100
)
settings.register_profile(
    "fuzz",
    settings.get_profile("timeless"),
    derandomize=False,
    max_examples=int(os.environ.get("EXAMPLES", "2000")),
    print_blob=True,
)
settings.load_profile("test")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-references",
        metavar="PATH",
        type=Path,
        help="write what routers were checked against, and the errors measured, to a JSON file",
    )


class ReferenceRecorder:
    """Gathers the checks from the reports of the tests, which come here from all processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            for name, value in report.user_properties:
                if name == "reference_check":
                    self.records.append({**json.loads(str(value)), "test": report.nodeid})

    def pytest_sessionfinish(self) -> None:
        """One line for each comparison: its largest tolerance and error over all tests."""
        worst: dict[tuple[str, str], dict[str, Any]] = {}
        for record in self.records:
            record["test"] = record["test"].split("[")[0]
            same = worst.setdefault((record["router"], record["against"]), record)
            for figure in ("tolerance", "error"):
                same[figure] = max(same[figure], record[figure])
        for record in worst.values():
            record["error"] = float(f"{record['error']:.2g}")  # the rest changes with the machine
        lines = [json.dumps(worst[key], ensure_ascii=False) for key in sorted(worst)]
        self.path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--record-references")
    if path is not None and not hasattr(config, "workerinput"):  # not in xdist's workers
        config.pluginmanager.register(ReferenceRecorder(path))


@pytest.fixture
def reference_check(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`reference_check(router=, against=, kind=, tolerance=, error=)`, for the table in the docs.

    Fails unless error <= tolerance (so a NaN fails). `router` is the registered name; `against`
    what it is compared with, in a few words; `error` the largest absolute difference. `kind` is
    "independent" for code by others and for examples worked out by hand, "own loop" for the same
    equations written a second time by us.
    """

    def check(
        *,
        router: str,
        against: str,
        kind: Literal["independent", "own loop"],
        tolerance: float,
        error: Any,
    ) -> None:
        assert kind in ("independent", "own loop")
        record = {
            "router": router,
            "against": against,
            "kind": kind,
            "tolerance": float(tolerance),
            "error": float(error),
        }
        assert record["error"] <= record["tolerance"], (
            f"{router} differs from {against} by {record['error']:.3g}, "
            f"more than {record['tolerance']:.3g}"
        )
        request.node.user_properties.append(("reference_check", json.dumps(record)))

    return check


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Corpora are built once for each session and process, and not read from the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROUTER_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """The same random numbers in every test, whatever ran before; one thread."""
    random.seed(0)
    np.random.seed(0)
    torch = sys.modules.get("torch")
    if torch is not None:  # a test of files alone does without
        torch.manual_seed(0)
        torch.set_num_threads(1)


@pytest.fixture
def registry_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test registers is gone after it, from Hydra's store too."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    from router_lab.registry import registries

    Plugins.instance()  # those of Hydra fill the store once in a process, and are to stay there
    for registry in registries().values():
        registry.load()
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    store = ConfigStore.instance()
    groups = {
        name: dict(node) if isinstance(node, dict) else node for name, node in store.repo.items()
    }
    monkeypatch.setattr(store, "repo", groups)
