"""A compact 1-D U-Net on waveforms."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio_diffusion.networks.conditions.condition import Condition, Conditions, along_time
from audio_diffusion.networks.layers import HEAD_WIDTH, Attention, CrossAttention, ResBlock, TimeEmbedding, check_input


class FineBands(nn.Module):
    """Filter bank of ``UNet1d``'s coarsest level: half-overlapping windows of 2·``hop`` samples, gated band by band.

    The bank is initialised as a modulated lapped transform with both sines and cosines (Malvar 1999), which
    reconstructs every signal when all gates are 1. The gates are initialised to 0, so the bank adds nothing at first.

    Args:
        channels: number of audio channels C.
        hop: samples per position.
        width: number of features from which the gates are computed.
        features: whether the features of the coarsest level also see the bands (``read``) and add to them. A gate can
            then depend on which bands hold a tone, and a tone can be synthesised over long windows.
    """

    def __init__(self, channels: int, hop: int, width: int, features: bool = False):
        super().__init__()
        window, num_bands = 2 * hop, 2 * hop * channels
        self.norm = nn.GroupNorm(8, width)
        self.gate = nn.Conv1d(width, 2 * num_bands if features else num_bands, 1)
        self.analysis = nn.Conv1d(channels, num_bands, window, stride=hop, bias=False)
        self.synthesis = nn.ConvTranspose1d(num_bands, channels, window, stride=hop, bias=False)
        self.enter = nn.Conv1d(3 * num_bands // 2, width, 1) if features else None
        weight = _for_each_channel(_lapped_bank(hop), channels)
        with torch.no_grad():
            self.analysis.weight.copy_(weight)
            self.synthesis.weight.copy_(weight)
            self.gate.weight.zero_()
            self.gate.bias.zero_()  # type: ignore[union-attr]

    def read(self, x: Tensor) -> Tensor:
        """Features of the bands, to be added to those of the coarsest level: ``[B, C, T] -> [B, width, T/hop]``.

        The network sees each band's amplitude, squashed, and the logarithm of the power of each pair of a cosine and a
        sine, which does not depend on the phase.
        """
        assert self.enter is not None
        bands = _bands(self.analysis, x)[:, :, 1:-1]  # the windows that are centred on the positions
        power = bands.unflatten(1, (-1, 2, x.shape[1])).square().sum(2).flatten(1, 2)
        return self.enter(torch.cat([bands.tanh(), (power + 1e-3).log()], dim=1))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """``[B, C, T], [B, width, T/hop] -> [B, C, T]``."""
        gate = self.gate(F.silu(self.norm(h)))
        bands = _bands(self.analysis, x)
        if self.enter is None:
            return _synthesised(self.synthesis, _pad(gate) * bands, x.shape[2])
        gate, features = _pad(gate).chunk(2, dim=1)
        return _synthesised(self.synthesis, torch.addcmul(features, gate, bands), x.shape[2])


def _lapped_bank(hop: int) -> Tensor:
    """Modulated lapped transform with a cosine and a sine for each band: 2·hop functions of 2·hop samples, low
    frequencies first. With half-overlapping windows they reconstruct every signal."""
    n, k = torch.arange(2 * hop) + 0.5, torch.arange(hop)[:, None] + 0.5
    angle = math.pi / hop * k * (n + hop / 2)
    sine = torch.sin(math.pi * n / (2 * hop))
    return torch.stack([angle.cos(), angle.sin()], dim=1).flatten(0, 1) * sine / hop**0.5


def _two_bases(hop: int) -> Tensor:
    """Two cosine bases under a sine window, each scaled by √½: 4·hop functions of 2·hop samples, low frequencies first.
    With half-overlapping windows they reconstruct every signal as well."""
    window = 2 * hop
    n, k = torch.arange(window) + 0.5, torch.arange(window)[:, None]
    dct2 = torch.cos(math.pi / window * k * n)
    dct2[0] *= 0.5**0.5
    dct4 = torch.cos(math.pi / window * (k + 0.5) * n)
    sine = torch.sin(math.pi * n / window)
    return torch.stack([dct2, dct4], dim=1).flatten(0, 1) * sine / window**0.5


def _for_each_channel(bank: Tensor, channels: int) -> Tensor:
    """Repeats the bank for each channel, ``[N, window] -> [N·C, C, window]``; the channels alternate."""
    weight = torch.zeros(len(bank) * channels, channels, bank.shape[1])
    for channel in range(channels):
        weight[channel::channels, channel] = bank
    return weight


def _bands(analysis: nn.Conv1d, x: Tensor) -> Tensor:
    """Analyses ``[B, C, T]`` in half-overlapping windows, with one extra window at either end so that every sample lies
    in two windows."""
    (hop,) = analysis.stride
    return analysis(F.pad(x, (hop + hop // 2, hop + hop // 2)))


def _pad(features: Tensor) -> Tensor:
    """Repeats the first and the last position once, for the extra windows of ``_bands``."""
    return F.pad(features, (1, 1), mode="replicate")


def _synthesised(synthesis: nn.ConvTranspose1d, bands: Tensor, num_samples: int) -> Tensor:
    """Inverse of ``_bands``: the signal ``[B, C, num_samples]``."""
    (hop,) = synthesis.stride
    start = hop + hop // 2
    return synthesis(bands)[:, :, start : start + num_samples]


def _check_sizes(patch_size: int, widths: Sequence[int], factors: Sequence[int], attention: bool) -> None:
    """Raises ValueError for sizes that a UNet1d cannot have."""
    if len(factors) != len(widths) - 1:
        raise ValueError(f"factors: expected one fewer than widths ({len(widths) - 1}), got {len(factors)}")
    if patch_size < 2 or patch_size % 2:
        raise ValueError(f"patch_size: expected an even number of samples, at least 2, got {patch_size}")
    if any(width < 8 or width % 8 for width in widths):
        raise ValueError(f"widths: expected multiples of 8, got {list(widths)}")
    if any(factor < 2 or factor % 2 for factor in factors):
        raise ValueError(f"factors: expected even numbers, got {list(factors)}")
    if attention and widths[-1] % HEAD_WIDTH:
        raise ValueError(
            f"widths: expected the last to be a multiple of {HEAD_WIDTH}, the width of a head of attention, got "
            f"{widths[-1]}; attention=false disables attention"
        )


class UNet1d(nn.Module):
    """Waveform U-Net: patches of samples, residual levels, attention at the coarsest (after DDPM appendix B).

    A strided convolution turns patches of ``patch_size`` samples into ``widths[0]`` features; level i then works
    at width ``widths[i]`` on a sequence ``factors[i-1]`` times shorter than the level above it.

    In the quiet parts of audio x_t is nearly all noise even at small t. The network therefore also takes x_t amplified
    by a gain learnt from t and squashed by tanh. The output is synthesised from features plus a learnt filter bank's
    analysis of the amplified x_t, gated band by band and patch by patch, as in a Wiener filter. The bank has
    ``widths[0]`` bands, or 2·``patch_size`` for every channel if that is more, so a network of any size can be
    initialised as the identity.

    Args:
        channels: number of audio channels C.
        conditions: the conditions by name. Vectors are added to the embedding of t, tokens are attended to at the
            level with self-attention, frames are added to the features of the finest level.
        patch_size: samples per position of the finest level; even.
        widths: number of features at each level, finest first; multiples of 8.
        factors: downsampling factors between levels, one fewer than ``widths``.
        num_blocks: number of residual blocks per level on the way down, and again on the way up.
        cond_width: width of the embeddings of t and of the conditions.
        attention: whether the coarsest level has self-attention; its width must then be a multiple of 64.
        fine_bands: whether to gate x_t at the coarsest level as well, in windows of 2·``multiple`` samples. This helps
            with tones, which windows of 2·``patch_size`` cannot separate from the noise at nearby frequencies.
        fine_features: whether the features of the coarsest level also see those bands and add to them; needs
            ``fine_bands``.

    Raises:
        ValueError: for sizes that do not fit together, or tokens without attention.
    """

    def __init__(
        self,
        channels: int,
        conditions: Mapping[str, Condition | None] = MappingProxyType({}),
        patch_size: int = 8,
        widths: Sequence[int] = (64, 128, 256),
        factors: Sequence[int] = (4, 4),
        num_blocks: int = 2,
        cond_width: int = 256,
        attention: bool = True,
        fine_bands: bool = False,
        fine_features: bool = False,
    ):
        super().__init__()
        _check_sizes(patch_size, widths, factors, attention)
        if fine_features and not fine_bands:
            raise ValueError("fine_features: expected false without fine_bands, got true; set fine_bands=true as well")
        self.channels, self.patch_size = channels, patch_size
        #: the number of samples T must be a multiple of this
        self.multiple = patch_size
        for factor in factors:
            self.multiple *= factor

        self.time = TimeEmbedding(cond_width)
        self.conditions = Conditions(conditions, cond_width)
        if (tokens := self.conditions.of_kind("tokens")) and not attention:
            raise ValueError(f"attention: expected true for tokens ({', '.join(tokens)}) to be attended to, got false")
        self.log_gain = nn.Linear(cond_width, channels)
        nn.init.zeros_(self.log_gain.weight)
        nn.init.zeros_(self.log_gain.bias)
        num_bands = max(widths[0], 2 * patch_size * channels)
        self.analysis = nn.Conv1d(channels, num_bands, 2 * patch_size, stride=patch_size, bias=False)
        self.patch = nn.Conv1d(2 * channels, widths[0], patch_size, stride=patch_size)
        self.gate = nn.Conv1d(widths[0], 2 * num_bands, 1)
        self.synthesis = nn.ConvTranspose1d(num_bands, channels, 2 * patch_size, stride=patch_size, bias=False)
        self._start_as_identity()
        self.fine = FineBands(channels, self.multiple, widths[-1], fine_features) if fine_bands else None

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            self.down.append(nn.ModuleList(ResBlock(width, width, cond_width) for _ in range(num_blocks)))
            self.up.append(nn.ModuleList(ResBlock(2 * width, width, cond_width) for _ in range(num_blocks)))
            if level + 1 < len(widths):
                f, below = factors[level], widths[level + 1]
                self.shrink.append(nn.Conv1d(width, below, 2 * f, stride=f, padding=f // 2))
                self.grow.append(nn.ConvTranspose1d(below, width, 2 * f, stride=f, padding=f // 2))
        self.middle = ResBlock(widths[-1], widths[-1], cond_width)
        self.attention = Attention(widths[-1]) if attention else nn.Identity()
        self.cross = CrossAttention(widths[-1], cond_width) if tokens else None
        self.frames = nn.Conv1d(cond_width, widths[0], 1) if self.conditions.of_kind("frames") else None
        self.norm = nn.GroupNorm(8, widths[0])

    def _start_as_identity(self) -> None:
        """Initialises the network so that its output is x_t, a good estimate of the noise where t is large.

        The synthesis is the transpose of an analysis that reconstructs every signal, all gates are open and no feature
        is added. The analysis has two bases for every channel, or one transform with half as many functions if the
        bands do not suffice for two. Bands beyond that transform analyse x_t with random kernels, and their synthesis
        is initialised to zero.
        """
        num_bands, channels, _ = self.analysis.weight.shape
        whole = num_bands >= 4 * self.patch_size * channels
        weight = _for_each_channel((_two_bases if whole else _lapped_bank)(self.patch_size), channels)
        used = len(weight)
        with torch.no_grad():
            if whole:
                self.analysis.weight.zero_()
            self.analysis.weight[:used].copy_(weight)
            self.synthesis.weight.zero_()
            self.synthesis.weight[:used].copy_(weight)
            self.gate.weight.zero_()
            self.gate.bias.copy_(torch.cat([torch.ones(num_bands), torch.zeros(num_bands)]))  # type: ignore[union-attr]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Loads weights, and first adapts the number of bands to theirs: older checkpoints may have ``widths[0]`` bands
        where a new network has 2·``patch_size`` for every channel."""
        stored = state_dict.get(f"{prefix}analysis.weight")
        if stored is not None and stored.ndim == 3 and len(stored) == self.patch.out_channels:
            self._take_bands(len(stored))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _take_bands(self, num_bands: int) -> None:
        """Reduces the filter bank to the first ``num_bands`` bands, if it has another number."""
        if self.analysis.out_channels == num_bands:
            return
        self.analysis.out_channels = self.synthesis.in_channels = num_bands
        self.gate.out_channels = 2 * num_bands
        for module in (self.analysis, self.synthesis):
            module.weight = nn.Parameter(module.weight.detach()[:num_bands].clone(), module.weight.requires_grad)
        weight, bias = self.gate.weight, self.gate.bias
        assert bias is not None
        self.gate.weight = nn.Parameter(weight.detach()[: 2 * num_bands].clone(), weight.requires_grad)
        self.gate.bias = nn.Parameter(bias.detach()[: 2 * num_bands].clone(), bias.requires_grad)

    def forward(self, x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """``[B, C, T] -> [B, C, T]``; T is a multiple of ``self.multiple``, t ``[B]``, cond as prepared by
        ``conditions``."""
        check_input(x_t, self.channels, self.multiple)
        context = self.conditions(cond)
        embedding = self.time(t) if context.vector is None else self.time(t) + context.vector
        amplified = x_t * self.log_gain(embedding).exp()[:, :, None]
        h = self.patch(torch.cat([x_t, amplified.tanh()], dim=1))
        if self.frames is not None:
            h = h + along_time(self.frames(context.frames), h.shape[2])
        skips = []
        # down: residual blocks, whose outputs are kept for the way up
        for level, blocks in enumerate(self.down):
            if self.fine is not None and self.fine.enter is not None and level == len(self.down) - 1:
                h = h + self.fine.read(amplified)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, embedding)
                skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
        h = self.attention(self.middle(h, embedding))
        if self.cross is not None:
            h = self.cross(h, context.tokens, context.mask)
        # up: each block also takes the output of its counterpart on the way down
        for level in reversed(range(len(self.up))):
            for block in self.up[level]:  # type: ignore[attr-defined]
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
            if self.fine is not None and level == len(self.up) - 1:
                fine = self.fine(amplified, h)
            if level:
                h = self.grow[level - 1](h)
        # output: synthesis of the gated bands of the amplified x_t, plus features
        gate, features = _pad(self.gate(F.silu(self.norm(h)))).chunk(2, dim=1)
        bands = torch.addcmul(features, gate, _bands(self.analysis, amplified))
        x = _synthesised(self.synthesis, bands, x_t.shape[2])
        return x if self.fine is None else x + fine
