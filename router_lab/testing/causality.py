"""Whether a token's routing depends on tokens that a language model has not generated yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from router_lab.model.ffns.moe import MoE
from router_lab.routing import Lookahead, RouterContext, Routing, furthest
from router_lab.testing.subject import (
    MODES,
    VOCABULARY,
    Subject,
    differing,
    require,
    seeded,
    take_steps,
)

TRIES = 12
"""Batches in each mode. A leak that only shows when experts are full needs several."""
REMEDY = (
    "Make a token's choice depend on the token and those before it, with noise from "
    "context.uniform or context.normal; or set lookahead on the class (on the instance, if it "
    'depends on the options): "in training", or "always" where evaluation does so too.'
)


def check_causality(subject: Subject) -> None:
    """A token's routing depends on later tokens exactly where the router says so."""
    _require_no_leak(subject, later_tokens)
    declared = declared_lookahead(subject)
    if declared == "never":
        return
    mode, train = ("training", True) if declared == "in training" else ("evaluation", False)
    require(
        any(find_leak(subject, compare, train) for compare in (later_tokens, prefix, batch_mates)),
        f"It declares lookahead={declared!r}, but in {TRIES} tries in {mode} no token's routing "
        "depended on later tokens or on other sequences.",
        'Set lookahead = "never"'
        + (', or "in training" if it does in training.' if declared == "always" else "."),
    )


def check_prefix(subject: Subject) -> None:
    """The first tokens of a sequence are routed alone as within the whole."""
    _require_no_leak(subject, prefix)


def check_batch_mates(subject: Subject) -> None:
    """A sequence is routed alone as in a batch."""
    _require_no_leak(subject, batch_mates)


def declared_lookahead(subject: Subject) -> Lookahead:
    """What the router and its capacity limit declare."""
    return furthest(*(layer.lookahead for layer in _layers(subject)))


def _require_no_leak(subject: Subject, compare: Comparison) -> None:
    """In the modes in which the router declares that there is none."""
    declared = declared_lookahead(subject)
    for mode, train in MODES.items():
        if declared == "never" or (declared == "in training" and not train):
            leak = find_leak(subject, compare, train)
            problem = f"It declares lookahead={declared!r}, but in {mode}, {leak}."
            require(leak is None, problem, REMEDY)


Records = list[Routing]
Comparison = Callable[[Subject, list[MoE], int, bool], tuple[Records, Records, Tensor, str]]
"""(subject, layers, seed, train) → two records of each layer, the tokens of the first that must
agree with the leading ones of the second, and how to say that they do not."""


def find_leak(subject: Subject, compare: Comparison, train: bool) -> str | None:
    """The first leak in several batches, of layers as they are built and in mid-training."""
    fresh, in_training = _layers(subject), _layers(subject)
    for layer in in_training:
        take_steps(layer.router, subject, n=5)
    for seed in range(TRIES):
        layers = in_training if seed % 3 == 2 else fresh
        first, second, tokens, sentence = compare(subject, layers, seed, train)
        leading = torch.arange(len(tokens))
        for place, one, two in zip(("", " of the second layer"), first, second, strict=True):
            difference = differing(one, two, index_a=tokens, index_b=leading)
            if difference is not None:
                return sentence.format(difference + place)
    return None


def later_tokens(
    subject: Subject, layers: list[MoE], seed: int, train: bool
) -> tuple[Records, Records, Tensor, str]:
    """Changes the tokens after some position of a sequence.

    Half of the batches crowd: all changed tokens, and the other sequences, are one vector, so that
    an expert with a limit overflows.
    """
    B, S = (2, 16) if seed % 2 else (1, 32)
    x_TD, context = _batch(subject, B, S, seed)
    with seeded(seed + 1000):
        cut = int(torch.randint(S // 2, ()))
        later = slice(cut + 1, S)
        changed_TD, ids_T = x_TD.clone(), context.token_id_T.clone()
        changed_TD[later] = torch.randn(S - cut - 1, subject.d_model)
        ids_T[later] = torch.randint(VOCABULARY, (S - cut - 1,))
        if seed % 4 >= 2:
            crowd_D = 2 * changed_TD[cut + 1]
            changed_TD[later], ids_T[later] = crowd_D, ids_T[cut + 1].clone()
            x_TD[S:] = changed_TD[S:] = crowd_D
    return (
        _route_both(layers, x_TD, context, train, seed),
        _route_both(layers, changed_TD, replace(context, token_id_T=ids_T), train, seed),
        torch.arange(cut + 1),
        f"changing the tokens after position {cut} of a sequence changes {{}} at or before it",
    )


def prefix(
    subject: Subject, layers: list[MoE], seed: int, train: bool
) -> tuple[Records, Records, Tensor, str]:
    """Removes the tokens after some position of a sequence."""
    S = 32
    x_TD, context = _batch(subject, 1, S, seed)
    n = 1 + (7 * seed) % (S // 2)
    return (
        _route_both(layers, x_TD, context, train, seed),
        _route_both(layers, *_part(x_TD, context, 0, n), train, seed),
        torch.arange(n),
        f"the first {n} of {S} tokens, taken alone, differ in {{}}",
    )


def batch_mates(
    subject: Subject, layers: list[MoE], seed: int, train: bool
) -> tuple[Records, Records, Tensor, str]:
    """Removes the other sequences of a batch."""
    B, S = 3, 16
    x_TD, context = _batch(subject, B, S, seed)
    b = seed % B
    return (
        _route_both(layers, x_TD, context, train, seed),
        _route_both(layers, *_part(x_TD, context, b, S), train, seed),
        torch.arange(b * S, b * S + S),
        f"a sequence of a batch of {B}, taken alone, differs in {{}}",
    )


def _layers(subject: Subject) -> list[MoE]:
    """Two layers of the model as they would be built, capacity stage included."""
    layers = [ffn for ffn in subject.model().ffns().values() if isinstance(ffn, MoE)]
    assert len(layers) == 2
    return layers


def _batch(subject: Subject, B: int, S: int, seed: int) -> tuple[Tensor, RouterContext]:
    """Random vectors, in every other batch nearly alike, and a context with noise of its own."""
    x_TD, context = subject.batch(B, S, seed)
    if seed % 4 in (1, 2):
        x_TD = x_TD[:1] + 0.3 * x_TD
    return x_TD, replace(context, noise_B=torch.arange(B) + 1000 * seed)


def _part(x_TD: Tensor, context: RouterContext, b: int, n: int) -> tuple[Tensor, RouterContext]:
    """The first n tokens of sequence b as a batch."""
    assert context.noise_B is not None
    tokens_T = (context.sequence_T == b).nonzero().squeeze(1)[:n]
    ids_BS = context.token_id_T[tokens_T][None]
    return x_TD[tokens_T], RouterContext.of_batch(ids_BS, noise_B=context.noise_B[b : b + 1])


def _route_both(
    layers: list[MoE], x_TD: Tensor, context: RouterContext, train: bool, seed: int
) -> list[Routing]:
    """The records of two layers over the same vectors; the second sees the first's record."""
    records: list[Routing] = []
    with torch.no_grad(), seeded(seed):
        for index, layer in enumerate(layers):
            layer.train(train)
            here = replace(context, layer=index, previous=records[-1] if records else None)
            records.append(layer(x_TD, here)[1][""])
    return records
