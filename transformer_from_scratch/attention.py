"""Scaled dot-product and multi-head attention (Vaswani et al., 2017, arXiv:1706.03762), written out.

    Attention(Q, K, V) = softmax(Q Kᵀ / √D) V

Shapes everywhere: B batch, Tq queries, Tk keys, C model width, H heads, D = C / H head width.
Masks everywhere: boolean, **True may be attended to**, False is hidden; broadcast to (B, H, Tq, Tk).
A query that may attend to nothing gets zeros.

    >>> attention = MultiHeadAttention(d_model=8, num_heads=2)
    >>> attention(torch.randn(1, 5, 8), causal=True)[0].shape
    torch.Size([1, 5, 8])
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_from_scratch.positional_encoding import RotaryEmbedding


def causal_mask(num_queries: int, num_keys: int, device: torch.device | None = None) -> Tensor:
    """Let every query see the keys up to its own place.

    The last query stands at the last key, so with fewer queries than keys (new tokens behind a cache) the first
    query already sees ``num_keys - num_queries + 1`` keys. PyTorch's ``is_causal=True`` aligns at the top left instead.

    Returns:
        (Tq, Tk), True at and below the diagonal that ends in the lower right corner.
    """
    offset = num_keys - num_queries
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(offset)


def padding_mask(lengths: Tensor, num_keys: int) -> Tensor:
    """Hide what stands behind the end of each sequence.

    Args:
        lengths: (B,) number of real tokens of each sequence.
        num_keys: Tk, the padded length.

    Returns:
        (B, 1, 1, Tk), True at real tokens.
    """
    return (torch.arange(num_keys, device=lengths.device) < lengths[:, None])[:, None, None, :]


def scaled_dot_product_attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, *, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mix values by the similarity of queries and keys.

    The products of D terms of unit variance have variance D; dividing by √D keeps the softmax out of the flat ends
    where its gradients vanish.

    Args:
        queries: (B, H, Tq, D).
        keys: (B, H, Tk, D).
        values: (B, H, Tk, D).
        mask: Broadcasts to (B, H, Tq, Tk); True may be attended to. None hides nothing.
        dropout: Probability of zeroing a weight; the others grow by 1 / (1 - dropout).

    Returns:
        The mixed values (B, H, Tq, D), and the attention weights (B, H, Tq, Tk) before dropout: rows sum to 1, or to 0
        where the mask hides every key.
    """
    scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])  # (B, H, Tq, Tk)
    if mask is None:
        weights = scores.softmax(dim=-1)
    else:
        # The lowest finite number instead of -inf: a row of -inf alone would be 0/0 = NaN, and so would its gradients.
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
        weights = weights.masked_fill(~mask, 0.0)
    return F.dropout(weights, dropout) @ values, weights


def fused_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Compute the same with PyTorch's fused kernel, which never holds the (Tq, Tk) weights in memory.

    Args:
        queries: (B, H, Tq, D).
        keys: (B, H, Tk, D).
        values: (B, H, Tk, D).
        mask: As in :func:`scaled_dot_product_attention`.
        causal: Use the kernel's own causal mask; only with Tq = Tk and no ``mask``.
        dropout: As in :func:`scaled_dot_product_attention`.

    Returns:
        (B, H, Tq, D).
    """
    if mask is None:
        return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=causal)
    mask = torch.atleast_2d(mask)  # what the kernel asks for at least
    # The kernel makes NaN of a row that sees nothing: let it see everything, then put zeros there.
    sees_something = mask.any(dim=-1, keepdim=True)
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask | ~sees_something, dropout_p=dropout)
    return mixed.masked_fill(~sees_something, 0.0)


class KeyValueCache:
    """The keys and values of the tokens that one attention layer has seen, so that none is computed twice."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of tokens held."""
        return 0 if self.keys is None else self.keys.shape[-2]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add new tokens (B, H, Tnew, D) and return all keys and values so far (B, H, Tk, D)."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], dim=-2)
            values = torch.cat([self.values, values], dim=-2)
        self.keys, self.values = keys, values
        return keys, values


class MultiHeadAttention(nn.Module):
    """Attention in H subspaces of width D at once: MultiHead(Q, K, V) = Concat(head₁ … head_H) Wᴼ.

    The weights are laid out as in ``nn.MultiheadAttention``: ``in_proj`` stacks those of queries, keys and values.

    Args:
        d_model: C, width of inputs and outputs.
        num_heads: H; must divide ``d_model``.
        dropout: Probability of dropping an attention weight in training, in [0, 1).
        bias: Add learned biases to the four projections.
        qk_norm: Scale each query and key to root mean square 1, so that scores stay bounded by √D whatever the
            weights grow to (Henry et al., 2020, arXiv:2010.04245).
        rotary: Turn queries and keys by their positions.
        fused: Use PyTorch's kernel; False takes the written-out path. Both give the same.

    Raises:
        ValueError: The heads don't divide the width.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        qk_norm: bool = False,
        rotary: RotaryEmbedding | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if d_model < 1 or num_heads < 1 or d_model % num_heads:
            raise ValueError(f"num_heads must be a positive divisor of d_model={d_model}. Got {num_heads}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1). Got {dropout}.")
        self.num_heads = num_heads
        self.dropout = dropout
        self.qk_norm = qk_norm
        self.rotary = rotary
        self.fused = fused
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)
        nn.init.xavier_uniform_(self.in_proj.weight)
        if bias:
            nn.init.zeros_(self.in_proj.bias)
            nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        queries: Tensor,
        keys: Tensor | None = None,
        values: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Let each query gather from the values whose keys it matches.

        Args:
            queries: (B, Tq, C).
            keys: (B, Tk, C) for cross-attention; the queries themselves by default (self-attention).
            values: (B, Tk, C); the keys by default.
            mask: Broadcasts to (B, H, Tq, Tk), True may be attended to; see :func:`padding_mask`.
            causal: Hide keys behind each query, on top of ``mask``.
            cache: Keys and values of earlier tokens, to attend to and to extend (self-attention only). Keys are then
                all tokens so far.
            need_weights: Return the attention weights too, which takes the written-out path.

        Returns:
            Output (B, Tq, C), and the weights (B, H, Tq, Tk) or None.

        Raises:
            ValueError: A cache is given with cross-attention, or there are more or fewer values than keys.
        """
        if cache is not None and (keys is not None or values is not None):
            raise ValueError("cache works with self-attention only: leave keys and values out.")
        q, k, v = (self._split_heads(x) for x in self._project(queries, keys, values))  # (B, H, T, D)
        if k.shape[-2] != v.shape[-2]:  # the fused kernel would read beyond the shorter one
            raise ValueError(f"Each key needs one value. Got {k.shape[-2]} keys and {v.shape[-2]} values.")
        if self.qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        if self.rotary is not None:
            offset = cache.length if cache is not None else 0
            q, k = self.rotary(q, offset), self.rotary(k, offset)
        if cache is not None:
            k, v = cache.append(k, v)

        num_queries, num_keys = q.shape[-2], k.shape[-2]
        fused = self.fused and not need_weights
        kernel_causal = fused and causal and mask is None and num_queries == num_keys
        # A single new token behind a cache sees everything: no mask needed.
        if causal and not kernel_causal and num_queries > 1:
            future = causal_mask(num_queries, num_keys, q.device)
            mask = future if mask is None else mask & future

        dropout = self.dropout if self.training else 0.0
        weights = None
        if fused:
            heads = fused_attention(q, k, v, mask, causal=kernel_causal, dropout=dropout)
        else:
            heads, weights = scaled_dot_product_attention(q, k, v, mask, dropout=dropout)
        merged = heads.transpose(1, 2).flatten(2)  # (B, H, Tq, D) → (B, Tq, H, D) → (B, Tq, C)
        return self.out_proj(merged), weights if need_weights else None

    def _project(self, queries: Tensor, keys: Tensor | None, values: Tensor | None) -> tuple[Tensor, ...]:
        if keys is None and values is None:
            return self.in_proj(queries).chunk(3, dim=-1)  # one product instead of three
        keys = queries if keys is None else keys
        values = keys if values is None else values
        weights = self.in_proj.weight.chunk(3)
        biases = self.in_proj.bias.chunk(3) if self.in_proj.bias is not None else (None, None, None)
        return tuple(F.linear(x, w, b) for x, w, b in zip((queries, keys, values), weights, biases, strict=True))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, T, C) → (B, T, H, D) → (B, H, T, D)
