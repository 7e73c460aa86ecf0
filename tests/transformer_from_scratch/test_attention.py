"""Attention equals PyTorch's own in outputs and gradients, on both paths, under every mask."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_from_scratch.attention import (
    KeyValueCache,
    MultiHeadAttention,
    causal_mask,
    fused_attention,
    padding_mask,
    scaled_dot_product_attention,
)
from transformer_from_scratch.positional_encoding import RotaryEmbedding

B, TQ, TK, C, H = 3, 5, 7, 12, 3
EXACT = 1e-10


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tensors this small only wait for each other on more


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def per_head_mask(num_queries: int, num_keys: int) -> Tensor:
    """Hide at random, and differently in each head, but leave every query its first key."""
    mask = torch.rand(B, H, num_queries, num_keys) < 0.6
    mask[..., 0] = True
    return mask


def masks(num_queries: int, num_keys: int) -> dict[str, Tensor | None]:
    """Every kind of mask, as what may be attended to."""
    padding = padding_mask(torch.tensor([num_keys, 1, num_keys - 2]), num_keys)
    arbitrary = per_head_mask(num_queries, num_keys)
    return {"none": None, "padding": padding, "arbitrary": arbitrary, "padding and arbitrary": padding & arbitrary}


def pair(*, bias: bool, fused: bool) -> tuple[MultiHeadAttention, nn.MultiheadAttention]:
    """Build both implementations with the same weights, the biases not zero."""
    ours = MultiHeadAttention(C, H, bias=bias, fused=fused).double()
    theirs = nn.MultiheadAttention(C, H, bias=bias, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for mine, its in weight_pairs(ours, theirs):
            mine.normal_()
            its.copy_(mine)
    return ours, theirs


def weight_pairs(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor]]:
    pairs = [(ours.in_proj.weight, theirs.in_proj_weight), (ours.out_proj.weight, theirs.out_proj.weight)]
    if ours.in_proj.bias is not None:
        pairs += [(ours.in_proj.bias, theirs.in_proj_bias), (ours.out_proj.bias, theirs.out_proj.bias)]
    return pairs


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", ["none", "padding", "arbitrary", "padding and arbitrary"])
@pytest.mark.parametrize(
    ("inputs", "fused", "need_weights", "bias"),
    [
        *product(["self", "cross", "cross with other values"], [True, False], [False], [True]),
        ("self", False, True, True),
        ("cross with other values", True, True, False),
    ],
)
def test_equals_pytorch(inputs: str, fused: bool, need_weights: bool, bias: bool, mask: str, causal: bool) -> None:
    ours, theirs = pair(bias=bias, fused=fused)
    queries = random(B, TQ, C)
    keys = queries if inputs == "self" else random(B, TK, C)
    values = random(B, TK, C) if inputs == "cross with other values" else keys
    leaves = list({id(x): x for x in (queries, keys, values)}.values())
    num_keys = keys.shape[1]
    allowed = masks(TQ, num_keys)[mask]

    given_inputs = {"self": (queries,), "cross": (queries, keys)}.get(inputs, (queries, keys, values))
    output, weights = ours(*given_inputs, mask=allowed, causal=causal, need_weights=need_weights)

    everything = torch.ones(B, H, TQ, num_keys, dtype=torch.bool)
    visible = everything if allowed is None else everything & allowed
    if causal:
        visible = visible & (torch.arange(num_keys) <= torch.arange(TQ)[:, None] + num_keys - TQ)
    ignored = ~visible.flatten(0, 1)  # nn.MultiheadAttention: True is ignored, (B · H, Tq, Tk)
    expected, expected_weights = theirs(queries, keys, values, attn_mask=ignored, average_attn_weights=False)

    assert_same(output, expected)
    if need_weights:
        assert_same(weights, expected_weights)
    else:
        assert weights is None
    upstream = torch.randn_like(output)
    names = [p for pairs in weight_pairs(ours, theirs) for p in pairs]
    ours_gradients = torch.autograd.grad(output, leaves + names[0::2], upstream)
    their_gradients = torch.autograd.grad(expected, leaves + names[1::2], upstream)
    for mine, its in zip(ours_gradients, their_gradients, strict=True):
        assert_same(mine, its)


@pytest.mark.parametrize("path", ["fused", "written out"])
@pytest.mark.parametrize("mask", ["none", "padding", "arbitrary", "blind rows"])
def test_gradcheck(path: str, mask: str) -> None:
    q, k, v = random(B, H, 3, 2), random(B, H, 4, 2), random(B, H, 4, 2)
    allowed = {**masks(3, 4), "blind rows": causal_mask(3, 4) & (torch.arange(3) != 1)[:, None]}[mask]
    attend = fused_attention if path == "fused" else lambda *x: scaled_dot_product_attention(*x)[0]
    assert torch.autograd.gradcheck(lambda *x: attend(*x, allowed), (q, k, v))


@pytest.mark.parametrize("fused", [True, False])
def test_a_query_that_sees_nothing_gets_zeros_and_finite_gradients(fused: bool) -> None:
    attention = MultiHeadAttention(C, H, fused=fused)
    nn.init.ones_(attention.out_proj.bias)
    x = torch.randn(2, 4, C, requires_grad=True)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    mask[0, :, 2] = False
    mask[1] = False
    output, _ = attention(x, mask=mask)
    ones = torch.ones(C)  # what the output projection makes of zeros is its bias
    torch.testing.assert_close(output[0, 2], ones)
    torch.testing.assert_close(output[1], ones.expand(4, C))
    assert not output[0, 0].allclose(ones)
    output.square().sum().backward()
    for gradient in (x.grad, *(p.grad for p in attention.parameters())):
        assert gradient.isfinite().all()


def test_weights_sum_to_one_or_to_zero_where_nothing_is_seen() -> None:
    mask = per_head_mask(TQ, TK)
    mask[0, 1, 2] = False
    q, k, v = torch.randn(B, H, TQ, 4), torch.randn(B, H, TK, 4), torch.randn(B, H, TK, 4)
    _, weights = scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(weights.sum(-1), mask.any(-1).float())
    assert not weights[~mask].any()


@pytest.mark.parametrize("shape", [(B, H, TQ, TK), (B, 1, 1, TK), (1, H, TQ, TK), (TQ, TK), (TK,), (B, 1, TQ, 1)])
def test_both_paths_take_any_mask_that_broadcasts(shape: tuple[int, ...]) -> None:
    q, k, v = random(B, H, TQ, 4), random(B, H, TK, 4), random(B, H, TK, 4)
    mask = torch.rand(shape) < 0.5
    assert_same(fused_attention(q, k, v, mask), scaled_dot_product_attention(q, k, v, mask)[0])


@pytest.mark.parametrize(
    ("num_queries", "num_keys", "expected"),
    [
        (3, 3, ["100", "110", "111"]),
        (2, 4, ["1110", "1111"]),
        (1, 3, ["111"]),
        (3, 2, ["00", "10", "11"]),
    ],
)
def test_the_last_query_of_a_causal_mask_stands_at_the_last_key(
    num_queries: int, num_keys: int, expected: list[str]
) -> None:
    rows = ["".join(str(int(cell)) for cell in row) for row in causal_mask(num_queries, num_keys)]
    assert rows == expected


def test_a_padding_mask_shows_real_tokens() -> None:
    assert padding_mask(torch.tensor([0, 2, 3]), 3).int().tolist() == [[[[0, 0, 0]]], [[[1, 1, 0]]], [[[1, 1, 1]]]]


@pytest.mark.parametrize("fused", [True, False])
def test_padding_changes_nothing(fused: bool) -> None:
    attention = MultiHeadAttention(C, H, fused=fused).double()
    x = random(1, 4, C)
    padded = torch.cat([x, 100 * random(1, 3, C)], dim=1)
    output, _ = attention(padded, mask=padding_mask(torch.tensor([4]), 7))
    assert_same(output[:, :4], attention(x)[0])


@pytest.mark.parametrize("fused", [True, False])
def test_without_positions_permuting_tokens_permutes_the_output(fused: bool) -> None:
    attention = MultiHeadAttention(C, H, fused=fused, qk_norm=True).double()
    x, order = random(B, TQ, C), torch.randperm(TQ)
    assert_same(attention(x[:, order])[0], attention(x)[0][:, order])


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("fused", [True, False])
@given(place=st.integers(0, 5), seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_later_tokens_never_change_earlier_outputs(fused: bool, rotary: bool, place: int, seed: int) -> None:
    torch.manual_seed(seed)
    attention = MultiHeadAttention(8, 2, rotary=RotaryEmbedding(4, 6) if rotary else None, fused=fused).double()
    x = random(2, 6, 8).detach()
    changed = torch.cat([x[:, :place], torch.randn(2, 6 - place, 8, dtype=x.dtype)], dim=1)
    before, after = attention(x, causal=True)[0], attention(changed, causal=True)[0]
    assert_same(before[:, :place], after[:, :place])
    assert not before[:, place].allclose(after[:, place])


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("fused", [True, False])
@given(chunks=st.lists(st.integers(1, 4), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_cache_gives_what_the_whole_text_gives(fused: bool, rotary: bool, chunks: list[int]) -> None:
    length = sum(chunks)
    attention = MultiHeadAttention(
        C, H, qk_norm=True, rotary=RotaryEmbedding(C // H, length) if rotary else None, fused=fused
    ).double()
    x, cache = random(2, length, C), KeyValueCache()
    outputs = [attention(part, causal=True, cache=cache)[0] for part in x.split(chunks, dim=1)]
    assert_same(torch.cat(outputs, dim=1), attention(x, causal=True)[0])
    assert cache.length == length


def test_a_cache_is_for_self_attention_only() -> None:
    x = torch.randn(1, 2, C)
    for others in ({"keys": x}, {"values": x}):
        with pytest.raises(ValueError, match="self-attention only"):
            MultiHeadAttention(C, H)(x, **others, cache=KeyValueCache())


@pytest.mark.parametrize("fused", [True, False])
def test_each_key_needs_a_value(fused: bool) -> None:
    with pytest.raises(ValueError, match="Got 4 keys and 5 values"):
        MultiHeadAttention(C, H, fused=fused)(torch.randn(1, 3, C), torch.randn(1, 4, C), torch.randn(1, 5, C))


@pytest.mark.parametrize("path", ["fused", "written out"])
def test_dropout_drops_its_share_and_keeps_the_mean(path: str) -> None:
    keys = 200
    q, k = torch.zeros(1, 1, 1000, 4), torch.zeros(1, 1, keys, 4)  # every weight is 1 / keys
    v = torch.ones(1, 1, keys, 4)
    attend = fused_attention if path == "fused" else lambda *x, **y: scaled_dot_product_attention(*x, **y)[0]
    mixed = attend(q, k, v, dropout=0.25)[..., 0]
    kept = mixed * keys * 0.75  # number of weights that were kept
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-2)
    assert mixed.mean().item() == pytest.approx(1, abs=5 * math.sqrt(0.25 / 0.75 / keys / 1000))
    assert mixed.std().item() == pytest.approx(math.sqrt(0.25 / 0.75 / keys), rel=0.15)


@pytest.mark.parametrize("fused", [True, False])
def test_dropout_is_for_training_only(fused: bool) -> None:
    attention = MultiHeadAttention(C, H, dropout=0.5, fused=fused)
    x = torch.randn(B, TQ, C)
    assert not attention(x)[0].allclose(attention(x)[0])
    attention.eval()
    assert attention(x)[0].equal(attention(x)[0])


@pytest.mark.parametrize("fused", [True, False])
def test_qk_norm_makes_scores_independent_of_the_size_of_the_input(fused: bool) -> None:
    attention = MultiHeadAttention(C, H, qk_norm=True, bias=False, fused=fused).double()
    x, values = random(B, TQ, C), random(B, TQ, C)
    # RMS norm adds 1e-16 or so inside the root, so the factor cancels but for rounding.
    torch.testing.assert_close(attention(1000 * x, 1000 * x, values)[0], attention(x, x, values)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("d_model", "num_heads", "dropout"), [(10, 3, 0), (0, 1, 0), (8, 0, 0), (8, -2, 0), (8, 2, 1.0), (8, 2, -0.1)]
)
def test_impossible_sizes_are_refused(d_model: int, num_heads: int, dropout: float) -> None:
    with pytest.raises(ValueError, match="num_heads must be|dropout must be"):
        MultiHeadAttention(d_model, num_heads, dropout=dropout)
