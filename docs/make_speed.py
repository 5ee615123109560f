"""Writes docs/speed.md from docs/bench/*.json: `python docs/make_speed.py`."""

from __future__ import annotations

from pathlib import Path

from router_lab.bench.record import Record, markdown

DOCS = Path(__file__).parent
INTRODUCTION = """\
# Speed

Written by `python docs/make_speed.py` from `docs/bench/*.json`, which `router-lab bench` writes.

    make bench     measures all of it and lists every ratio that is over 5% above docs/bench
    make speed     does the same, then keeps the new figures and writes this page

Contestants take turns within one process, on one thread, and their own CPU time counts. A cell is
the median over the rounds, with the quartiles, of the ratio to the first row in the same round.
Memory is that of tensors: what the forward pass saves for the backward pass without the parameters,
and the most that one call holds on top of what was there before it.

The sizes are (D width, L layers, B sequences of S tokens, F expert width): mini 32, 2, 16, 32, 32;
small 64, 2, 16, 64, 64; demo 128, 2, 8, 128, 192; mid 128, 2, 16, 128, 128; tiny 128, 4, 32, 256,
256. All have 4 heads and 256 tokens in the vocabulary.

The present records were taken with `--quick`, three rounds, on a machine that did other work: read
differences of under 0.1 as noise. The step and its growth with E are of the present engines;
routers, harness and grid were measured before them.
"""
SECTIONS = {
    "step": """\
## A training step

The FFN slot of our own transformer holds each contestant: a dense SwiGLU of width k · F, ours with
its balance loss and its record, a list of modules, the loop of the Mixtral article, and the
implementations of transformers. Forward, losses, backward, clipping and fused AdamW are timed. At a
ratio of 1.10 the dense model makes 10% more steps in the same time.
""",
    "growth": """\
## More experts

The same step at equal active parameters. Every expert has gradients and moments that the optimiser
passes over, used or not, so a step grows with E whatever the layer does.
""",
    "layer": """\
## A layer alone

Forward and backward without optimiser; a column is E of width F (T, D, F, E, k). The dense layer
sends T · k rows through one expert.
""",
    "routers": """\
## Routers

A step of the training task with the metrics of training on. Routers with an option k choose two
experts; the last column says how many were computed per token, which explains most of the spread.
Above 1.10 by their algorithm are densemixer (all experts run in training), dynmoe and relu (they
choose the number of experts, about four at the start). base_layer, which solves an assignment
problem in every step, costs as much with one expert as others with two.
""",
    "harness": """\
## The harness

Training through `router-lab train` with every callback, TensorBoard, status and the watch on the
experts, over a bare loop with the same model, losses, clipping and optimiser in the same process.
Part of it are our callbacks; we attribute the rest to Lightning's loop, which was not timed by
itself. Both cost about the same per step at every size, so the share falls as models grow.
""",
    "grid": """\
## A grid

Ideal is the runs' seconds of training over the number of cores. The wall clock has everything:
imports, composing the configurations, starting the processes, validation, results.
""",
}


def page() -> str:
    """The page; sections without a record are left out."""
    parts = [INTRODUCTION]
    for name, text in SECTIONS.items():
        path = DOCS / "bench" / f"{name}.json"
        if path.exists():
            parts += [text, markdown(Record.read(path))]
    return "\n".join(parts)


if __name__ == "__main__":
    (DOCS / "speed.md").write_text(page(), encoding="utf-8")
    print(f"Wrote {DOCS / 'speed.md'}.")
