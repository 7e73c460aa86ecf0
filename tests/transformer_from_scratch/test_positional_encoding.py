"""Sinusoidal, learned and rotary positions against their formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_from_scratch.positional_encoding import LearnedEncoding, RotaryEmbedding, SinusoidalEncoding


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tensors this small only wait for each other on more


@pytest.mark.parametrize("width", [1, 2, 3, 7, 16, 33])
def test_sinusoidal_equals_its_formula_at_every_width(width: int) -> None:
    length = 50
    expected = torch.tensor(
        [
            [(math.cos if i % 2 else math.sin)(t / 10000 ** ((i - i % 2) / width)) for i in range(width)]
            for t in range(length)
        ]
    )
    encoded = SinusoidalEncoding(width, length)(torch.zeros(2, length, width))
    torch.testing.assert_close(encoded, expected.expand(2, -1, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("encoding", [SinusoidalEncoding, LearnedEncoding])
def test_encodings_are_added_from_the_offset_on(encoding: type) -> None:
    module = encoding(6, 10)
    x = torch.randn(2, 4, 6)
    torch.testing.assert_close(module(x, offset=3), x + module(torch.zeros(1, 10, 6))[:, 3:7])


def test_only_learned_positions_are_saved() -> None:
    assert not SinusoidalEncoding(4, 8).state_dict()
    assert not RotaryEmbedding(4, 8).state_dict()
    assert LearnedEncoding(4, 8).state_dict()["table"].shape == (8, 4)


def test_learned_positions_get_gradients_where_they_were_used() -> None:
    module = LearnedEncoding(4, 8)
    module(torch.zeros(3, 2, 4), offset=5).sum().backward()
    assert module.table.grad.nonzero()[:, 0].unique().tolist() == [5, 6]


@pytest.mark.parametrize("module", [SinusoidalEncoding(4, 8), LearnedEncoding(4, 8), RotaryEmbedding(4, 8)])
def test_positions_beyond_the_table_are_refused(module: torch.nn.Module) -> None:
    module(torch.zeros(1, 1, 3, 4), offset=5)
    with pytest.raises(ValueError, match="There are 8 positions, but position 8 was asked for"):
        module(torch.zeros(1, 1, 3, 4), offset=6)


@pytest.mark.parametrize("encoding", [SinusoidalEncoding, LearnedEncoding, RotaryEmbedding])
@pytest.mark.parametrize(("width", "length"), [(0, 4), (4, 0), (-2, 4)])
def test_sizes_below_one_are_refused(encoding: type, width: int, length: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        encoding(width, length)


def test_rotary_needs_an_even_head_width() -> None:
    with pytest.raises(ValueError, match="even. Got 5"):
        RotaryEmbedding(5, 8)


@pytest.mark.parametrize("width", [2, 6, 16])
def test_rotary_is_a_product_of_complex_numbers(width: int) -> None:
    length, offset = 9, 4
    x = torch.randn(2, 3, length, width)
    turned = RotaryEmbedding(width, 20)(x, offset)
    points = torch.complex(*x.double().chunk(2, dim=-1))
    angles = torch.arange(offset, offset + length)[:, None] * 10000.0 ** (-2 * torch.arange(width // 2) / width)
    expected = points * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], -1).float(), rtol=0, atol=1e-5)


@given(m=st.integers(0, 40), n=st.integers(0, 40), shift=st.integers(0, 59))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_rotary_scores_depend_on_the_distance_alone(m: int, n: int, shift: int) -> None:
    rotary = RotaryEmbedding(8, 100)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    score = (rotary(q, m) * rotary(k, n)).sum()
    shifted = (rotary(q, m + shift) * rotary(k, n + shift)).sum()
    torch.testing.assert_close(score, shifted, rtol=0, atol=1e-5)


def test_rotary_keeps_lengths_and_turns_everything_but_the_first_position() -> None:
    x = torch.randn(2, 2, 10, 8)
    turned = RotaryEmbedding(8, 10)(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert turned[:, :, 0].equal(x[:, :, 0])
    assert not turned[:, :, 1:].isclose(x[:, :, 1:], atol=1e-9).all(-1).any()


@pytest.mark.parametrize("offset", [-1, -6, 3])
def test_positions_outside_the_table_are_refused(offset: int) -> None:
    for encoding in (RotaryEmbedding(8, 10), SinusoidalEncoding(8, 10), LearnedEncoding(8, 10)):
        with pytest.raises(ValueError, match="There are 10 positions, but position"):
            encoding(torch.randn(1, 8, 8), offset)
