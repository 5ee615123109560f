"""A hash of everything that decides a run's result."""

from __future__ import annotations

import ast
import functools
import glob
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from router_lab.errors import UserError

# Nodes that a run's result does not depend on. Everything else in the configuration counts.
IGNORED = (
    "hydra", "grid", "out", "arm", "seed", "retry", "plugins",
    "router", "capacity", "languages",  # they act where ffn and data refer to them
    "trainer.threads", "trainer.workers", "trainer.log_every",
)  # fmt: skip
UNROUTED = ("mlp", "mistral")
"""FFNs without a routing record, on which `loss` has no effect."""


def fingerprint(cfg: DictConfig) -> str:
    """16 hex digits of everything that decides the result.

    Of the files in `plugins`, those count that register something that the configuration names, by
    their code without comments and layout; files of data count by name, size and time of change.

    Raises:
        UserError: a file named in `plugins` does not exist.
    """
    tree = OmegaConf.to_container(without_hydra(cfg), resolve=True)
    assert isinstance(tree, dict)
    plugins, out = tree.get("plugins") or [], Path(str(tree.get("out"))).resolve()
    for path in (*IGNORED, *idle_nodes(cfg)):
        *parents, last = path.split(".")
        node: Any = tree
        for key in parents:
            node = node.get(key) or {}
        node.pop(last, None)
    names = set(_strings(tree))
    codes = [code for code, own in map(_plugin, plugins) if not own or own & names]
    tree["plugin contents"] = sorted(_digest(code.encode()) for code in codes)
    options = {k: v for k, v in (tree.get("data") or {}).items() if k != "name"}
    tree["data files"] = [_stamps(v, out) for v in options.values() if isinstance(v, str)]
    return _digest(json.dumps(_plain(tree), sort_keys=True, default=str).encode())


def idle_nodes(cfg: DictConfig) -> set[str]:
    """The nodes that have no effect with this FFN: it refers to no router, or has no routing."""
    ffn = cfg.get("ffn") or {}
    text = str(OmegaConf.to_container(ffn, resolve=False) if ffn else "")
    idle = {node for node in ("router", "capacity") if not re.search(rf"\$\{{[^}}]*\b{node}", text)}
    return idle | {"loss"} if ffn and ffn.get("name") in UNROUTED else idle


def _strings(node: Any) -> Iterator[str]:
    """All keys and values of a tree that are text."""
    if isinstance(node, Mapping):
        node = [*node.keys(), *node.values()]
    if isinstance(node, list):
        for one in node:
            yield from _strings(one)
    elif isinstance(node, str):
        yield node


def _plugin(path: str) -> tuple[str, set[str]]:
    """The code of a plugin without comments and layout, and the names that it registers."""
    try:
        source = Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"plugins: {path} can't be read ({error.strerror}).") from error
    try:
        module = ast.parse(source)
    except SyntaxError:  # importing it gives the error
        return source, set()
    return ast.unparse(module), {
        argument.value
        for call in ast.walk(module)
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("register")
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }


def _plain(node: Any) -> Any:
    """The same tree with whole floats as int, as an option of type float takes 1 for 1.0."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


@functools.cache
def _stamps(path: str, out: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of the files that a path, a folder or a glob names, if any.

    What lies in `out`, the folder of the runs, is no data.
    """
    root = Path(path).expanduser()
    paths = root.rglob("*") if root.is_dir() else map(Path, glob.glob(str(root), recursive=True))
    files = [file for file in sorted(paths) if out not in file.resolve().parents]
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def without_hydra(cfg: DictConfig) -> DictConfig:
    """The task's part of a composed configuration."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
