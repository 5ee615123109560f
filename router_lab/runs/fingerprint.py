"""A hash of everything that decides a run's result."""

from __future__ import annotations

import functools
import glob
import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from router_lab.errors import UserError

# What a run's result does not depend on. Everything else in the configuration counts.
IGNORED = (
    "hydra", "grid", "out", "arm", "seed", "retry", "plugins",
    "router", "capacity", "languages",  # they act where ffn and data take them up
    "trainer.threads", "trainer.workers", "trainer.log_every",
)  # fmt: skip
UNROUTED = ("mlp", "mistral")
"""FFNs without a routing record, to which `loss` does nothing."""


def fingerprint(cfg: DictConfig) -> str:
    """16 hex digits of everything that decides the result.

    Loose files count by what is in them; files of data by their names, sizes and times of change.

    Raises:
        UserError: a file named in `plugins` is not there.
    """
    tree = OmegaConf.to_container(without_hydra(cfg), resolve=True)
    assert isinstance(tree, dict)
    plugins, out = tree.get("plugins") or [], Path(str(tree.get("out"))).resolve()
    for path in IGNORED:
        *parents, last = path.split(".")
        node: Any = tree
        for key in parents:
            node = node.get(key) or {}
        node.pop(last, None)
    if (tree.get("ffn") or {}).get("name") in UNROUTED:
        tree.pop("loss", None)
    tree["plugin contents"] = sorted(_digest(_plugin_bytes(path)) for path in plugins)
    options = {k: v for k, v in (tree.get("data") or {}).items() if k != "name"}
    tree["data files"] = [_stamps(v, out) for v in options.values() if isinstance(v, str)]
    return _digest(json.dumps(_plain(tree), sort_keys=True, default=str).encode())


def _plain(node: Any) -> Any:
    """The same tree with whole numbers as int: an option of type float takes 1 for 1.0."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _plugin_bytes(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"plugins: {path} can't be read ({error.strerror}).") from error


@functools.cache
def _stamps(path: str, out: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of the files that a path, a folder or a glob names, if any.

    What lies in `out`, the folder of the runs, is no data.
    """
    root = Path(path).expanduser()
    found = root.rglob("*") if root.is_dir() else map(Path, glob.glob(str(root), recursive=True))
    files = [file for file in sorted(found) if out not in file.resolve().parents]
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def without_hydra(cfg: DictConfig) -> DictConfig:
    """The task's part of a composed configuration."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
