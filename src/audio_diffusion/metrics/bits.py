"""Bits per dimension of a set of clips, estimated from the single clips, with errors.

A dimension is one sample of one channel. Uncompressed audio takes 16 bits per dimension.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from audio_diffusion.diffusion.checks import check_at_least_one
from audio_diffusion.diffusion.seeding import generator_for
from audio_diffusion.metrics.coding import Coded, code, coded_samples
from audio_diffusion.metrics.flow import Flow, flow_likelihood
from audio_diffusion.metrics.likelihood import LEVELS, Bound, Denoise, Schedule, log_bin, quantise, variational_bound
from audio_diffusion.representations.representation import Representation

PARTS = ("L_T", "L_t", "L_0")
DB_PER_NAT = 10 / math.log(10)  # dB per unit of log-SNR


@dataclass(frozen=True)
class Estimate:
    """Bits per dimension of a set of clips.

    standard_error: from the spread over the clips: the expected deviation with another set of clips of equal size.
    monte_carlo_error: from the spread over repeats: the expected deviation with other noise. NaN without repeats.
    """

    bits_per_dim: float
    standard_error: float
    monte_carlo_error: float


def estimate(nats: Tensor, dims: Tensor) -> Estimate:
    """Computes the bits of all clips divided by the dimensions of all clips.

    Args:
        nats: nats of each clip and repeat, float64 ``[N, R]``.
        dims: number of dimensions of each clip, ``[N]``.

    Raises:
        ValueError: if there is no clip.
    """
    if not len(nats):
        raise ValueError("clips: expected at least one that can be used, got none")
    (count, repeats), total = nats.shape, dims.sum().double()
    ratio = nats.mean(1).sum() / total
    # error of a ratio of sums, by linearisation: each clip's deviation from the value expected from its length
    distance = nats.mean(1) - ratio * dims
    spread = (distance.square().sum() * count / (count - 1)).sqrt() / total if count > 1 else torch.tensor(math.nan)
    noise = (nats.var(1).sum() / repeats).sqrt() / total if repeats > 1 else torch.tensor(math.nan)
    bits, standard_error, monte_carlo = (torch.stack([ratio, spread, noise]) / math.log(2)).tolist()
    return Estimate(bits, standard_error, monte_carlo)


@dataclass(frozen=True)
class Curve:
    """Loss and bits by signal-to-noise ratio of the noise level; lists of equal length, from clean to noise.

    snr_db: signal-to-noise ratio, dB.   loss: mean squared error of the noise estimate.   bits_per_db: bits per
    dimension and dB of the ratio; the area below it is L_t. A white noise signal costs 1 bit per 6.02 dB as long as it
    is much louder than the noise of the level.
    """

    snr_db: list[float]
    loss: list[float]
    bits_per_db: list[float]


@dataclass(frozen=True)
class ClipBounds:
    """The bounds of N clips with R repeats, each with different noise; float64 on the CPU."""

    dims: Tensor  # [N], number of dimensions; 0 for slots without a clip
    nats: Tensor  # [N, R, 3], the three parts of the bound
    log_snr: Tensor  # [N, R, K], the noise levels drawn
    width: Tensor  # [N, R, K], the width in log-SNR that each level represents
    level_nats: Tensor  # [N, R, K], the contribution of each level to the second part
    noise_error: Tensor  # [N, R, K], the mean squared error of the noise estimate at each level

    @classmethod
    def join(cls, several: Sequence["ClipBounds"]) -> "ClipBounds":
        """Concatenates the bounds of several sets of clips."""
        return cls(*(torch.cat([getattr(part, f.name) for part in several]) for f in fields(cls)))

    def __getitem__(self, which: Tensor) -> "ClipBounds":
        return ClipBounds(*(getattr(self, f.name)[which] for f in fields(self)))

    def estimate(self) -> Estimate:
        """Returns the whole bound."""
        return estimate(self.nats.sum(-1), self.dims)

    def parts(self) -> dict[str, Estimate]:
        """Returns L_T (x_1 is not quite noise), L_t (sum over the network's steps) and L_0 (last step, to 16 bits)."""
        return {name: estimate(self.nats[..., i], self.dims) for i, name in enumerate(PARTS)}

    def describe(self) -> str:
        """Formats the bound and its parts in one line."""
        parts = " + ".join(f"{name} {part.bits_per_dim:.3f}" for name, part in self.parts().items())
        return f"{self.estimate().bits_per_dim:.3f} bits/dim = {parts}"

    def curve(self, num_ranges: int = 32) -> Curve:
        """Returns loss and bits in equal ranges of the log-SNR; ranges without a drawn level are left out."""
        db, dims = self.log_snr.clamp(min=-20) * DB_PER_NAT, self.dims[:, None, None].expand_as(self.log_snr)
        if not db.numel():  # T = 1
            return Curve([], [], [])
        low, high = db.min(), db.max()
        place = ((high - db) / (high - low).clamp(min=1e-9) * num_ranges).long().clamp(0, num_ranges - 1).flatten()

        def summed(values: Tensor) -> Tensor:
            return torch.zeros(num_ranges, dtype=torch.float64).index_add_(0, place, values.flatten())

        weight = summed(dims)
        loss, snr_db = summed(self.noise_error * dims) / weight, summed(db * dims) / weight
        bits_per_db = summed(self.level_nats) / (summed(self.width * dims) * math.log(2) * DB_PER_NAT)
        return Curve(*(values[weight > 0].tolist() for values in (snr_db, loss, bits_per_db)))


class BoundMeter:
    """Measures the variational bound of clips, see ``likelihood.variational_bound``.

    Args:
        num_levels: noise levels (network evaluations) for each clip and repeat.
        repeats: number of estimates of each clip, each with its own noise; at least 2 for a Monte Carlo error.
        continuous: whether to compute the limit of infinitely many steps, instead of the schedule's T steps.
        t_min: time of the least noise, with ``continuous``; None for the least noise in training.

    Raises:
        ValueError: for numbers out of range, or ``t_min`` without ``continuous``.
    """

    def __init__(self, num_levels: int = 16, repeats: int = 2, continuous: bool = False, t_min: float | None = None):
        check_at_least_one(num_levels=num_levels, repeats=repeats)
        if t_min is not None and not (continuous and 0 < t_min < 1):
            raise ValueError(f"t_min: expected a time between 0 and 1, and continuous=true, got {t_min}")
        self.num_levels, self.repeats, self.continuous, self.t_min = num_levels, repeats, continuous, t_min

    def __call__(
        self,
        denoise: Denoise,
        schedule: Schedule,
        audio: Tensor,
        mask: Tensor,
        representation: Representation,
        keys: Sequence[tuple[int | str, ...]],
    ) -> ClipBounds:
        """Computes the bounds of clips.

        Args:
            denoise: network, parameterization and conditions of these clips.
            schedule: noise schedule of the process.
            audio: the clips ``[B, C, T]``, full scale ±1, rounded to 16 bits.
            mask: bool ``[B, 1, T]``, False on padding; a slot that is all padding gets dims 0.
            representation: exact representation between audio and x0.
            keys: key of each clip's noise.
        """
        codes = _coded(representation, audio, mask, keys, self.repeats)
        bounds = [
            variational_bound(
                denoise,
                schedule,
                coded.x0,
                coded.own,
                coded.scale,
                [generator_for("bound", *key, repeat) for key in keys],
                t_min=schedule.first_time if self.t_min is None else self.t_min,
                num_steps=None if self.continuous else schedule.num_steps,
                num_levels=self.num_levels,
            )
            for repeat, coded in enumerate(codes)
        ]
        bounds = [
            bound._replace(reconstruction=bound.reconstruction + coded.nats)
            for bound, coded in zip(bounds, codes, strict=True)
        ]
        joined = Bound(*(torch.stack(values, dim=1) for values in zip(*bounds, strict=True)))
        return ClipBounds(
            dims=count_dims(audio, coded_samples(representation, mask)),
            nats=torch.stack([joined.prior, joined.diffusion, joined.reconstruction], dim=-1),
            log_snr=joined.log_snr,
            width=joined.width,
            level_nats=joined.nats,
            noise_error=joined.noise_error,
        )


class FlowMeter:
    """Measures the likelihood of clips under the probability-flow ODE, see ``flow.flow_likelihood``.

    Args:
        repeats: number of estimates of each clip, each with its own dequantisation and trace probe.
        tolerance: error of a step of the solver.
        t_min: time of the least noise; None for the least noise in training.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(self, repeats: int = 2, tolerance: float = 1e-3, t_min: float | None = None):
        check_at_least_one(repeats=repeats)
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance: expected between 0 and 1, got {tolerance}")
        if t_min is not None and not 0 < t_min < 1:
            raise ValueError(f"t_min: expected a time between 0 and 1, got {t_min}")
        self.repeats, self.tolerance, self.t_min = repeats, tolerance, t_min

    def __call__(
        self,
        denoise: Denoise,
        schedule: Schedule,
        audio: Tensor,
        mask: Tensor,
        representation: Representation,
        keys: Sequence[tuple[int | str, ...]],
    ) -> Flow:
        """Computes -log p in nats and the network evaluations of each clip and repeat, ``[B, R]``; see ``BoundMeter``
        for the arguments."""
        codes = _coded(representation, audio, mask, keys, self.repeats)
        flows = [
            flow_likelihood(
                denoise,
                schedule,
                coded.x0,
                coded.own,
                coded.scale,
                [generator_for("flow", *key, repeat) for key in keys],
                t_min=schedule.first_time if self.t_min is None else self.t_min,
                tolerance=self.tolerance,
            )
            for repeat, coded in enumerate(codes)
        ]
        flows = [flow._replace(nats=flow.nats + coded.nats) for flow, coded in zip(flows, codes, strict=True)]
        return Flow(*(torch.stack(values, dim=1) for values in zip(*flows, strict=True)))


def _coded(
    representation: Representation, audio: Tensor, mask: Tensor, keys: Sequence[tuple[int | str, ...]], repeats: int
) -> list[Coded]:
    """The clips as x0, once per repeat; the repeats differ in their dequantisation, which single samples need not."""
    if representation.elementwise:
        return [code(representation, audio, mask, [])] * repeats
    return [
        code(representation, audio, mask, [generator_for("dequantise", *key, repeat) for key in keys])
        for repeat in range(repeats)
    ]


def count_dims(audio: Tensor, mask: Tensor) -> Tensor:
    """Counts the dimensions of each clip that are not padding, float64 ``[B]`` on the CPU."""
    return mask.expand_as(audio).flatten(1).sum(1).cpu().double()


def value_counts(audio: Tensor, mask: Tensor) -> Tensor:
    """Counts the occurrences of each 16-bit value -32768 .. 32767, int64 ``[65536]``; to be summed over batches.

    Args:
        audio: ``[B, C, T]``, full scale ±1, rounded to 16 bits.
        mask: bool ``[B, 1, T]``, False on padding.
    """
    values = quantise(audio)[mask.expand_as(audio)] * LEVELS + LEVELS  # whole numbers below 2^16: exact in float32
    return torch.bincount(values.round().long().cpu(), minlength=2 * LEVELS)


def white_gaussian(counts: Tensor) -> float:
    """Computes bits per dimension under white Gaussian noise of the samples' variance: a baseline that knows only the
    level.

    Args:
        counts: count of each 16-bit value, from ``value_counts``.
    """
    values, share = torch.arange(-LEVELS, LEVELS, dtype=torch.float64) / LEVELS, counts.double() / counts.sum()
    std = (share * values.square()).sum().sqrt().clamp(min=1e-9)
    nats = -log_bin(values, torch.zeros_like(values), std, 1.0)
    return torch.where(counts > 0, share * nats, 0.0).sum().item() / math.log(2)
