"""Feed-forward layer, encoder layer and the whole Transformer encoder, from token ids to the last normalization.

The stack follows Vaswani et al. (2017, arXiv:1706.03762); with ``norm_first`` it is the pre-norm form that trains
without a long warm-up (Xiong et al., 2020, arXiv:2002.04745):

    post-norm:  x ← norm(x + sublayer(x))          pre-norm:  x ← x + sublayer(norm(x))

    >>> encoder = TransformerEncoder(vocab_size=65, config=EncoderConfig())
    >>> encoder(torch.randint(65, (2, 100)), causal=True).shape
    torch.Size([2, 100, 128])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_from_scratch.attention import KeyValueCache, MultiHeadAttention
from transformer_from_scratch.positional_encoding import LearnedEncoding, RotaryEmbedding, SinusoidalEncoding


def squared_relu(x: Tensor) -> Tensor:
    """max(0, x)², from Primer (So et al., 2021, arXiv:2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "relu2": squared_relu}


LARGEST = 10**6  # of every size; more is a slip of the finger


@dataclass
class EncoderConfig:
    """Shape of a Transformer encoder."""

    d_model: int = 128
    """C: width of every token's vector between the layers."""
    num_heads: int = 4
    """H: attention heads; must divide d_model."""
    num_layers: int = 4
    """Encoder layers."""
    d_ff: int = 512
    """Width inside the feed-forward layers."""
    context_length: int = 128
    """T: most tokens that attention looks at."""
    dropout: float = 0.0
    """Probability of dropping a value of the embeddings and of each sublayer's output in training, in [0, 1)."""
    inner_dropout: float = 0.0
    """The same for attention weights and inside the feed-forward layers; slow on a CPU, whose fused kernel has none."""
    activation: Literal["relu", "gelu", "relu2"] = "relu2"
    """Non-linearity of the feed-forward layers; relu2 is max(0, x)²."""
    norm: Literal["layer", "rms"] = "rms"
    """layer: LayerNorm with learned scale and shift; rms: root-mean-square norm without weights."""
    norm_first: bool = True
    """Pre-norm (true) or post-norm (false)."""
    position: Literal["sinusoidal", "learned", "rotary"] = "rotary"
    """How positions enter."""
    previous_tokens: int = 3
    """Add to each token's embedding one for each of so many tokens before it, so that the first layer already sees the
    n-gram a character stands in."""
    qk_norm: bool = True
    """Scale queries and keys to root mean square 1."""
    bias: bool = False
    """Biases in projections and feed-forward layers."""
    fused: bool = True
    """PyTorch's fused attention kernel (true) or the written-out path (false); same results."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: A value is out of its range; the message names it.
        """
        for name in ("d_model", "num_heads", "num_layers", "d_ff", "context_length"):
            if not 1 <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name} must be in [1, {LARGEST}]. Got {getattr(self, name)}.")
        if not 0 <= self.previous_tokens <= self.context_length:
            raise ValueError(
                f"previous_tokens must be in [0, context_length={self.context_length}]. Got {self.previous_tokens}."
            )
        for name, kind in get_type_hints(EncoderConfig).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}. Got {getattr(self, name)!r}.")
        if self.d_model % self.num_heads:
            raise ValueError(f"num_heads must divide d_model={self.d_model}. Got {self.num_heads}.")
        for name in ("dropout", "inner_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1). Got {getattr(self, name)}.")
        if self.position == "rotary" and self.d_model // self.num_heads % 2:
            raise ValueError(
                f"position=rotary turns pairs of features, so d_model / num_heads must be even. "
                f"Got {self.d_model} / {self.num_heads}."
            )


class FeedForward(nn.Module):
    """Two linear layers with a non-linearity between them, applied to every token by itself.

        FFN(x) = W₂ · activation(W₁ x + b₁) + b₂

    Args:
        d_model: C, width of input and output.
        d_ff: Width inside.
        dropout: Probability of dropping an inner activation.
        activation: ``relu``, ``gelu`` or ``relu2``.
        bias: Learned biases.
    """

    def __init__(
        self, d_model: int, d_ff: int, *, dropout: float = 0.0, activation: str = "relu", bias: bool = True
    ) -> None:
        super().__init__()
        self.linear1 = nn.Linear(d_model, d_ff, bias=bias)
        self.linear2 = nn.Linear(d_ff, d_model, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        hidden = F.dropout(self.activation(self.linear1(x)), self.dropout, self.training)  # (B, T, d_ff)
        return self.linear2(hidden)


class TransformerEncoderLayer(nn.Module):
    """Self-attention, then a feed-forward layer, each inside a residual connection with a normalization.

    The residual path carries x past both unchanged, so gradients reach the first layer as strong as the last.
    With ``norm="layer"`` this is ``nn.TransformerEncoderLayer``.

    Args:
        config: Widths, heads, kind and place of the normalization, and so on.
        rotary: Rotary positions, shared by all layers, if the encoder uses them.
    """

    def __init__(self, config: EncoderConfig, rotary: RotaryEmbedding | None = None) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(
            config.d_model,
            config.num_heads,
            dropout=config.inner_dropout,
            bias=config.bias,
            qk_norm=config.qk_norm,
            rotary=rotary,
            fused=config.fused,
        )
        self.feed_forward = FeedForward(
            config.d_model, config.d_ff, dropout=config.inner_dropout, activation=config.activation, bias=config.bias
        )
        self.norm1 = make_norm(config)
        self.norm2 = make_norm(config)
        self.norm_first = config.norm_first
        self.dropout = config.dropout

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Map (B, T, C) to (B, T, C) and, with ``need_weights``, the attention weights (B, H, T, Tk).

        The arguments are those of :class:`MultiHeadAttention`.
        """

        def attend(x: Tensor) -> tuple[Tensor, Tensor | None]:
            return self.attention(x, mask=mask, causal=causal, cache=cache, need_weights=need_weights)

        if self.norm_first:
            attended, weights = attend(self.norm1(x))
            x = x + self._drop(attended)
            x = x + self._drop(self.feed_forward(self.norm2(x)))
        else:
            attended, weights = attend(x)
            x = self.norm1(x + self._drop(attended))
            x = self.norm2(x + self._drop(self.feed_forward(x)))
        return x, weights

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class EncoderCache:
    """What an encoder remembers of the tokens it has seen: the tokens, and the keys and values of every layer.

    Args:
        num_layers: Layers of the encoder.
    """

    def __init__(self, num_layers: int) -> None:
        self.layers = [KeyValueCache() for _ in range(num_layers)]
        self.tokens: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of tokens held."""
        return 0 if self.tokens is None else self.tokens.shape[1]

    def append(self, tokens: Tensor) -> Tensor:
        """Add new tokens (B, Tnew) and return all so far (B, T)."""
        self.tokens = tokens if self.tokens is None else torch.cat([self.tokens, tokens], dim=1)
        return self.tokens


class TransformerEncoder(nn.Module):
    """Token embedding, positions, a stack of layers, and a last normalization where the layers are pre-norm.

    Args:
        vocab_size: V, number of different tokens.
        config: The shape.
    """

    def __init__(self, vocab_size: int, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.previous = nn.ModuleList(nn.Embedding(vocab_size, config.d_model) for _ in range(config.previous_tokens))
        self.position: nn.Module | None = None
        rotary = None
        if config.position == "rotary":
            rotary = RotaryEmbedding(config.d_model // config.num_heads, config.context_length)
        elif config.position == "learned":
            self.position = LearnedEncoding(config.d_model, config.context_length)
        else:
            self.position = SinusoidalEncoding(config.d_model, config.context_length)
        self.layers = nn.ModuleList(TransformerEncoderLayer(config, rotary) for _ in range(config.num_layers))
        self.final_norm = make_norm(config) if config.norm_first else nn.Identity()

    def forward(
        self,
        tokens: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: EncoderCache | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Encode token ids (B, T) as vectors (B, T, C).

        Args:
            tokens: (B, T) integers in [0, V).
            mask: Broadcasts to (B, H, T, Tk), True may be attended to.
            causal: Hide later tokens from earlier ones.
            cache: Earlier tokens to attend to and to extend; ``tokens`` are then the new ones behind them.
            weights: A list that receives every layer's attention weights (B, H, T, Tk).

        Returns:
            (B, T, C).
        """
        return self.encode(self.embed(tokens, cache), mask=mask, causal=causal, cache=cache, weights=weights)

    def embed(self, tokens: Tensor, cache: EncoderCache | None = None) -> Tensor:
        """Look the tokens' vectors up and add those of the tokens before, and positions: (B, T) → (B, T, C).

        Raises:
            ValueError: There are more tokens than ``context_length``; the cache stays as it was.
        """
        offset = cache.length if cache is not None else 0
        if offset + tokens.shape[1] > self.config.context_length:
            length = offset + tokens.shape[1]
            raise ValueError(f"There are {self.config.context_length} positions, but {length} tokens.")
        seen = cache.append(tokens) if cache is not None else tokens
        x = self.embedding(tokens)
        for distance, table in enumerate(self.previous, start=1):
            start, end = max(offset - distance, 0), max(seen.shape[1] - distance, 0)
            earlier = table(seen[:, start:end])  # shorter than x where the text has not begun yet
            x = x + F.pad(earlier, (0, 0, tokens.shape[1] - earlier.shape[1], 0))
        if self.position is not None:
            x = self.position(x, offset)
        return F.dropout(x, self.config.dropout, self.training)

    def encode(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: EncoderCache | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Run embedded tokens (B, T, C) through the layers; this part is ``nn.TransformerEncoder``."""
        for i, layer in enumerate(self.layers):
            layer_cache = cache.layers[i] if cache is not None else None
            x, layer_weights = layer(x, mask=mask, causal=causal, cache=layer_cache, need_weights=weights is not None)
            if weights is not None:
                weights.append(layer_weights)
        return self.final_norm(x)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε), without learned weights (Zhang and Sennrich, 2019, arXiv:1910.07467)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension of (…, C)."""
        return F.rms_norm(x, x.shape[-1:])


def make_norm(config: EncoderConfig) -> nn.Module:
    """Return the normalization that a configuration names."""
    return nn.LayerNorm(config.d_model) if config.norm == "layer" else RMSNorm()
