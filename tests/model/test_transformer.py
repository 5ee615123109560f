"""The language model around the FFN slot."""

from __future__ import annotations

import cmath
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from router_lab.errors import UserError
from router_lab.losses import build_losses, layer_terms
from router_lab.model.transformer import Attention, ModelOptions, Transformer, slot_layers

V, S = 17, 12
MOE = {"name": "moe", "n_experts": 4, "router": {"name": "softmax_topk", "k": 2}}


def build(ffn: Any = MOE, seed: int = 0, **options: Any) -> Transformer:
    size = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ffn": 24, "seq_len": S, **options}
    return Transformer(V, ffn, ModelOptions(**size), d_hidden=8, seed=seed)


def with_router(name: str, **options: Any) -> Any:
    return {**MOE, "router": {"name": name, **options}}


@torch.no_grad()
@pytest.mark.parametrize(
    ("ffn", "lookahead"),
    [
        ({"name": "mlp"}, "never"),
        (MOE, "never"),
        (with_router("switch", eval_factor=1.0), "always"),
        (with_router("switch", eval_factor=1.0, scope="sequence"), "always"),
        (with_router("switch", eval_factor=float("inf")), "in training"),
        (with_router("switch", factor=float("inf"), eval_factor=4.0), "never"),
        (with_router("vmoe", factor=0.5, noise=0.0), "always"),
        (with_router("base_layer"), "in training"),
        (with_router("sinkhorn"), "in training"),
        (with_router("expert_choice"), "always"),
        ({"name": "mixture_of_depths", "share": 0.5}, "in training"),
        ({"name": "mixture_of_depths", "expert": with_router("expert_choice")}, "always"),
        ({"name": "soft_moe", "n_experts": 4, "seq_len": S}, "always"),
    ],
    ids=str,
)
def test_a_prefix_alone_has_the_logits_of_the_whole(ffn: Any, lookahead: Any) -> None:
    """A prefix of 3 tokens alone, against the same in sequences of length S, in both modes."""
    model = build(ffn)
    model.embedding.weight.mul_(30)  # so that routing and logits differ well
    assert model.lookahead == lookahead
    for train in (True, False):
        model.train(train)
        changed = 0.0
        for seed in range(10):
            torch.manual_seed(seed)
            tokens_BS = torch.randint(V, (3, S))
            noise_B = torch.arange(3)
            whole = model(tokens_BS, noise_B=noise_B).logits_BSV[:1, :3]
            alone = model(tokens_BS[:1, :3], noise_B=noise_B[:1]).logits_BSV
            changed = max(changed, (whole - alone).abs().max().item())
        looks_ahead = lookahead == "always" or (lookahead == "in training" and train)
        assert changed > 1e-3 if looks_ahead else changed < 1e-4


@pytest.mark.parametrize("ffn", [{"name": "mlp"}, MOE, with_router("vmoe", factor=0.5)], ids=str)
@pytest.mark.parametrize("side", ["right", "left", "holes"])
def test_padding_changes_nothing_for_real_tokens(ffn: Any, side: str) -> None:
    """Neither what stands in it nor, beside a shift of all positions, that it is there."""
    model = build(ffn).eval()
    mask_BS = torch.ones(3, S, dtype=torch.bool)
    mask_BS[1] = torch.arange(S) < 5 if side == "right" else torch.arange(S) >= 5
    if side == "holes":
        mask_BS = torch.rand(3, S) < 0.6
    tokens_BS = torch.randint(V, (3, S))
    other_BS = torch.where(mask_BS, tokens_BS, torch.randint(V, (3, S)))
    a, b = model(tokens_BS, mask_BS), model(other_BS, mask_BS)
    torch.testing.assert_close(a.logits_BSV[mask_BS], b.logits_BSV[mask_BS])
    for record in a.routings.values():
        assert record.n_tokens == mask_BS.sum()
        assert torch.equal(record.context.token_id_T, tokens_BS[mask_BS])
    if side != "holes" and model.lookahead == "never":  # else all sequences share the room
        alone = model(tokens_BS[1:2][mask_BS[1:2]][None]).logits_BSV[0]
        torch.testing.assert_close(a.logits_BSV[1][mask_BS[1]], alone, rtol=1e-4, atol=1e-5)


def test_no_padding_is_a_mask_of_ones() -> None:
    model = build().eval()
    tokens_BS = torch.randint(V, (2, S))
    masked = model(tokens_BS, torch.ones(2, S, dtype=torch.bool)).logits_BSV
    torch.testing.assert_close(model(tokens_BS).logits_BSV, masked)


def test_padding_gets_no_gradient() -> None:
    model = build()
    tokens_BS = torch.tensor([[1, 2, 3, 16, 16]])
    mask_BS = tokens_BS < 16
    records = model(tokens_BS, mask_BS).routings
    sum(record.taken.weight_A.square().sum() for record in records.values()).backward()
    grad_V = model.embedding.weight.grad.abs().sum(dim=1)
    assert grad_V[16] == 0 and (grad_V[1:4] > 0).all()


@pytest.mark.parametrize(
    ("ffn_layers", "slots"),
    [("all", [0, 1, 2, 3]), (1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), ([3, 0], [0, 3])],
    ids=str,
)
def test_layers_with_the_slot(ffn_layers: Any, slots: Any) -> None:
    assert slot_layers(ffn_layers, 4) == slots
    model = build(n_layers=4, ffn_layers=ffn_layers)
    records = model(torch.randint(V, (1, S))).routings
    assert list(records) == [f"layer{i}" for i in slots]
    assert list(model.routers()) == list(model.ffns()) == list(records)
    assert [record.context.layer for record in records.values()] == slots
    dense = [block.ffn for i, block in enumerate(model.blocks) if i not in slots]
    assert all(ffn.d_hidden == 24 for ffn in dense)


@pytest.mark.parametrize("ffn_layers", [0, -1, 9, "most", [], [4], [-1], [0.5], True], ids=str)
def test_impossible_layers_are_refused(ffn_layers: Any) -> None:
    with pytest.raises(UserError, match="ffn_layers="):
        slot_layers(ffn_layers, 4)


def test_heads_that_do_not_divide_are_refused() -> None:
    for n_heads in (3, 16):  # 16 would make heads of width 1, which cannot rotate
        with pytest.raises(UserError, match=f"n_heads={n_heads}"):
            build(n_heads=n_heads)


def test_too_long_a_sequence_is_refused() -> None:
    with pytest.raises(UserError, match="seq_len=12"):
        build()(torch.zeros(1, S + 1, dtype=torch.long))


def test_all_arms_of_a_seed_start_from_the_same_weights() -> None:
    def common(model: Transformer) -> dict[str, Tensor]:
        return {name: weight for name, weight in model.state_dict().items() if ".ffn." not in name}

    state = torch.random.get_rng_state()
    one = common(build(seed=3))
    assert torch.equal(torch.random.get_rng_state(), state)  # and nothing else is disturbed
    torch.manual_seed(99)
    for other in (build({"name": "mlp"}, seed=3), build(with_router("switch"), seed=3)):
        assert one.keys() == common(other).keys()
        assert all(torch.equal(one[name], weight) for name, weight in common(other).items())
    # More layers, too, leave the first ones as they were, FFN included.
    deeper, shallow = build(n_layers=3, seed=3).state_dict(), build(seed=3).state_dict()
    assert all(torch.equal(deeper[name], weight) for name, weight in shallow.items())
    different = common(build(seed=4))
    assert not torch.equal(one["embedding.weight"], different["embedding.weight"])
    first, second = (shallow[f"blocks.{i}.attention.qkv.weight"] for i in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("router", ["softmax_topk", "noisy_topk", "switch", "gshard"])
def test_recomputing_activations_changes_no_gradient(router: Any) -> None:
    """With dropout and noise, and with balance losses, which read the record."""
    ffn = {**MOE, "router": {"name": router}, "expert": {"name": "mistral"}}
    tokens_BS = torch.randint(V, (2, S + 1))
    gradients = []
    for recompute in (False, True):
        model = build(ffn, checkpoint=recompute, dropout=0.1)
        torch.manual_seed(7)
        output = model(tokens_BS[:, :-1])
        loss = F.cross_entropy(output.logits_BSV.flatten(0, 1), tokens_BS[:, 1:].flatten())
        terms = layer_terms(
            build_losses({"load_balance": {"coef": 0.3}, "z": None}, {}),
            output.routings,
            {name: record.demand_E for name, record in output.routings.items()},
        )
        (loss + terms.total).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in gradients[0].items():
        assert grad is not None, name
        torch.testing.assert_close(grad, gradients[1][name], rtol=1e-5, atol=1e-7)
    assert gradients[0]["blocks.0.ffn.router.gate.weight"].abs().max() > 0


def test_attention_by_the_formula() -> None:
    """Rotary positions as complex numbers; one query, one key at a time."""
    D, H, half = 8, 2, 2
    attention = Attention(D, H, S)
    x_BSD = torch.randn(1, 5, D)
    got_SD = attention(x_BSD, None)[0]
    q, k, v = (part.view(5, H, -1).tolist() for part in attention.qkv(x_BSD)[0].chunk(3, dim=-1))

    def turned(vector: list[float], position: int) -> list[complex]:
        turns = [cmath.exp(1j * position * 10000 ** (-i / half)) for i in range(half)]
        return [complex(vector[i], vector[i + half]) * turns[i] for i in range(half)]

    heads = torch.zeros(5, H, D // H)
    for h in range(H):
        for s in range(5):
            query = turned(q[s][h], s)
            scores = []
            for t in range(s + 1):
                key = turned(k[t][h], t)
                dot = sum((a * b.conjugate()).real for a, b in zip(query, key, strict=True))
                scores.append(math.exp(dot / math.sqrt(D // H)))
            for t, score in enumerate(scores):
                heads[s, h] += score / sum(scores) * torch.tensor(v[t][h])
    want_SD = heads.view(5, D) @ attention.out.weight.T
    torch.testing.assert_close(got_SD, want_SD, rtol=1e-5, atol=1e-6)


def test_queries_and_keys_are_normalised() -> None:
    """Attention then does not depend on how long they were."""
    attention, plain = Attention(8, 2, S, qk_norm=True), Attention(8, 2, S)
    plain.load_state_dict(attention.state_dict())
    x_BSD = torch.randn(2, 5, 8)
    q, k, v = attention.qkv(x_BSD).detach().view(2, 5, 3, 2, 4).unbind(2)
    q, k = (2 * x / x.square().sum(dim=-1, keepdim=True).sqrt() for x in (q, k))
    by_hand = torch.stack([q, k, v], dim=2).flatten(2)
    plain.qkv.forward = lambda input: by_hand  # type: ignore[method-assign]
    got_BSD = attention(x_BSD, None)
    torch.testing.assert_close(got_BSD, plain(x_BSD, None), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        attention.qkv.weight[:16] *= 10
    torch.testing.assert_close(attention(x_BSD, None), got_BSD, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "ffn",
    [
        {"name": "mlp"},
        {"name": "mistral"},
        {**MOE, "n_shared": 1},
        {**MOE, "expert": MOE},
        {**MOE, "expert": {"name": "mistral"}},
        {"name": "soft_moe", "n_experts": 4, "seq_len": S},
        {"name": "mixture_of_depths", "share": 0.5},
        {"name": "autonomy", "n_experts": 4},
    ],
    ids=str,
)
def test_blocks_whose_outputs_start_at_0_are_the_identity(ffn: Any) -> None:
    plain, model = build(ffn), build(ffn, zero_outputs=True)
    tokens_BS = torch.randint(V, (2, S))
    torch.testing.assert_close(model(tokens_BS).logits_BSV, model.head(model.embedding(tokens_BS)))
    assert not torch.allclose(plain(tokens_BS).logits_BSV, plain.head(plain.embedding(tokens_BS)))
    for name, p in plain.named_parameters():  # the others are drawn as before
        same = model.get_parameter(name)
        assert p.equal(same) or not same.any(), name


def test_an_untied_head_starts_at_0_and_a_cap_bounds_the_logits() -> None:
    tokens_BS = torch.randint(V, (2, S))
    tied, untied = build(embedding_std=1.0), build(embedding_std=1.0, tied=False)
    assert not untied(tokens_BS).logits_BSV.any()
    assert untied.unembedding is not None and untied.unembedding.weight.shape == (V, 16)
    assert tied.embedding.weight.equal(untied.embedding.weight)
    assert 0.9 < tied.embedding.weight.std() < 1.1
    with torch.no_grad():
        untied.unembedding.weight.copy_(tied.embedding.weight)
    logits_BSV = tied(tokens_BS).logits_BSV
    torch.testing.assert_close(untied(tokens_BS).logits_BSV, logits_BSV)
    assert logits_BSV.abs().max() > 3
    capped = build(embedding_std=1.0, logit_cap=3.0)(tokens_BS).logits_BSV
    torch.testing.assert_close(capped, 3 * torch.tanh(logits_BSV / 3))


def test_records_of_experts_that_route_again() -> None:
    inner = {"name": "moe", "n_experts": 2, "router": {"name": "softmax_topk", "k": 2}}
    model = build({**MOE, "expert": inner})
    records = model(torch.randint(V, (2, S))).routings
    assert "layer0" in records and "layer1.expert3" in records
    assert set(records) <= set(model.routers())
    outer = records["layer0"]
    for e in range(4):
        if outer.load_E[e] > 0:
            tokens_A = outer.taken.token_A[outer.taken.expert_A == e]
            ids = records[f"layer0.expert{e}"].context.token_id_T
            assert torch.equal(ids, outer.context.token_id_T[tokens_A])


def test_the_next_layer_sees_the_record_of_the_one_below() -> None:
    records = build(n_layers=4, ffn_layers=[0, 3])(torch.randint(V, (1, S)), step=5).routings
    assert records["layer0"].context.previous is None
    assert records["layer3"].context.previous is records["layer0"]
    assert records["layer0"].context.step == 5
