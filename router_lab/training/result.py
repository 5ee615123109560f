"""result.json, all that a report reads of a finished run."""

from __future__ import annotations

import math
import platform
import resource
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

import router_lab
from router_lab.data.windows import spread_windows
from router_lab.losses import acting
from router_lab.model.budget import measured_active_params, measured_flops
from router_lab.model.ffn import FFN
from router_lab.model.ffns.moe import MoE
from router_lab.model.optim import by_role
from router_lab.routing import Router
from router_lab.runs.folder import RunDir
from router_lab.runs.schema import SCHEMA, Result

if TYPE_CHECKING:
    from router_lab.experiment import Experiment
    from router_lab.training.callbacks.evaluation import Evaluation


def result_of(experiment: Experiment, run: RunDir, evaluation: Evaluation, step: int) -> Result:
    """The result of a finished run; `runs.schema` and docs/result.md explain the keys.

    Called on all ranks.
    """
    config, cost, clock = experiment.config, experiment.cost, evaluation.clock
    corpus, model, trainer = experiment.corpus, experiment.model, experiment.trainer
    tokens = step * experiment.tokens_per_step
    rows = evaluation.watch.carried_out()
    load = {name: (rows_E.double() / tokens).tolist() for name, rows_E in rows.items()}
    flops_measured = measured_flops(model, load)
    routed = any(len(rows_E) > 1 for rows_E in rows.values())
    own_losses = [m.own_losses for m in model.modules() if isinstance(m, FFN | Router)]
    limits = [ffn.capacity for ffn in model.modules() if isinstance(ffn, MoE) and ffn.capacity]
    factors = [x.eval_factor for x in limits if not math.isinf(x.eval_factor)]
    return {
        "schema": SCHEMA,
        "arm": run.arm,
        "seed": run.seed,
        "fingerprint": run.fingerprint,
        "grid": run.grid,
        "overrides": list(run.overrides),
        "command": run.command,
        "versions": versions(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "lookahead": model.lookahead,
        "ffn": config["ffn"]["name"],
        "router": (config["ffn"].get("router") or {}).get("name"),
        "model": config["model"],
        "optim": config["optim"],
        "data": {"name": corpus.name, "fingerprint": corpus.fingerprint, "unit": corpus.unit},
        "match": experiment.match.report() if experiment.match else None,
        "params": {
            "total": cost.total,
            "active": cost.active,
            "embedding": cost.embedding,
            "by_role": {
                role: sum(p.numel() for p in group) for role, group in by_role(model).items()
            },
            "active_measured": measured_active_params(model, load),
        },
        "flops_per_token": cost.flops_per_token,
        "flops_per_token_measured": flops_measured,
        "budget": {"kind": experiment.budget.kind, "amount": experiment.budget.amount},
        "train": {
            "steps": step,
            "tokens": tokens,
            "seconds": clock.seconds,
            "tokens_per_second": tokens / max(clock.seconds, 1e-9),
            "setup_seconds": clock.setup_seconds,
            "peak_memory_bytes": peak_memory(),
            "flops": tokens * cost.flops_per_token,
            "flops_measured": tokens * flops_measured,
            "batch_size": trainer.batch_size,
            "accumulate": trainer.accumulate,
            "devices": trainer.n_devices,
            "precision": trainer.precision,
        },
        "evaluation": {
            "batch_size": trainer.val_batch,
            "capacity_factor": min(factors, default=None),
            "windows": len(spread_windows(corpus, model.seq_len, trainer.val_windows)),
        },
        "quality": evaluation.quality,
        "losses": acting(experiment.losses if routed else {}, own_losses),
        "routing": {"mean": evaluation.mean, "layers": evaluation.layers},
        "saturation": evaluation.figures.saturation(),
        "curve": evaluation.curve,
    }


def versions() -> dict[str, str]:
    packages = ("torch", "lightning", "hydra-core", "torchmetrics")
    return {
        "router_lab": router_lab.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def peak_memory() -> int:
    """Bytes, of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
