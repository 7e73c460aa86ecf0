"""Three ways to tell a Transformer where a token stands: sinusoidal, learned, rotary.

Attention alone is blind to order: permuting the tokens permutes its output. The first two add a vector to each token's
embedding once, at the input; rotary turns queries and keys inside every attention layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SinusoidalEncoding(nn.Module):
    """Fixed sines and cosines of geometrically growing wavelengths (Vaswani et al., 2017, arXiv:1706.03762).

        PE(t, 2i) = sin(t / 10000^(2i / C)),   PE(t, 2i + 1) = cos(t / 10000^(2i / C))

    Args:
        d_model: C, any width from 1; an odd one ends with a sine that has no cosine.
        max_length: Number of positions.
    """

    table: Tensor

    def __init__(self, d_model: int, max_length: int) -> None:
        super().__init__()
        _check_sizes(d_model, max_length)
        positions = torch.arange(max_length, dtype=torch.float64)[:, None]  # (T, 1)
        even = torch.arange(0, d_model, 2, dtype=torch.float64)
        angles = positions / 10000 ** (even / d_model)  # (T, ⌈C/2⌉)
        table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :d_model]
        self.register_buffer("table", table.float(), persistent=False)  # computed, so not worth a place in checkpoints

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """Add the encodings of positions ``offset`` … to ``x`` (B, T, C)."""
        return x + _rows(self.table, offset, x.shape[-2]).to(x.dtype)


class LearnedEncoding(nn.Module):
    """One trained vector a position, as in BERT and GPT-2; it can't go beyond the positions it was trained on.

    Args:
        d_model: C.
        max_length: Number of positions.
    """

    def __init__(self, d_model: int, max_length: int) -> None:
        super().__init__()
        _check_sizes(d_model, max_length)
        self.table = nn.Parameter(torch.empty(max_length, d_model).normal_(std=0.02))

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """Add the vectors of positions ``offset`` … to ``x`` (B, T, C)."""
        return x + _rows(self.table, offset, x.shape[-2])


class RotaryEmbedding(nn.Module):
    """Turn pairs of features by an angle that grows with the position (RoFormer, Su et al., 2021, arXiv:2104.09864).

    Feature i of the first half and feature i of the second form a point in the plane, turned by t · base^(-2i / D).
    The product of a query at position m and a key at position n then depends on m - n alone.

    Args:
        head_dim: D, the width of one head; even.
        max_length: Number of positions.
        base: Sets the longest wavelength, 2π · base.

    Raises:
        ValueError: The width is odd.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, max_length: int, base: float = 10000.0) -> None:
        super().__init__()
        _check_sizes(head_dim, max_length)
        if head_dim % 2:
            raise ValueError(f"Rotary positions turn pairs of features, so head_dim must be even. Got {head_dim}.")
        frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)  # (D/2,)
        angles = torch.outer(torch.arange(max_length, dtype=torch.float64), frequencies)  # (T, D/2)
        cos, sin = angles.cos(), angles.sin()
        # Both halves of the features share the angles; the sign of the sine is what differs in a rotation matrix.
        self.register_buffer("cos", torch.cat([cos, cos], dim=-1).float(), persistent=False)
        self.register_buffer("sin", torch.cat([-sin, sin], dim=-1).float(), persistent=False)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """Turn queries or keys ``x`` (B, H, T, D) that stand at positions ``offset`` … ``offset + T - 1``."""
        cos = _rows(self.cos, offset, x.shape[-2]).to(x.dtype)
        sin = _rows(self.sin, offset, x.shape[-2]).to(x.dtype)
        return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def _check_sizes(width: int, max_length: int) -> None:
    if width < 1 or max_length < 1:
        raise ValueError(f"Width and max_length must be at least 1. Got {width} and {max_length}.")


def _rows(table: Tensor, offset: int, length: int) -> Tensor:
    if offset < 0 or offset + length > len(table):
        position = offset if offset < 0 else offset + length - 1
        raise ValueError(f"There are {len(table)} positions, but position {position} was asked for.")
    return table[offset : offset + length]
