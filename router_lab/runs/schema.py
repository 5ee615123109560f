"""The keys of result.json and status.json: what a run writes, and all that a report reads."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

SCHEMA = 1
"""Version of both files. A report leaves out a result of another version."""


class Data(TypedDict):
    name: Annotated[str, "the corpus"]
    fingerprint: Annotated[str, "of its tokens; runs on different ones are not compared"]
    unit: Annotated[str, "byte; token where bytes are unknown: bits_per_byte is then per token"]


class Match(TypedDict):
    kind: Annotated[str, "what is matched: active_params, flops or total_params"]
    target: Annotated[float, "of a dense layer of width model.d_ffn"]
    actual: Annotated[float, "of one layer of the FFN slot"]
    d_hidden: Annotated[int, "width of the layer's FFN, of one expert where it has any"]
    solved: Annotated[bool, "whether d_hidden was solved for, or given"]
    error: Annotated[float, "actual / target − 1"]


class Params(TypedDict):
    total: Annotated[float, "parameters of the model"]
    active: Annotated[float, "parameters that a token uses, with k experts per layer"]
    embedding: Annotated[float, "of these, the embedding's, and the head's with model.tied=false"]
    by_role: Annotated[dict[str, int], "by role in the optimiser: matrices, gates, embedding, …"]
    active_measured: Annotated[float, "active, with the experts that training really ran"]


class Budget(TypedDict):
    kind: Annotated[str, "tokens, flops or seconds"]
    amount: Annotated[float, "in that unit"]


class Train(TypedDict):
    steps: Annotated[int, "optimiser steps"]
    tokens: Annotated[int, "tokens trained on, over all ranks"]
    seconds: Annotated[float, "seconds of training, without validation"]
    tokens_per_second: Annotated[float, "tokens / seconds"]
    setup_seconds: Annotated[
        float | None, "from the start of the process to the end of its first batch, on Linux"
    ]
    peak_memory_bytes: Annotated[int, "of the GPU where there is one, else of the process"]
    flops: Annotated[float, "tokens × flops_per_token"]
    flops_measured: Annotated[float, "tokens × flops_per_token_measured"]
    batch_size: Annotated[int, "sequences per micro-batch and rank"]
    accumulate: Annotated[int, "micro-batches per optimiser step"]
    devices: Annotated[int, "ranks"]
    precision: Annotated[str, "of Lightning: 32-true, bf16-mixed, …"]


class Evaluation(TypedDict):
    batch_size: Annotated[int, "sequences per validation batch"]
    capacity_factor: Annotated[float | None, "capacity factor in evaluation; null without a limit"]
    windows: Annotated[int, "sequences in the validation set"]


class Quality(TypedDict):
    loss: Annotated[float, "validation loss, nats per token"]
    bits_per_byte: Annotated[float, "the same in bits per byte of text"]
    floor_bits: Annotated[float | None, "Bayes-optimal loss, bits per token, where it is known"]
    excess_bits: Annotated[float | None, "loss above that floor, bits per token"]


class RoutingFigures(TypedDict):
    mean: Annotated[dict[str, float], "each metric's mean over the routed layers (docs/metrics.md)"]
    layers: Annotated[dict[str, dict[str, Any]], "metrics by layer: numbers, and lists by expert"]


class Point(TypedDict):
    step: Annotated[int, "optimiser steps so far"]
    tokens: Annotated[int, "tokens so far"]
    flops: Annotated[float, "nominal FLOPs so far"]
    seconds: Annotated[float, "seconds of training so far"]
    loss: Annotated[float, "as quality.loss"]
    bits_per_byte: Annotated[float, "as quality.bits_per_byte"]
    floor_bits: NotRequired[Annotated[float, "as quality.floor_bits"]]
    excess_bits: NotRequired[Annotated[float, "as quality.excess_bits"]]
    max_vio: NotRequired[Annotated[float, "mean over the layers, as the four below"]]
    dropped: NotRequired[Annotated[float, "share of assignments dropped"]]
    effective_experts: NotRequired[Annotated[float, "effective share of the experts"]]
    churn: NotRequired[Annotated[float, "share of choices changed since the last validation"]]
    domain_nmi: NotRequired[Annotated[float, "specialisation by domain"]]


class Result(TypedDict):
    """result.json, written once, when the run has finished."""

    schema: Annotated[int, "version of this file"]
    arm: Annotated[str, "name of the arm"]
    seed: Annotated[int, "seed of the run"]
    fingerprint: Annotated[str, "of all options that decide the result, the seed left out"]
    grid: Annotated[str, "name of the grid; single where there is none"]
    overrides: Annotated[list[str], "what the command line gave"]
    command: Annotated[str, "the command that makes this run and no other"]
    versions: Annotated[dict[str, str], "of router_lab, Python and the libraries that compute"]
    device: Annotated[str, "name of the GPU, or cpu"]
    lookahead: Annotated[
        Literal["never", "in training", "always"],
        "whether a token's routing depends on later tokens or other sequences",
    ]
    ffn: Annotated[str, "name of the FFN"]
    router: Annotated[str | None, "name of the router; null for an FFN without one"]
    model: Annotated[dict[str, Any], "the options of model"]
    optim: Annotated[dict[str, Any], "the options of the optimiser"]
    data: Data
    match: Annotated[Match | None, "null with match=none"]
    params: Params
    flops_per_token: Annotated[float, "FLOPs of training per token, with k experts per layer"]
    flops_per_token_measured: Annotated[float, "the same with the experts that training ran"]
    budget: Budget
    train: Train
    evaluation: Evaluation
    quality: Quality
    losses: Annotated[list[dict[str, Any]], "terms beside cross-entropy: name, coef, reduce, …"]
    routing: RoutingFigures
    saturation: Annotated[list[float], "per validation, the share of the final choices made by it"]
    curve: Annotated[list[Point], "a point per validation"]
    probe: NotRequired[Annotated[dict[str, Any], "what router-lab probe measured"]]


class Status(TypedDict, total=False):
    """status.json, rewritten while the run trains. A run that has not begun has `started` alone."""

    schema: Annotated[int, "version of this file"]
    state: Annotated[
        Literal["running", "finished", "failed", "interrupted"], "as the run itself sees it"
    ]
    reason: Annotated[str | None, "why it failed or stopped"]
    pid: Annotated[int, "process that trains it"]
    host: Annotated[str, "machine that trains it"]
    arm: Annotated[str, "name of the arm"]
    seed: Annotated[int, "seed of the run"]
    fingerprint: Annotated[str, "as in result.json"]
    step: Annotated[int, "optimiser steps so far"]
    steps: Annotated[int | None, "steps of the whole run; null for a budget of seconds"]
    tokens: Annotated[int, "tokens so far"]
    bits_per_byte: Annotated[float | None, "of the last validation"]
    unit: Annotated[str, "as data.unit of result.json"]
    max_vio: Annotated[float | None, "of the last validation, mean over the layers"]
    seconds_left: Annotated[float | None, "estimate; null before the first step"]
    started: Annotated[str, "when it first began, ISO 8601"]
    updated: Annotated[str, "when this file was last written; every 20 s at least"]
