"""Batches: what is in them, that they repeat bit for bit, go on from checkpoints, and share out."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from router_lab.data import Corpus, Split
from router_lab.data.module import WindowsDataModule
from router_lab.data.windows import Batch, random_words, spread_windows
from router_lab.errors import UserError

S = 7


def running_text(n_train: int = 500, n_val: int = 200) -> Corpus:
    """Token i of a split is i, its domain i mod 5: a batch shows where it was cut."""
    train, val = (
        Split(np.arange(n, dtype=np.uint16), n, (np.arange(n) % 5).astype(np.uint8), None)
        for n in (n_train, n_val)
    )
    return Corpus("numbers", train, val, max(n_train, n_val), "0", tuple("abcde"))


def sequences(n: int = 30) -> Corpus:
    size = n * (S + 1)
    tokens = np.arange(size, dtype=np.uint16)
    split = Split(tokens, size, tokens % 3, tokens.astype(np.float32) / 8)
    return Corpus("sequences", split, split, size, "0", ("a", "b", "c"), window=S + 1)


def module(corpus: Corpus | None = None, **options: Any) -> WindowsDataModule:
    return WindowsDataModule(corpus or running_text(), S, **{"batch_size": 4, **options})


def first(data: WindowsDataModule, n: int) -> list[Batch]:
    return list(islice(data.train_dataloader(), n))


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)
        for x, y in zip(a, b, strict=True)
    )


def test_a_window_is_consecutive_with_its_labels() -> None:
    for batch in first(module(), 20):
        tokens = batch["tokens"]
        assert tokens.shape == (4, S + 1) and tokens.dtype == torch.int64
        assert torch.equal(tokens, tokens[:, :1] + torch.arange(S + 1))
        assert torch.equal(batch["domain"], tokens[:, :-1] % 5)
        assert "floor" not in batch
    assert all(type(value) is torch.Tensor for value in batch.values())


def test_sequences_are_whole_with_the_target_s_floor() -> None:
    for batch in first(module(sequences()), 20):
        tokens = batch["tokens"]
        assert (tokens[:, 0] % (S + 1) == 0).all()
        assert torch.equal(batch["domain"], tokens[:, :-1] % 3)
        assert torch.equal(batch["floor"], tokens[:, 1:] / 8)


@pytest.mark.parametrize(("corpus", "n"), [(running_text(20), 20 - S), (sequences(9), 9)])
def test_training_reaches_every_window_and_no_further(corpus: Corpus, n: int) -> None:
    starts = torch.cat([batch["tokens"][:, 0] for batch in first(module(corpus), 100)])
    assert starts.unique().tolist() == list(range(0, n * (corpus.window or 1), corpus.window or 1))


def test_a_seed_gives_the_same_batches_whatever_else_differs() -> None:
    batches = first(module(seed=3), 9)
    torch.manual_seed(99)
    np.random.seed(99)
    assert same(first(module(seed=3, val_windows=2), 9), batches)
    assert same(first(module(seed=3, workers=2), 9), batches)
    assert not same(first(module(seed=4), 9), batches)
    assert not torch.equal(batches[0]["tokens"], batches[1]["tokens"])


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**7), st.integers(1, 70))
def test_a_window_depends_on_seed_and_index_alone(seed: int, first: int, n: int) -> None:
    stream = np.random.Philox(key=seed)
    stream.advance(first // 4)
    expected = stream.random_raw(first % 4 + n)[first % 4 :]
    assert random_words(seed, first, n).tolist() == expected.tolist()
    one_by_one = [random_words(seed, first + i, 1)[0] for i in range(n)]
    assert one_by_one == expected.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_windows_do_not_depend_on_how_a_step_is_cut(workers: int) -> None:
    draws = np.random.Philox(key=3).random_raw(48) % np.uint64(500 - S)
    for batch_size, ranks in [(8, 1), (4, 1), (3, 1), (4, 2), (2, 4)]:
        windows: list[list[Tensor]] = []
        for rank in range(ranks):
            data = module(seed=3, batch_size=batch_size, workers=workers)
            data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks)  # type: ignore[assignment]
            batches = first(data, 48 // batch_size // ranks)
            windows.append([batch["tokens"][:, 0] for batch in batches])
        in_order = torch.cat([part for step in zip(*windows, strict=True) for part in step])
        assert in_order.tolist() == draws.tolist(), (batch_size, ranks)


@given(st.integers(S + 1, 300), st.integers(1, 50), st.integers(1, 9))
def test_validation_windows_are_spread_whole_and_apart(n_val: int, n: int, batch_size: int) -> None:
    data = module(running_text(n_val=n_val), val_windows=n, val_batch=batch_size)
    batches = list(data.val_dataloader())
    windows = torch.cat([batch["tokens"] for batch in batches])
    fit = (n_val - 1) // S
    assert len(windows) == min(n, fit)
    assert len(windows[:, 1:].unique()) == len(windows) * S  # no target twice
    assert all(len(batch["tokens"]) == batch_size for batch in batches[:-1])
    gaps = windows[:, 0].diff()
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= S
    assert same(batches, list(module(running_text(n_val=n_val), val_windows=n, seed=5,
                                     val_batch=batch_size).val_dataloader()))  # fmt: skip


def test_validation_of_sequences_takes_whole_ones() -> None:
    assert spread_windows(sequences(10), S, 4).tolist() == [0, 16, 40, 56]  # 0, 2, 5, 7 of 8 each


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(UserError, match="validation text of data=numbers has 7 tokens"):
        module(running_text(n_val=S))
    assert len(list(module(running_text(n_val=S + 1)).val_dataloader())) == 1
    with pytest.raises(UserError, match="must be 7, it is 9"):
        WindowsDataModule(sequences(), 9, 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_the_batches_that_one_rank_sees(workers: int) -> None:
    alone = module(seed=1, val_windows=20, workers=workers)
    train, val = first(alone, 9), list(alone.val_dataloader())
    for rank in range(3):
        data = module(seed=1, val_windows=20, workers=workers)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=3)  # type: ignore[assignment]
        assert same(first(data, 3), train[rank::3])
        assert same(list(data.val_dataloader()), val[rank::3])
        data.load_state_dict({"trained": 2})
        assert same(first(data, 1), train[6 + rank : 7 + rank])


class Recorder(LightningModule):
    """One weight whose gradient depends on the tokens; keeps what it trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        return self.weight * batch["tokens"].float().mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert not self.training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fit(folder: Path, steps: int, resume: bool, every: int, workers: int) -> Recorder:
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=2,
        val_check_interval=6,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(folder, "last", every_n_train_steps=every, enable_version_counter=False)
        ],
    )
    path = folder / "last.ckpt"
    trainer.fit(recorder, module(seed=2, workers=workers), ckpt_path=path if resume else None)
    return recorder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("interrupted_at", "workers"), [(3, 0), (4, 0), (6, 2)])
def test_a_run_that_goes_on_sees_what_it_would_have_seen(
    tmp_path: Path, interrupted_at: int, workers: int
) -> None:
    """Checkpoints within the epoch, on and off a validation (after every third step)."""
    whole = fit(tmp_path / "whole", steps=10, resume=False, every=10, workers=0)
    assert same(whole.seen, first(module(seed=2), 20))
    begun = fit(tmp_path, interrupted_at, resume=False, every=interrupted_at, workers=workers)
    rest = fit(tmp_path, steps=10, resume=True, every=10, workers=workers)
    assert same(begun.seen + rest.seen, whole.seen)
    assert torch.equal(rest.weight, whole.weight)
