"""DiffWave (Kong et al. 2021, arXiv:2009.09761): a denoiser of WaveNet's residual layers, made bidirectional."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from audio_diffusion.diffusion.checks import check_at_least_one
from audio_diffusion.networks.conditions.condition import Condition, Conditions, along_time
from audio_diffusion.networks.layers import check_input

_SINUSOIDS, _STEP_WIDTH, _SLOPE = 64, 512, 0.4  # as published


def _conv(in_width: int, out_width: int, kernel: int = 1, dilation: int = 1) -> nn.Conv1d:
    """A convolution that keeps the length, with He's initialisation and weight normalisation."""
    conv = nn.Conv1d(in_width, out_width, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    nn.init.kaiming_normal_(conv.weight)
    return weight_norm(conv)


class StepEmbedding(nn.Module):
    """t ``[B]`` in [0, 1] -> ``[B, 512]``: 128 sinusoids and two layers (section 3.1).

    Args:
        scale: radians that the slowest sinusoid turns from t = 0 to 1; the fastest turns 10^4 times as far.
    """

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale
        self.mlp = nn.Sequential(
            nn.Linear(2 * _SINUSOIDS, _STEP_WIDTH), nn.SiLU(), nn.Linear(_STEP_WIDTH, _STEP_WIDTH), nn.SiLU()
        )

    def forward(self, t: Tensor) -> Tensor:
        place = torch.linspace(0, 1, _SINUSOIDS, device=t.device)
        angle = self.scale * t.float()[:, None] * 10_000**place
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=1).to(next(self.mlp.parameters()).dtype))


class Stretch(nn.Module):
    """Bands over time ``[B, R, F]`` -> ``[B, R, F·factor]``: a transposed 2-D convolution of one channel.

    Each output depends on six inputs, three bands by two frames, so the convolution is computed as one matrix product.
    On a CPU that is four (float32) to seven (bfloat16) times faster than ``ConvTranspose2d`` with one channel.
    """

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor
        self.weight = nn.Parameter(torch.zeros(1, 1, 3, 2 * factor))
        self.bias = nn.Parameter(torch.zeros(1))
        with torch.no_grad():
            self.weight[0, 0, 1] = 1 - ((torch.arange(2 * factor) + 0.5) / factor - 1).abs()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, R, F] -> [B, R, F·factor]``."""
        rows, steps, f = x.shape[1], x.shape[2] + 1, self.factor
        beside = F.pad(x, (1, 1, 1, 1))
        six = [beside[:, band : band + rows, frame : frame + steps] for band in range(3) for frame in range(2)]
        taps = self.weight.reshape(3, 2, f).flip(0, 1).reshape(6, f)
        return (torch.stack(six, dim=-1) @ taps + self.bias).flatten(2)[:, :, f // 2 : -f // 2]


class Upsampler(nn.Module):
    """Frames ``[B, width, F]`` -> ``[B, width, F·Π factors]``: transposed 2-D convolutions over bands and time.

    The weights are initialised as linear interpolation of each band. Random weights blur the frames so much that the
    network ignores them for a long time.
    """

    def __init__(self, factors: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = []
        for factor in factors:
            layers += [weight_norm(Stretch(factor)), nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*layers)

    def forward(self, frames: Tensor) -> Tensor:
        return self.layers(frames)


class ResidualLayer(nn.Module):
    """One gated dilated convolution, conditioned on the step and the conditions (figure 2 of the paper).

    Args:
        width: number of residual channels C; the gated convolution has 2·C.
        dilation: distance between the convolution's three taps, in samples.
        vector_width: width of the conditioning vector; 0 for none.
        frames_width: width of the conditioning frames; 0 for none.
        upsample: factors from frames to samples, one for each transposed convolution.
    """

    def __init__(self, width: int, dilation: int, vector_width: int, frames_width: int, upsample: Sequence[int]):
        super().__init__()
        self.step = nn.Linear(_STEP_WIDTH, width)
        self.dilated = _conv(width, 2 * width, 3, dilation)
        self.vector = _conv(vector_width, 2 * width) if vector_width else None
        self.upsampler = Upsampler(upsample) if frames_width else None
        self.frames = _conv(frames_width, 2 * width) if frames_width else None
        self.out = _conv(width, 2 * width)

    def forward(self, x: Tensor, step: Tensor, vector: Tensor | None, frames: Tensor | None) -> tuple[Tensor, Tensor]:
        """``[B, C, T], [B, 512], [B, W], [B, W, F]`` -> residual and skip output, each ``[B, C, T]``."""
        h = self.dilated(x + self.step(step)[:, :, None])
        if self.vector is not None:
            h = h + self.vector(vector[:, :, None])  # type: ignore[index]
        if self.frames is not None:
            h = h + self.frames(self.upsampler(frames))  # type: ignore[misc]
        signal, gate = h.chunk(2, dim=1)
        residual, skipped = self.out(signal.tanh() * gate.sigmoid()).chunk(2, dim=1)
        return (x + residual) * 0.5**0.5, skipped


class DiffWave(nn.Module):
    """A stack of dilated convolutions at the full sample rate, with dilations 1, 2, 4 .. in cycles.

    The published sizes are 30 layers of width 64 (2.64 M parameters with a mel of 80 bands) or 128 (6.91 M) in cycles
    of 10, and 36 layers of width 256 in cycles of 12 (24.1 M, unconditional). The counts include the gains of weight
    normalisation and a separate upsampler in every layer.

    Args:
        channels: number of audio channels C.
        conditions: the conditions by name. Each layer adds vectors (of tokens, their mean) and upsampled frames to the
            output of its dilated convolution.
        num_layers: number of residual layers.
        width: number of residual channels, and of skip channels.
        dilation_cycle: number of layers after which the dilation restarts at 1.
        cond_width: width of the embeddings of conditions; for frames that are not embedded, such as
            ``Mel(embed=False)``, it must be their number of rows.
        upsample: even factors from frames to samples. With frames, T must be a multiple of their product, and frames
            of another rate are interpolated to T / product.
        embedding_scale: radians that the slowest sinusoid of t turns from t = 0 to 1; the fastest turns 10^4 times as
            far. The paper uses T, the number of steps, for a network that is only evaluated at t = i/T; 0.1 is DDPM's
            embedding, which is smooth in t and suits all schedules.

    Raises:
        ValueError: for numbers below 1, factors that are not even, or a scale that is not positive.
    """

    def __init__(
        self,
        channels: int,
        conditions: Mapping[str, Condition | None] = MappingProxyType({}),
        num_layers: int = 30,
        width: int = 64,
        dilation_cycle: int = 10,
        cond_width: int = 128,
        upsample: Sequence[int] = (16, 16),
        embedding_scale: float = 0.1,
    ):
        super().__init__()
        check_at_least_one(channels=channels, num_layers=num_layers, width=width, dilation_cycle=dilation_cycle)
        if not upsample or any(factor < 2 or factor % 2 for factor in upsample):
            raise ValueError(f"upsample: expected even numbers, got {list(upsample)}")
        if not embedding_scale > 0:
            raise ValueError(f"embedding_scale: expected a positive number, got {embedding_scale}")
        self.channels = channels
        self.conditions = Conditions(conditions, cond_width)
        has_vector = bool(self.conditions.of_kind("vector") or self.conditions.of_kind("tokens"))
        has_frames = bool(self.conditions.of_kind("frames"))
        #: the number of samples T must be a multiple of this
        self.multiple = math.prod(upsample) if has_frames else 1
        self.step = StepEmbedding(embedding_scale)
        self.first = _conv(channels, width)
        widths = (cond_width if has_vector else 0, cond_width if has_frames else 0)
        self.layers = nn.ModuleList(
            ResidualLayer(width, 2 ** (i % dilation_cycle), *widths, upsample) for i in range(num_layers)
        )
        self.mix = _conv(width, width)
        self.last = nn.Conv1d(width, channels, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """``[B, C, T] -> [B, C, T]``; T is a multiple of ``self.multiple``, t ``[B]``, cond as prepared by
        ``conditions``."""
        check_input(x_t, self.channels, self.multiple)
        context = self.conditions(cond)
        frames = None if context.frames is None else along_time(context.frames, x_t.shape[2] // self.multiple)
        step, h, total = self.step(t), F.relu(self.first(x_t)), None
        for layer in self.layers:
            h, skipped = layer(h, step, context.vector, frames)
            total = skipped if total is None else total + skipped
        return self.last(F.relu(self.mix(total * len(self.layers) ** -0.5)))
