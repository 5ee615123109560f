"""Noise as a function of a token's place, instead of a generator's state.

Each value is a hash of (seed and window, position, layer, expert, column). So it is the same when
activations are recomputed, under torch.compile, in a resumed run, and however a step is split into
micro-batches and ranks. Dropout has torch's default generator to itself, so it is the same in arms
with and without noise.

    fold(key, value)      a key of 32 bits from a key and a number
    uniform(key_T, n)     [T, n] in (0, 1)
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK = 2**32 - 1
ODD = 0x1E3779B1  # below 2³¹, so that int64 holds its products with 32 bits


def fold(key: Tensor, value: Tensor | int) -> Tensor:
    """A new key of 32 bits for each key and number, int64; broadcasts.

    Their sum through T. Mueller's integer hash: a bijection of 32 bits in which every bit depends
    on all others.
    """
    key = (key + (value + 1) * ODD) & MASK
    for _ in range(2):
        key ^= key >> 16
        key *= 0x45D9F3B
        key &= MASK
    key ^= key >> 16
    return key


def uniform(key_T: Tensor, n: int) -> Tensor:
    """n uniform numbers in (0, 1) for each key of 32 bits [T, n], float32."""
    bits_Tn = fold(key_T[:, None], torch.arange(n, device=key_T.device))
    return (bits_Tn >> 9).float().add_(0.5).mul_(2.0**-23)


def normal(key_T: Tensor, n: int) -> Tensor:
    """n standard normal numbers for each key [T, n], float32, within ±5.4."""
    return uniform(key_T, n).mul_(2).sub_(1).erfinv_().mul_(2**0.5)
