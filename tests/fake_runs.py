"""Runs that no trainer made: folders with result.json and status.json for tests of the report.

The numbers behave like real ones: a power-law learning curve, a seed's luck shared by all arms
(so that pairing by seed helps) and an arm's own noise on top, loads that have the MaxVio asked for.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from router_lab.runs.schema import SCHEMA, Point, Result


@dataclass(frozen=True)
class FakeArm:
    """What distinguishes an arm; `spread` and `unevenness` are of the loads of its experts."""

    bits_per_byte: float = 2.2
    router: str | None = "softmax_topk"
    ffn: str = "moe"
    unevenness: float = 0.2
    dropped: float = 0.0
    k: float = 2.0
    lookahead: Literal["never", "in training", "always"] = "never"
    params: float = 1.0  # times the reference's active parameters
    experts: int = 8
    layers: int = 4
    tokens_per_second: float = 3000.0
    probe: Mapping[str, float] | None = None
    metrics: Mapping[str, float] | None = None


ARMS: dict[str, FakeArm] = {
    "mlp": FakeArm(2.230, router=None, ffn="mlp", tokens_per_second=9000),
    "mistral": FakeArm(2.226, router=None, ffn="mistral", tokens_per_second=8600),
    "softmax_topk": FakeArm(2.171, unevenness=0.45, tokens_per_second=4100),
    "noisy_topk": FakeArm(2.182, router="noisy_topk", unevenness=0.16, tokens_per_second=3900),
    "capacity": FakeArm(2.204, unevenness=0.35, dropped=0.062, k=1.88, tokens_per_second=4300),
    "loss_free": FakeArm(2.163, router="loss_free", unevenness=0.05, tokens_per_second=4050),
    "expert_choice": FakeArm(
        2.149, router="expert_choice", unevenness=0.0, lookahead="always", tokens_per_second=4400
    ),
}
TOKENS = 400_000
ACTIVE = 1_000_000


def _random(*key: object) -> random.Random:
    return random.Random(zlib.crc32(repr(key).encode()))


def fingerprint_of(arm: FakeArm | None, tokens: int = TOKENS) -> str:
    """As the real one, it covers what decides a result, but not the seed nor the arm's name."""
    return f"{zlib.crc32(repr((arm, tokens)).encode()):016x}"


def result_of(
    name: str,
    arm: FakeArm,
    seed: int,
    *,
    grid: str = "first_look",
    noise: float = 0.006,
    luck: float = 0.02,
    points: int = 20,
    tokens: int = TOKENS,
    data: str = "3f2a9c0d11e45b67",
) -> Result:
    """The result.json of one run."""
    rng = _random(grid, name, seed)
    luck_of_seed = _random("seed", seed).gauss(0, luck)
    final = arm.bits_per_byte + luck_of_seed + rng.gauss(0, noise)
    layers = {} if arm.router is None else _layers(arm, rng)
    mean = {} if arm.router is None else _mean_of(layers, arm, rng)
    active = int(ACTIVE * arm.params)
    flops_per_token = 6.0 * active * 1.1
    speed = arm.tokens_per_second * rng.uniform(0.95, 1.05)
    curve: list[Point] = []
    for point in range(1, points + 1):
        done = point / points
        rise = 0.55 * (done**-0.45 - 1.0) + rng.gauss(0, 0.004) * (1 - done)
        curve.append(
            {
                "step": round(200 * done),
                "tokens": round(tokens * done),
                "flops": tokens * done * flops_per_token,
                "seconds": tokens * done / speed,
                "loss": (final + rise) * 0.6931,
                "bits_per_byte": final + rise,
            }
        )
        if mean:
            curve[-1]["max_vio"] = mean["max_vio"] * (1 + 2 * (1 - done))
    overrides = [f"arm={name}", f"ffn={arm.ffn}", "model=micro", f"seed={seed}"]
    if arm.router is not None:
        overrides.insert(1, f"router={arm.router}")
    return {
        "schema": SCHEMA,
        "arm": name,
        "seed": seed,
        "fingerprint": fingerprint_of(arm, tokens),
        "grid": grid,
        "overrides": overrides,
        "command": "router-lab train " + " ".join(overrides),
        "versions": {"router_lab": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "device": "cpu",
        "lookahead": arm.lookahead,
        "router": arm.router,
        "ffn": arm.ffn,
        "model": {"name": "micro", "d_model": 128, "n_layers": arm.layers, "seq_len": 256},
        "optim": {"name": "adamw", "lr": 3e-3},
        "data": {"name": "stdlib", "fingerprint": data, "unit": "byte"},
        "match": {
            "kind": "active_params",
            "target": ACTIVE,
            "actual": active,
            "d_hidden": 128,
            "solved": True,
            "error": arm.params - 1.0,
        },
        "params": {
            "total": active if arm.router is None else int(active * arm.experts / 2.6),
            "active": active,
            "active_measured": active,
            "embedding": 32_768,
            "by_role": {"matrices": active - 32_768, "embedding": 32_768},
        },
        "flops_per_token": flops_per_token,
        "flops_per_token_measured": flops_per_token,
        "budget": {"kind": "tokens", "amount": tokens},
        "train": {
            "steps": 200,
            "tokens": tokens,
            "seconds": tokens / speed,
            "tokens_per_second": speed,
            "setup_seconds": 0.8,
            "peak_memory_bytes": int(6.1e8 + 1e8 * arm.experts * (arm.router is not None)),
            "flops": tokens * flops_per_token,
            "flops_measured": tokens * flops_per_token,
            "batch_size": 8,
            "accumulate": 1,
            "devices": 1,
            "precision": "32-true",
        },
        "evaluation": {"batch_size": 8, "windows": 64, "capacity_factor": None},
        "quality": {
            "loss": final * 0.6931,
            "bits_per_byte": final,
            "floor_bits": None,
            "excess_bits": None,
        },
        "routing": {"mean": mean, "layers": layers},
        "losses": [],
        "saturation": [],
        "curve": curve,
        "probe": dict(arm.probe or {}),
    }


def _layers(arm: FakeArm, rng: random.Random) -> dict[str, dict[str, Any]]:
    layers = {}
    for layer in range(arm.layers):
        raw = [2.718 ** (rng.gauss(0, arm.unevenness)) for _ in range(arm.experts)]
        if arm.unevenness > 1.0:
            raw[rng.randrange(arm.experts)] = 0.0
        load = [value / sum(raw) for value in raw]
        layers[f"layer{layer}"] = {
            "load": load,
            "demand": load,
            "importance": load,
            "max_vio": max(load) * arm.experts - 1.0,
        }
    return layers


def _mean_of(
    layers: Mapping[str, Mapping[str, Any]], arm: FakeArm, rng: random.Random
) -> dict[str, float]:
    max_vio = sum(layer["max_vio"] for layer in layers.values()) / len(layers)
    dead = sum(share == 0 for layer in layers.values() for share in layer["load"]) / len(layers)
    return {
        "max_vio": max_vio,
        "max_vio_batch": max_vio * 1.6,
        "cv_load": max_vio / 2,
        "effective_experts": 1.0 / (1.0 + max_vio**2 / 4),
        "dead_experts": dead / arm.experts,
        "dropped": arm.dropped * rng.uniform(0.9, 1.1),
        "dropped_tokens": arm.dropped / 2,
        "balance_entropy": 1.0,
        "confidence_entropy": 0.4,
        "k_used": arm.k,
        **(arm.metrics or {}),
    }


def write_run(
    root: Path, result: Mapping[str, Any], *, started: str = "2025-11-21T10:00:00"
) -> Path:
    """A finished run's folder."""
    name = f"{result['arm']}-s{result['seed']}-{str(result['fingerprint'])[-8:]}"
    folder = root / str(result["grid"]) / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))
    status = status_of(result["arm"], result["seed"], "finished", started=started)
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def write_grid(
    root: Path,
    arms: Mapping[str, FakeArm] = ARMS,
    seeds: Iterable[int] = range(3),
    **options: Any,
) -> Path:
    """A grid of finished runs, one folder each; the arms started in the order given."""
    seeds = list(seeds)
    for order, (name, arm) in enumerate(arms.items()):
        for seed in seeds:
            started = f"2025-11-21T10:{order % 60:02}:{seed % 60:02}"
            write_run(root, result_of(name, arm, seed, **options), started=started)
    return root


def status_of(
    arm: str, seed: int, state: str, *, started: str = "2025-11-21T10:00:00", **more: Any
) -> dict[str, Any]:
    """The status.json of one run."""
    return {
        "schema": SCHEMA,
        "state": state,
        "reason": None,
        "pid": 1,
        "host": "elsewhere",
        "arm": arm,
        "seed": seed,
        "fingerprint": fingerprint_of(ARMS.get(arm)),
        "step": 200,
        "steps": 200,
        "tokens": TOKENS,
        "bits_per_byte": 2.2,
        "unit": "byte",
        "max_vio": 0.3,
        "seconds_left": 0.0,
        "started": started,
        "updated": started,
        **more,
    }


def write_status(
    root: Path, arm: str, seed: int, state: str, grid: str = "first_look", **more: Any
) -> Path:
    """The folder of a run without a result: failed, running, interrupted."""
    folder = root / grid / f"{arm}-s{seed}-{fingerprint_of(ARMS.get(arm))[-8:]}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps(status_of(arm, seed, state, **more)))
    return folder
