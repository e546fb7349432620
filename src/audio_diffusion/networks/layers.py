"""Building blocks of the networks: embeddings, residual block, attention."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64  # channels of one head of attention


def check_input(x_t: Tensor, channels: int, multiple: int) -> None:
    """Raises ValueError unless x_t is ``[B, channels, L]`` with L a multiple of ``multiple``."""
    if x_t.shape[1] != channels or x_t.shape[2] % multiple:
        raise ValueError(f"x_t: expected [B, {channels}, a multiple of {multiple}], got {list(x_t.shape)}")


class TimeEmbedding(nn.Module):
    """t ``[B]`` in [0, 1] -> ``[B, width]``: sinusoids (DDPM appendix B, index t·1000) and a two-layer MLP."""

    def __init__(self, width: int, num_frequencies: int = 64):
        super().__init__()
        self.num_frequencies = num_frequencies
        self.mlp = nn.Sequential(nn.Linear(2 * num_frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        index = torch.arange(self.num_frequencies, device=t.device, dtype=torch.float32)
        frequency = torch.exp(-math.log(10_000) * index / self.num_frequencies)
        angle = 1000 * t.float()[:, None] * frequency
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1).to(next(self.mlp.parameters()).dtype))


def positions(x: Tensor, longest: float = 10_000.0) -> Tensor:
    """Sinusoids of the position ``[width, L]`` for x ``[B, width, L]`` (Vaswani et al. 2017, arXiv:1706.03762, 3.5)."""
    half = x.shape[1] // 2
    index = torch.arange(half, device=x.device, dtype=torch.float32)
    angle = torch.exp(-math.log(longest) * index / half)[:, None] * torch.arange(x.shape[2], device=x.device)
    return torch.cat([angle.cos(), angle.sin()]).to(x.dtype)


class LabelEmbedding(nn.Module):
    """Embeds a class index ``[B]`` as ``[B, width]``; -1, "not given", has its own embedding."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(num_classes + 1, width)
        nn.init.normal_(self.embedding.weight, std=0.5)

    def forward(self, label: Tensor) -> Tensor:
        return self.embedding(label + 1)


class NullableEmbedding(nn.Module):
    """Embeds values, with a learnt vector for "not given" (NaN): ``[B, ..] -> [B, width, ..]``."""

    def __init__(self, embed: nn.Module, width: int):
        super().__init__()
        self.embed, self.nothing = embed, nn.Parameter(torch.zeros(width))

    def forward(self, value: Tensor) -> Tensor:
        given = ~value.flatten(1).isnan().any(1) if value.ndim > 1 else ~value.isnan()
        value = value.nan_to_num()
        if value.ndim > 1:  # a number [B] stays in float32, as bf16 would round it; its embedding casts the sinusoids
            value = value.to(self.nothing.dtype)
        embedded = self.embed(value)
        tail = [1] * (embedded.ndim - 2)
        return torch.where(given.reshape(-1, 1, *tail), embedded, self.nothing.reshape(1, -1, *tail))


class NullableTokens(nn.Module):
    """Embeds tokens ``[B, S, D]``, where rows with NaN are padding: returns ``[B, S, width]`` and a mask ``[B, S]``,
    True where there is a token. A sample without tokens gets one learnt token.
    """

    def __init__(self, embed: nn.Module, width: int):
        super().__init__()
        self.embed, self.nothing = embed, nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        given = ~tokens.isnan().any(2)
        alone = ~given.any(1, keepdim=True) & (torch.arange(tokens.shape[1], device=tokens.device) == 0)
        embedded = self.embed(tokens.nan_to_num().to(self.nothing.dtype))
        return torch.where(alone[:, :, None], self.nothing, embedded), given | alone


class ResBlock(nn.Module):
    """Two convolutions of width 3 with group norm, conditioned by a scale and shift (FiLM) before the second.

    ``[B, in_width, L], [B, cond_width] -> [B, out_width, L]``. The last convolution starts at zero.
    """

    def __init__(self, in_width: int, out_width: int, cond_width: int, groups: int = 8):
        super().__init__()
        self.norm1 = nn.GroupNorm(min(groups, in_width), in_width)
        self.conv1 = nn.Conv1d(in_width, out_width, 3, padding=1)
        self.film = nn.Linear(cond_width, 2 * out_width)
        self.norm2 = nn.GroupNorm(groups, out_width)
        self.conv2 = nn.Conv1d(out_width, out_width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]
        self.skip = nn.Conv1d(in_width, out_width, 1) if in_width != out_width else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.film(F.silu(cond))[:, :, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale)))
        return self.skip(x) + h


class Attention(nn.Module):
    """Self-attention with position embeddings and a residual: ``[B, width, L] -> [B, width, L]``.

    The layer is initialised as the identity.
    """

    def __init__(self, width: int, head_width: int = HEAD_WIDTH):
        super().__init__()
        if width % head_width:
            raise ValueError(f"head_width: expected a divisor of the width {width}, got {head_width}")
        self.num_heads = width // head_width
        self.norm = nn.GroupNorm(1, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.out = nn.Conv1d(width, width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x) + positions(x)).unflatten(1, (3, self.num_heads, -1)).transpose(-1, -2)
        q, k, v = qkv.unbind(1)  # each [B, heads, L, head_width]
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(-1, -2).flatten(1, 2))


class CrossAttention(nn.Module):
    """Attention from positions to tokens, with a residual: ``[B, width, L], [B, S, token_width] -> [B, width, L]``.

    The layer is initialised as the identity. The mask ``[B, S]`` is True on tokens and False on padding; each sample
    must have at least one token.
    """

    def __init__(self, width: int, token_width: int, head_width: int = HEAD_WIDTH):
        super().__init__()
        if width % head_width:
            raise ValueError(f"head_width: expected a divisor of the width {width}, got {head_width}")
        self.num_heads = width // head_width
        self.norm = nn.GroupNorm(1, width)
        self.q = nn.Conv1d(width, width, 1)
        self.kv = nn.Linear(token_width, 2 * width)
        self.out = nn.Conv1d(width, width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        q = self.q(self.norm(x) + positions(x)).unflatten(1, (self.num_heads, -1)).transpose(-1, -2)
        k, v = self.kv(tokens).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, S, ..]
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return x + self.out(h.transpose(-1, -2).flatten(1, 2))
