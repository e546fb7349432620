"""The parts of networks: against their formulas, and what they are before training."""

import math

import pytest
import torch
from torch import Tensor, nn

from audio_diffusion.networks.layers import (
    Attention,
    CrossAttention,
    LabelEmbedding,
    ResBlock,
    TimeEmbedding,
    positions,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def wake(module: nn.Module) -> nn.Module:
    """Moves every weight off its start, so that the parts which start at zero take part."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def test_time_is_seen_as_sinusoids_of_ddpms_index() -> None:
    embedding, seen = TimeEmbedding(8, num_frequencies=16), []
    embedding.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    times = [0.0, 0.001, 0.37, 1.0]
    assert embedding(torch.tensor(times)).shape == (4, 8)
    frequencies = [10_000 ** (-i / 16) for i in range(16)]
    expected = [
        [math.cos(1000 * t * f) for f in frequencies] + [math.sin(1000 * t * f) for f in frequencies] for t in times
    ]
    torch.testing.assert_close(seen[0], torch.tensor(expected), rtol=0, atol=2e-4)


def test_every_step_of_ddpm_has_its_own_time_embedding() -> None:
    embedded = TimeEmbedding(32)(torch.arange(1, 1001) / 1000)
    distance = torch.cdist(embedded, embedded, compute_mode="donot_use_mm_for_euclid_dist")
    assert (distance + torch.eye(1000)).min() > 1e-3


def test_time_may_be_half_precision_in_a_half_precision_network() -> None:
    assert TimeEmbedding(8).bfloat16()(torch.tensor([0.5], dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(("width", "length"), [(4, 7), (64, 33)])
def test_positions_follow_the_formula(width: int, length: int) -> None:
    got = positions(torch.zeros(2, width, length, dtype=torch.float64))
    assert got.dtype == torch.float64
    half = width // 2
    angle = [[p * 10_000 ** (-i / half) for p in range(length)] for i in range(half)]
    expected = torch.tensor(angle, dtype=torch.float64)
    torch.testing.assert_close(got, torch.cat([expected.cos(), expected.sin()]), rtol=0, atol=1e-5)


def test_not_given_has_an_embedding_of_its_own() -> None:
    embedding = LabelEmbedding(3, 16)
    rows = embedding(torch.tensor([-1, 0, 1, 2]))
    assert rows.shape == (4, 16)
    assert (torch.cdist(rows, rows) + torch.eye(4)).min() > 0.1
    rows[0].sum().backward()
    (weight,) = embedding.parameters()
    assert weight.grad is not None
    assert weight.grad.abs().sum(1).count_nonzero() == 1  # and learns alone


@pytest.mark.parametrize("label", [-2, 3])
def test_an_unknown_label_is_an_error(label: int) -> None:
    with pytest.raises(IndexError):
        LabelEmbedding(3, 16)(torch.tensor([label]))


def test_block_starts_as_the_identity() -> None:
    x = torch.randn(2, 16, 9)
    assert torch.equal(ResBlock(16, 16, 8)(x, torch.randn(2, 8)), x)


def test_block_that_changes_the_width_starts_linear_in_each_position() -> None:
    block, cond = ResBlock(16, 8, 4), torch.randn(2, 4)
    a, b, order = torch.randn(2, 16, 9), torch.randn(2, 16, 9), torch.randperm(9)
    start = block(a, cond)
    assert start.shape == (2, 8, 9)
    assert start.std() > 0.1
    torch.testing.assert_close(block(a + b, cond), start + block(b, cond) - block(torch.zeros_like(a), cond))
    torch.testing.assert_close(block(a[:, :, order], cond), start[:, :, order])
    assert torch.equal(block(a, cond + 1), start)


@pytest.mark.parametrize(("in_width", "out_width", "length"), [(16, 16, 9), (32, 16, 1), (4, 8, 64)])
def test_block_scales_and_shifts_by_its_condition(in_width: int, out_width: int, length: int) -> None:
    """Against the same written out: conv2(silu(norm2(conv1(silu(norm1(x))))·(1 + scale) + shift)) + skip(x)."""
    block = wake(ResBlock(in_width, out_width, 5))
    x, cond = torch.randn(2, in_width, length), torch.randn(2, 5)
    silu, group_norm = nn.functional.silu, nn.functional.group_norm
    film = silu(cond) @ block.film.weight.T + block.film.bias
    scale, shift = film[:, :out_width, None], film[:, out_width:, None]
    h = group_norm(x, min(8, in_width), block.norm1.weight, block.norm1.bias)
    h = group_norm(block.conv1(silu(h)), 8, block.norm2.weight, block.norm2.bias)
    expected = block.conv2(silu(h * (1 + scale) + shift)) + block.skip(x)
    got = block(x, cond)
    assert got.shape == (2, out_width, length)
    torch.testing.assert_close(got, expected)
    assert (got - block(x, cond + 1)).abs().max() > 0.01


def test_attention_starts_as_the_identity() -> None:
    x = torch.randn(2, 64, 9)
    assert torch.equal(Attention(64)(x), x)


@pytest.mark.parametrize(("width", "head_width"), [(64, 64), (64, 16)])
def test_attention_is_the_formula_head_by_head(width: int, head_width: int) -> None:
    """softmax(qᵀk/√head_width)·v (Vaswani et al. 2017, eq. 1), of positions and normed features together."""
    attention, x = wake(Attention(width, head_width)), torch.randn(2, width, 7)
    normed = nn.functional.group_norm(x, 1, attention.norm.weight, attention.norm.bias) + positions(x)
    qkv: Tensor = attention.qkv(normed)
    heads = []
    for first in range(0, width, head_width):
        q, k, v = (qkv[:, part * width + first : part * width + first + head_width] for part in range(3))
        weight = (torch.einsum("bdl,bdm->blm", q, k) / head_width**0.5).softmax(-1)
        heads.append(torch.einsum("blm,bdm->bdl", weight, v))
    torch.testing.assert_close(attention(x), x + attention.out(torch.cat(heads, 1)), rtol=1e-4, atol=1e-5)


def test_attention_is_told_where_things_are() -> None:
    attention, x = wake(Attention(64)), torch.randn(1, 64, 12)
    order = torch.arange(11, -1, -1)
    assert (attention(x[:, :, order]) - attention(x)[:, :, order]).abs().max() > 0.01


@pytest.mark.parametrize("head_width", [48, 128])
def test_heads_must_divide_the_width(head_width: int) -> None:
    with pytest.raises(ValueError, match=f"head_width: expected a divisor of the width 64, got {head_width}"):
        Attention(64, head_width)


def test_cross_attention_starts_as_the_identity() -> None:
    x = torch.randn(2, 64, 9)
    assert torch.equal(CrossAttention(64, 8)(x, torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)), x)


@pytest.mark.parametrize(("width", "head_width"), [(64, 64), (64, 16)])
def test_cross_attention_is_the_formula_over_the_tokens_that_there_are(width: int, head_width: int) -> None:
    attention, x, tokens = wake(CrossAttention(width, 5, head_width)), torch.randn(2, width, 7), torch.randn(2, 4, 5)
    mask = torch.tensor([[True, True, False, True], [False, True, False, False]])
    got = attention(x, tokens, mask)
    for i in range(2):
        normed = nn.functional.group_norm(x[i : i + 1], 1, attention.norm.weight, attention.norm.bias) + positions(x)
        q, (k, v) = attention.q(normed)[0], attention.kv(tokens[i, mask[i]]).chunk(2, dim=1)
        heads = []
        for first in range(0, width, head_width):
            part = slice(first, first + head_width)
            weight = (q[part].T @ k[:, part].T / head_width**0.5).softmax(-1)
            heads.append((weight @ v[:, part]).T)
        torch.testing.assert_close(got[i], x[i] + attention.out(torch.cat(heads)[None])[0], rtol=1e-4, atol=1e-5)
