"""The hash router: what its tables promise, and weights by hand."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from hypothesis import given, strategies as st

from router_lab.data.corpus import Corpus, Split
from router_lab.model.transformer import ModelOptions, Transformer
from router_lab.routers.hash import Hash, balanced_table
from router_lab.routing import ROUTERS, RouterContext


def test_only_the_token_id_counts() -> None:
    router = Hash(8, 4, k=2, vocab_size=10)
    tokens_BS = torch.tensor([[3, 7, 3], [9, 3, 17]])
    context = RouterContext.of_batch(tokens_BS)
    first = router(torch.randn(6, 8), context).taken.expert_A.view(6, 2)
    second = router(torch.randn(6, 8), context).taken.expert_A.view(6, 2)
    assert torch.equal(first, second)
    assert torch.equal(first[0], first[2]) and torch.equal(first[0], first[4])
    assert torch.equal(first[1], first[5])  # 17 = 7 modulo the size of the table


def test_weights_and_scores_without_a_gate() -> None:
    routing = Hash(8, 4, k=2, vocab_size=10)(
        torch.randn(3, 8), RouterContext.of_batch(torch.tensor([[0, 1, 2]]))
    )
    assert routing.taken.weight_A.tolist() == [0.5] * 6
    assert routing.logits_TE.abs().sum() == 0
    assert routing.probs_TE.sum(1).tolist() == [1.0] * 3
    assert (routing.probs_TE > 0).sum(1).tolist() == [2] * 3


@given(
    counts=st.lists(st.integers(0, 1000), min_size=1, max_size=40),
    n_experts=st.integers(1, 6),
    data=st.data(),
)
def test_balanced_is_greedy(counts: list[int], n_experts: int, data: st.DataObject) -> None:
    """Replayed from the most frequent id on, each row names k experts with the least to do."""
    k = data.draw(st.integers(1, n_experts))
    table_VK = balanced_table(counts, n_experts, k).tolist()
    load = [0] * n_experts
    for token in sorted(range(len(counts)), key=lambda t: -counts[t]):
        chosen = table_VK[token]
        assert len(set(chosen)) == k
        assert sorted(load[e] for e in chosen) == sorted(load)[:k]
        for expert in chosen:
            load[expert] += counts[token]


def test_balanced_against_a_worked_example(reference_check: Callable[..., None]) -> None:
    """Counts 8 7 5 4 3 1 on two experts: 8 | 7 → 8 | 12 → 12 | 12 → 15 | 12 → 15 | 13."""
    table = balanced_table([8, 7, 5, 4, 3, 1], 2, 1).flatten().tolist()
    load = Counter({expert: 0 for expert in table})
    for expert, tokens in zip(table, [8, 7, 5, 4, 3, 1], strict=True):
        load[expert] += tokens
    assert table[0] == table[3] and table[1] == table[2] == table[5]
    reference_check(
        router="hash",
        against="greedy assignment of six ids by hand",
        kind="independent",
        tolerance=0,
        error=max(abs(a - b) for a, b in zip(sorted(load.values()), [13, 15], strict=True)),
    )


def test_tables_on_zipf_text() -> None:
    """Balancing by counts leaves less imbalance than balancing ids, that no more than chance."""
    rank = torch.arange(1, 2001).float()
    counts = (1e6 / (rank + 10)).long()[torch.randperm(2000)].tolist()

    def max_vio(**options: object) -> float:
        torch.manual_seed(0)
        router = Hash(8, 16, k=2, vocab_size=2000, **options)  # type: ignore[arg-type]
        load_E = torch.zeros(16).index_add(
            0, router.table_VK.flatten(), torch.tensor(counts).float().repeat_interleave(2)
        )
        return float(load_E.max() / load_E.mean() - 1)

    assert max_vio(table="balanced", token_counts=lambda: counts) < 0.001
    assert max_vio(table="balanced") > 0.02
    assert max_vio(table="random") > 0.02


def test_round_robin_over_ids_without_counts() -> None:
    table_VK = Hash(8, 6, k=2, table="balanced", vocab_size=60).table_VK
    assert table_VK.flatten().bincount().tolist() == [20] * 6
    assert table_VK[:3].flatten().bincount().tolist() == [1] * 6  # any stretch is balanced
    pairs = Counter(tuple(sorted(row)) for row in table_VK.tolist())
    assert len(pairs) > 8, "the same experts always meet"


def test_table_is_part_of_the_state() -> None:
    first, second = Hash(8, 4, vocab_size=100), Hash(8, 4, vocab_size=100)
    assert not torch.equal(first.table_VK, second.table_VK)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.table_VK, second.table_VK)


def test_learned_only_with_a_gate() -> None:
    assert not list(Hash(8, 4).parameters())
    router = Hash(8, 4, k=2, learned_weight=True, vocab_size=10)
    routing = router(torch.randn(3, 8), RouterContext.of_batch(torch.tensor([[0, 1, 2]])))
    routing.taken.weight_A[::2].sum().backward()
    assert router.gate is not None and router.gate.weight.grad is not None
    assert router.gate.weight.grad.abs().sum() > 0


def test_every_layer_is_given_the_token_counts() -> None:
    """Through an expert that routes again, and through a layer of another kind."""
    split = Split(np.array([2, 0, 2, 2], dtype=np.uint8), n_bytes=4)
    corpus = Corpus("four", split, split, vocab_size=4, fingerprint="")
    assert corpus.token_counts() == [1, 0, 3, 0]
    balanced = {"name": "moe", "n_experts": 3, "router": {"name": "hash", "table": "balanced"}}
    for ffn in (
        balanced,
        {"name": "moe", "n_experts": 3, "expert": balanced},
        {"name": "mixture_of_depths", "expert": balanced},
    ):
        model = Transformer(4, ffn, ModelOptions(4, n_heads=1), 4, token_counts=corpus.token_counts)
        tables = [router for router in model.routers().values() if isinstance(router, Hash)]
        assert tables and all(len(router.table_VK) == 4 for router in tables)


def test_nothing_is_counted_for_a_random_table() -> None:
    def counts() -> list[int]:
        raise AssertionError("counted for nothing")

    ROUTERS.build({"name": "hash"}, d_model=4, n_experts=4, token_counts=counts)
