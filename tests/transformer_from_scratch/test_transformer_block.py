"""Layers and encoder equal PyTorch's own, and caching, masking and padding change nothing they should not."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from transformer_from_scratch.attention import padding_mask
from transformer_from_scratch.transformer_block import (
    EncoderCache,
    EncoderConfig,
    FeedForward,
    RMSNorm,
    TransformerEncoder,
    TransformerEncoderLayer,
)

B, T, C, V = 3, 6, 8, 11
EXACT = 1e-10


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tensors this small only wait for each other on more


def small(**changes: object) -> EncoderConfig:
    sizes = {"d_model": C, "num_heads": 2, "num_layers": 2, "d_ff": 16, "context_length": 24}
    return EncoderConfig(**{**sizes, **changes})


def classic(**changes: object) -> EncoderConfig:
    """The Transformer of 2017, which PyTorch's layers are."""
    return small(norm="layer", bias=True, qk_norm=False, previous_tokens=0, position="sinusoidal", **changes)


def weight_pairs(ours: TransformerEncoderLayer, theirs: nn.TransformerEncoderLayer) -> list[tuple[Tensor, Tensor]]:
    mine = [ours.attention.in_proj, ours.attention.out_proj, ours.feed_forward.linear1, ours.feed_forward.linear2]
    mine += [ours.norm1, ours.norm2]
    its = [theirs.self_attn.out_proj, theirs.linear1, theirs.linear2, theirs.norm1, theirs.norm2]
    return list(
        zip(
            [p for module in mine for p in (module.weight, module.bias)],
            [theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias]
            + [p for module in its for p in (module.weight, module.bias)],
            strict=True,
        )
    )


def share_weights(pairs: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for mine, its in pairs:
            mine.normal_(std=0.5)
            its.copy_(mine)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=EXACT)


def assert_same_with_gradients(
    ours: Tensor, theirs: Tensor, x: Tensor, pairs: list[tuple[Tensor, Tensor]], valid: Tensor
) -> None:
    upstream = torch.randn_like(ours) * valid[..., None]
    assert_same(ours[valid], theirs[valid])
    my_gradients = torch.autograd.grad(ours, [x, *(mine for mine, _ in pairs)], upstream)
    its_gradients = torch.autograd.grad(theirs, [x, *(its for _, its in pairs)], upstream)
    for mine, its in zip(my_gradients, its_gradients, strict=True):
        assert_same(mine, its)


MASKS = pytest.mark.parametrize(("padded", "causal"), [(False, False), (True, False), (False, True), (True, True)])
LENGTHS = torch.tensor([T, 2, 4])


def both_masks(padded: bool, causal: bool) -> tuple[dict[str, object], dict[str, object], Tensor]:
    """Return our arguments, PyTorch's (True is ignored there), and which positions are real, (B, T)."""
    valid = torch.arange(T) < LENGTHS[:, None] if padded else torch.ones(B, T, dtype=torch.bool)
    ours = {"mask": padding_mask(LENGTHS, T) if padded else None, "causal": causal}
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    return ours, {"mask": future if causal else None, "src_key_padding_mask": ~valid if padded else None}, valid


@MASKS
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_layer_equals_pytorch(norm_first: bool, activation: str, fused: bool, padded: bool, causal: bool) -> None:
    ours = TransformerEncoderLayer(classic(norm_first=norm_first, activation=activation, fused=fused)).double()
    theirs = nn.TransformerEncoderLayer(
        C, 2, 16, 0.0, activation, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    pairs = weight_pairs(ours, theirs)
    share_weights(pairs)
    x = torch.randn(B, T, C, dtype=torch.float64, requires_grad=True)
    our_masks, their_masks, valid = both_masks(padded, causal)
    their_masks["src_mask"] = their_masks.pop("mask")
    assert_same_with_gradients(ours(x, **our_masks)[0], theirs(x, **their_masks), x, pairs, valid)


@MASKS
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_equals_pytorch(norm_first: bool, training: bool, padded: bool, causal: bool) -> None:
    ours = TransformerEncoder(V, classic(norm_first=norm_first, activation="gelu")).double().train(training)
    layer = nn.TransformerEncoderLayer(C, 2, 16, 0.0, "gelu", batch_first=True, norm_first=norm_first)
    final = nn.LayerNorm(C) if norm_first else None
    theirs = nn.TransformerEncoder(layer, 2, final, enable_nested_tensor=False).double().train(training)
    pairs = [pair for mine, its in zip(ours.layers, theirs.layers, strict=True) for pair in weight_pairs(mine, its)]
    if norm_first:
        pairs += [(ours.final_norm.weight, theirs.norm.weight), (ours.final_norm.bias, theirs.norm.bias)]
    share_weights(pairs)
    x = torch.randn(B, T, C, dtype=torch.float64, requires_grad=True)
    our_masks, their_masks, valid = both_masks(padded, causal)
    assert_same_with_gradients(ours.encode(x, **our_masks), theirs(x, **their_masks), x, pairs, valid)


def test_feed_forward_is_its_formula() -> None:
    layer = FeedForward(C, 16, activation="relu2")
    x = torch.randn(2, 3, C)
    inner = (x @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0) ** 2
    torch.testing.assert_close(layer(x), inner @ layer.linear2.weight.T + layer.linear2.bias)


def test_rms_norm_makes_the_root_mean_square_one() -> None:
    normalized = RMSNorm()(7 * torch.randn(2, 3, C) + 5)
    torch.testing.assert_close(normalized.square().mean(-1), torch.ones(2, 3))


@pytest.mark.parametrize("position", ["sinusoidal", "learned", "rotary"])
@pytest.mark.parametrize("previous_tokens", [0, 1, 2, 3])
@given(chunks=st.lists(st.integers(1, 5), min_size=1, max_size=5))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_a_cache_gives_what_the_whole_text_gives(position: str, previous_tokens: int, chunks: list[int]) -> None:
    encoder = TransformerEncoder(V, small(position=position, previous_tokens=previous_tokens, context_length=25))
    encoder.double()
    tokens, cache = torch.randint(V, (2, sum(chunks))), EncoderCache(2)
    outputs = [encoder(part, causal=True, cache=cache) for part in tokens.split(chunks, dim=1)]
    assert_same(torch.cat(outputs, dim=1), encoder(tokens, causal=True))


@pytest.mark.parametrize("previous_tokens", [0, 3])
@pytest.mark.parametrize("position", ["sinusoidal", "learned", "rotary"])
@pytest.mark.parametrize("place", [0, 1, 4, T - 1])
def test_later_tokens_never_change_earlier_outputs(place: int, position: str, previous_tokens: int) -> None:
    encoder = TransformerEncoder(V, small(position=position, previous_tokens=previous_tokens)).double()
    tokens = torch.randint(V, (B, T))
    changed = tokens.clone()
    changed[:, place:] = (tokens[:, place:] + 1) % V
    before, after = encoder(tokens, causal=True), encoder(changed, causal=True)
    assert_same(before[:, :place], after[:, :place])
    assert not before[:, place].isclose(after[:, place]).all(-1).any()


@pytest.mark.parametrize("position", ["rotary", "learned", "sinusoidal"])
def test_too_many_tokens_are_refused_and_leave_the_cache_as_it_was(position: str) -> None:
    encoder = TransformerEncoder(V, small(position=position, context_length=8)).eval()
    tokens = torch.randint(V, (1, 8))
    cache = EncoderCache(encoder.config.num_layers)
    encoder(tokens[:, :5], causal=True, cache=cache)
    with pytest.raises(ValueError, match="There are 8 positions, but 11 tokens"):
        encoder(torch.randint(V, (1, 6)), causal=True, cache=cache)
    rest = encoder(tokens[:, 5:], causal=True, cache=cache)
    torch.testing.assert_close(rest, encoder(tokens, causal=True)[:, 5:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_padding_changes_nothing(fused: bool) -> None:
    encoder = TransformerEncoder(V, small(fused=fused)).double()
    short = torch.randint(V, (1, 4))
    padded = torch.cat([short, torch.randint(V, (1, 3))], dim=1)
    output = encoder(padded, mask=padding_mask(torch.tensor([4]), 7))
    assert_same(output[:, :4], encoder(short))


def test_each_previous_token_is_added_through_a_table_of_its_own() -> None:
    encoder = TransformerEncoder(V, small(previous_tokens=2))
    tokens = torch.tensor([[4, 7, 1]])
    here, one, two = encoder.embedding.weight, *(table.weight for table in encoder.previous)
    expected = torch.stack([here[4], here[7] + one[4], here[1] + one[7] + two[4]])[None]
    torch.testing.assert_close(encoder.embed(tokens), expected)


def test_both_attention_paths_agree_through_the_whole_encoder() -> None:
    fused, written = (TransformerEncoder(V, small(fused=fused)).double() for fused in (True, False))
    written.load_state_dict(fused.state_dict())
    tokens = torch.randint(V, (B, T))
    assert_same(fused(tokens, causal=True), written(tokens, causal=True))


def test_weights_of_every_layer_are_handed_out_without_changing_the_output() -> None:
    encoder = TransformerEncoder(V, small()).double()
    tokens, weights = torch.randint(V, (B, T)), []
    assert_same(encoder(tokens, causal=True, weights=weights), encoder(tokens, causal=True))
    assert [tuple(w.shape) for w in weights] == [(B, 2, T, T)] * 2
    for layer in weights:
        assert_same(layer.sum(-1), torch.ones(B, 2, T, dtype=torch.float64))
        assert not layer.triu(1).any()


def test_dropout_is_for_training_only() -> None:
    encoder = TransformerEncoder(V, small(dropout=0.5))
    tokens = torch.randint(V, (B, T))
    assert not encoder(tokens).allclose(encoder(tokens))
    encoder.eval()
    assert encoder(tokens).equal(encoder(tokens))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 0}, "d_model must be in [1, 1000000]. Got 0."),
        ({"num_layers": -1}, "num_layers must be in [1, 1000000]. Got -1."),
        ({"d_ff": 0}, "d_ff must be"),
        ({"context_length": -5}, "context_length must be"),
        ({"previous_tokens": -1}, "previous_tokens must be in [0, context_length=24]. Got -1."),
        ({"position": "rotery"}, "position must be one of sinusoidal, learned, rotary. Got 'rotery'."),
        ({"norm": "layernorm"}, "norm must be one of layer, rms."),
        ({"activation": "silu"}, "activation must be one of relu, gelu, relu2."),
        ({"num_heads": 3}, "num_heads must divide d_model=8. Got 3."),
        ({"num_heads": 8}, "d_model / num_heads must be even. Got 8 / 8."),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"dropout": float("nan")}, "dropout must be in"),
    ],
)
def test_impossible_shapes_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        small(**changes)
