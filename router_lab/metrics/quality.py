"""Cross-entropy in nats per token and in bits per byte of text."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from router_lab.runs.schema import Quality


class BitsPerByte(Metric):
    """bits per byte = Σ nats / (ln 2 · Σ bytes), over all tokens: comparable across tokenisers.

    Args:
        token_bytes: bytes of text that each token of the vocabulary stands for [V]; None: one each.
    """

    nats: Tensor
    n_tokens: Tensor
    n_bytes: Tensor
    floor: Tensor
    n_floor: Tensor
    token_bytes_V: Tensor | None

    def __init__(self, token_bytes: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("token_bytes_V", token_bytes, persistent=False)
        for name in ("nats", "n_tokens", "n_bytes", "floor", "n_floor"):
            zero = torch.tensor(0.0, dtype=torch.double)
            self.add_state(name, default=zero, dist_reduce_fx="sum")

    def update(self, nats_BS: Tensor, target_BS: Tensor, floor_BS: Tensor | None = None) -> None:
        """Args: nats_BS: loss of each token. target_BS: the token. floor_BS: the least there is."""
        self.nats += nats_BS.double().sum()
        self.n_tokens += nats_BS.numel()
        bytes_V = self.token_bytes_V
        self.n_bytes += nats_BS.numel() if bytes_V is None else bytes_V[target_BS].double().sum()
        if floor_BS is not None:
            self.floor += floor_BS.double().sum()
            self.n_floor += floor_BS.numel()

    def compute(self) -> Quality:
        loss = float(self.nats / self.n_tokens)
        floor = float(self.floor / self.n_floor) / math.log(2) if self.n_floor else None
        return {
            "loss": loss,
            "bits_per_byte": float(self.nats / self.n_bytes) / math.log(2),
            "floor_bits": floor,
            "excess_bits": None if floor is None else loss / math.log(2) - floor,
        }
