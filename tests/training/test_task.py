"""The training step: micro-batches, ranks, recomputed activations, schedule and weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor

from router_lab.losses import BalanceLoss, build_losses, shares
from router_lab.model.optim import AdamW
from router_lab.model.transformer import ModelOptions, Transformer
from router_lab.routing import ROUTERS, Router, Routing, StepTotals
from router_lab.training.task import LMTask, StepDemand, StepRecord

V, D, S = 17, 16, 8
OPTIMISER = AdamW(lr=0.01, warmup=0.2)
DTYPE = {"32-true": "torch.float32", "bf16-true": "torch.bfloat16", "64-true": "torch.float64"}
Batch = dict[str, Tensor]


def task_of(
    ffn: Mapping[str, Any] | None = None,
    loss: Any = None,
    steps: int = 4,
    checkpoint: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
) -> LMTask:
    node = {"name": "moe", "n_experts": 4, **(ffn or {})}
    options = ModelOptions(D, 2, 2, seq_len=S, checkpoint=checkpoint, dropout=dropout)
    model = Transformer(V, node, options, d_hidden=8)
    losses = build_losses(loss or {}, {})
    return LMTask(model, losses, OPTIMISER, lambda step: min(step / steps, 1.0), seed)


def batches(n: int, size: int) -> list[Batch]:
    torch.manual_seed(1)
    return [
        {"tokens": torch.randint(V, (size, S + 1)), "noise": torch.randint(2**32, (size,))}
        for _ in range(n)
    ]


class Listen(Callback):
    """Keeps the records of all micro-batches."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, *_: Any) -> None:
        self.records.append(outputs["record"])


def fit(
    task: LMTask,
    data: list[Batch],
    accumulate: int = 1,
    *callbacks: Callback,
    precision: Any = "32-true",
) -> LMTask:
    trainer = Trainer(
        precision=precision,
        max_steps=len(data) // accumulate,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    loader: Any = torch.utils.data.DataLoader(data, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(task, loader)
    return task


def heard(task: LMTask) -> dict[str, list[tuple[list[int], StepTotals]]]:
    """What each router hears in after_step, filled as the task trains."""
    found: dict[str, list[tuple[list[int], StepTotals]]] = {}

    def listen(name: str, router: Router) -> None:
        def after_step(demand_E: Tensor, totals: StepTotals) -> None:
            found.setdefault(name, []).append((demand_E.tolist(), totals))

        router.after_step = after_step  # type: ignore[method-assign]

    for name, router in task.model.routers().items():
        listen(name, router)
    return found


def weights(task: LMTask) -> Tensor:
    return torch.cat([p.detach().flatten() for p in task.model.parameters()])


NOISY = {"router": {"name": "noisy_topk", "w_importance": 0.0, "w_load": 0.0}}


@pytest.mark.parametrize("ffn", [{}, NOISY], ids=["softmax_topk", "noisy_topk"])
def test_four_micro_batches_of_two_are_a_batch_of_eight(ffn: dict[str, Any]) -> None:
    whole = batches(3, 8)
    parts = [{k: v[i : i + 2] for k, v in b.items()} for b in whole for i in range(0, 8, 2)]
    at_once, split, before = task_of(ffn), task_of(ffn), weights(task_of(ffn))
    heard_at_once, heard_split = heard(at_once), heard(split)
    fit(at_once, whole)
    fit(split, parts, 4)
    assert (weights(at_once) - before).abs().max() > 0.01
    torch.testing.assert_close(weights(split), weights(at_once), atol=2e-5, rtol=1e-4)
    for name, calls in heard_at_once.items():
        assert len(calls) == 3
        for (load, totals), (load_split, totals_split) in zip(
            calls, heard_split[name], strict=True
        ):
            assert sum(load) == 2 * 8 * S and totals.n_tokens == totals_split.n_tokens == 8 * S
            # A tie may be broken otherwise once the weights differ by rounding.
            assert sum(abs(a - b) for a, b in zip(load, load_split, strict=True)) <= 2
            assert totals_split.density == totals.density == 0.5


def dropped(ffn: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """What dropout was given and what it left, of all layers, micro-batches and steps."""
    task, seen = task_of(ffn, dropout=0.3), []
    for module in task.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda _, given, left: seen.append((given[0], left)))
    fit(task, batches(4, 2), 2)
    return seen


@pytest.mark.parametrize(
    "router", ["loss_free", "noisy_topk", "vmoe", "switch", "gshard", "sparsemixer"]
)
def test_a_noisy_arm_has_the_dropout_of_its_neighbour(router: str) -> None:
    one, other = dropped({}), dropped({"router": {"name": router}})
    assert len(one) == len(other) == 4 * 2 * 2
    for (given, left), (given_too, left_too) in zip(one, other, strict=True):
        real = (given != 0) & (given_too != 0)  # a dropped token's expert output is 0
        assert real.float().mean() > 0.3 and 0.5 < (left[real] != 0).float().mean() < 0.9
        assert (left != 0)[real].equal((left_too != 0)[real])


def test_recomputed_activations_change_nothing_and_count_once() -> None:
    noisy = {"router": {"name": "noisy_topk"}}
    kept, again = task_of(noisy, dropout=0.1), task_of(noisy, checkpoint=True, dropout=0.1)
    heard_kept, heard_again = heard(kept), heard(again)
    for task in (kept, again):
        fit(task, batches(4, 2), 2)
    assert weights(again).equal(weights(kept))
    assert [load for load, _ in heard_again["layer0"]] == [load for load, _ in heard_kept["layer0"]]
    assert all(sum(load) == 2 * 2 * 2 * S for load, _ in heard_again["layer1"])


def test_the_global_scope_knows_the_micro_batches_before() -> None:
    loss = {"load_balance": {"coef": 0.01, "scope": "global"}}
    listen = Listen()
    fit(task_of(loss=loss), batches(4, 2), 2, listen)
    for first, second in (listen.records[:2], listen.records[2:]):
        for record, known in ((first, [first]), (second, [first, second])):
            terms = []
            for name, routing in record.routings.items():
                demand_E = sum(r.routings[name].demand_E for r in known).double()
                mean_E = routing.probs_TE.double().mean(dim=0)
                terms.append(4 * (demand_E / demand_E.sum() * mean_E).sum())
            expected = (sum(terms) / len(terms)).float()
            torch.testing.assert_close(record.terms["load_balance"], expected)


def test_dropout_is_that_of_seed_and_batch() -> None:
    def losses(data: list[Batch], seed: int = 0, skip: int = 0) -> list[float]:
        listen = Listen()
        task = task_of(dropout=0.3, seed=seed)
        torch.rand(skip)  # what ran before is of no consequence
        fit(task, data, 2, listen)
        return [float(record.loss_nats) for record in listen.records]

    assert losses(batches(2, 2)) == losses(batches(2, 2), skip=5)
    assert losses(batches(2, 2)) != losses(batches(2, 2), seed=1)
    first, second = losses(batches(1, 2) + batches(1, 2))
    assert first != second  # the same batch at another index


def test_the_schedule_warms_up_and_falls_to_its_end() -> None:
    task = task_of(steps=10)
    optimizer = task.configure_optimizers()
    schedule = optimizer["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(11):
        rates.append(optimizer["optimizer"].param_groups[0]["lr"] / OPTIMISER.lr)
        optimizer["optimizer"].step()
        schedule.step()
    assert rates[0] == pytest.approx(1e-3)
    assert rates[1] == pytest.approx(0.5, abs=2e-3)  # half of two steps of warm-up
    assert rates[2] == 1
    assert rates[6] == pytest.approx((1 + 0.1) / 2)  # half of the cosine
    assert rates[10] == pytest.approx(0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)


@pytest.mark.parametrize("router", ROUTERS.names())
def test_routers_stay_in_float32_in_every_precision(router: str) -> None:
    """Their parameters and buffers, what they record and the losses; experts follow."""
    loss = {"load_balance": {"coef": 0.01}}
    found = {}
    for precision in ("32-true", "bf16-true", "64-true"):
        listen, task = Listen(), task_of({"n_experts": 8, "router": {"name": router}}, loss)
        fit(task, batches(2, 2), 1, listen, precision=precision)
        for module in task.model.routers().values():
            for name, value in module.state_dict().items():
                assert value.dtype in (torch.float32, torch.long, torch.int32, torch.bool), name
        assert str(task.model.blocks[0].ffn.experts.down_EFD.dtype) == DTYPE[precision]
        record = listen.records[0].routings["layer1"]
        for part in (record.taken.weight_A, record.logits_TE, record.probs_TE):
            assert part.dtype == torch.float32
        assert listen.records[0].terms["load_balance"].dtype == torch.float32
        found[precision] = listen.records[0]
    exact = found["32-true"]
    assert found["64-true"].routings["layer0"].demand_E.equal(exact.routings["layer0"].demand_E)
    assert float(found["64-true"].loss_nats) == pytest.approx(float(exact.loss_nats), rel=1e-4)
    assert float(found["bf16-true"].loss_nats) == pytest.approx(float(exact.loss_nats), rel=0.03)


def test_a_share_of_the_load_is_not_rounded_in_bfloat16() -> None:
    """In bfloat16 a share of 0.4015 is 0.4023, a balance loss off by 2 in 1,000."""

    class Share(BalanceLoss):
        def __call__(self, routing: Routing, load_E: Tensor) -> Tensor:
            return shares(torch.tensor([4015, 5985]))[0]

    listen, task = Listen(), task_of()
    task.balance_losses["share"] = Share(0.0)
    fit(task, batches(1, 2), 1, listen, precision="bf16-true")
    assert float(listen.records[0].terms["share"]) == pytest.approx(0.4015, abs=1e-6)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_gradients_are_clipped_in_every_precision(precision: str) -> None:
    class Norm(Callback):
        norms: list[float] = []

        def on_before_zero_grad(self, trainer: Any, task: Any, optimizer: Any) -> None:
            grads = [p.grad for p in task.parameters() if p.grad is not None]
            if grads:
                self.norms.append(float(torch.stack([g.float().norm() for g in grads]).norm()))

    task, norm = task_of(), Norm()
    with torch.no_grad():
        task.model.embedding.weight.mul_(100)  # logits so large that the gradient is, too
    fit(task, batches(3, 2), 1, norm, precision=precision)
    assert len(norm.norms) == 2 and norm.norms == pytest.approx([1, 1], rel=0.02)


def test_matrices_decay_and_vectors_do_not() -> None:
    task = task_of({"special": {"constant": 1}})
    groups = task.configure_optimizers()["optimizer"].param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    names = {id(p): name for name, p in task.model.named_parameters()}
    assert decay.keys() == names.keys() and set(decay.values()) == {0.0, 0.1}
    plain = {names[key] for key, value in decay.items() if value == 0}
    assert plain == {n for n in names.values() if "norm" in n or n.endswith("special.0.value_D")}


def test_density_leaves_out_mixture_of_depths() -> None:
    """Half of the tokens are computed, and these have 3 of 4 experts each: 3 / 4, not
    (1 / 2 + 3 / 4) / 2, which is what ReMoE's λ would be steered by."""
    step = StepDemand()
    step.demand = {"layer0": torch.tensor([4]), "layer0.expert0": torch.tensor([4, 4, 4, 0])}
    step.tokens = {"layer0": torch.tensor(8), "layer0.expert0": torch.tensor(4)}
    assert step.density() == 3 / 4
