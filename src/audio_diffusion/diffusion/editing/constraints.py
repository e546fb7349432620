"""Constraints: known properties of a signal, which ``consistency.consistent`` imposes on a sampler's ``denoise``."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

_NEAR = 128  # number of neighbouring samples on either side


class Constraint(ABC):
    """A known property of x0: P x0 = P y, with an orthogonal projection P and a y that may depend on the estimate.

    All tensors are ``[B, C, T]``; the result of a sample depends on that sample alone.
    """

    @abstractmethod
    def onto(self, x0: Tensor) -> Tensor:
        """Returns x0 + P(y - x0), the nearest or likeliest signal that satisfies the constraint."""

    @abstractmethod
    def project(self, v: Tensor, x0: Tensor) -> Tensor:
        """Returns P v, with the P that is active at the estimate x0."""

    def adjoint(self, v: Tensor) -> Tensor:
        """Applies the adjoint of the constraint's linear map to v; it returns v itself if P is orthogonal."""
        return v


class Kept(Constraint):
    """Keeps given samples unchanged: inpainting, outpainting, continuation.

    Args:
        clip: ``[B, C, T]``; its values where ``keep`` is False are ignored.
        keep: bool ``[B, 1 or C, T]``, True on the samples to keep.

    Raises:
        ValueError: if the mask is not boolean or not of the clip's shape.
    """

    def __init__(self, clip: Tensor, keep: Tensor):
        shape = list(clip.shape)
        if keep.dtype != torch.bool or list(keep.shape) not in (shape, [shape[0], 1, *shape[2:]]):
            raise ValueError(
                f"keep: expected a bool mask of shape {[shape[0], 1, *shape[2:]]} or {shape}, got {keep.dtype} of "
                f"{list(keep.shape)}"
            )
        self.clip, self.keep = clip, keep

    def onto(self, x0: Tensor) -> Tensor:
        """Returns exactly the clip where it is kept, and x0 elsewhere."""
        return torch.where(self.keep, self.clip, x0)

    def project(self, v: Tensor, x0: Tensor) -> Tensor:
        """Returns v where the clip is kept, and 0 elsewhere."""
        return v * self.keep


class LowBand(Constraint):
    """Keeps the spectrum below a cutoff: bandwidth extension.

    The low band is selected in the discrete Fourier transform of the whole signal: this is an orthogonal projection
    without phase shift.

    Args:
        clip: ``[B, C, T]``; its spectrum above the cutoff is ignored.
        cutoff: fraction of the sample rate, inside (0, 0.5).

    Raises:
        ValueError: if the cutoff is outside (0, 0.5).
    """

    def __init__(self, clip: Tensor, cutoff: float):
        if not 0 < cutoff < 0.5:
            raise ValueError(f"cutoff: expected a fraction of the sample rate inside (0, 0.5), got {cutoff}")
        self.num_samples, self.num_bins = clip.shape[-1], int(cutoff * clip.shape[-1]) + 1
        self.clip = self._low(clip)

    def _low(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)
        spectrum[..., self.num_bins :] = 0
        return torch.fft.irfft(spectrum, n=self.num_samples)

    def onto(self, x0: Tensor) -> Tensor:
        """Returns x0 with the clip's low band."""
        return x0 + (self.clip - self._low(x0))

    def project(self, v: Tensor, x0: Tensor) -> Tensor:
        """Returns the low band of v."""
        return self._low(v)


class Unclipped(Constraint):
    """Requires clipped samples to lie at the clip level or beyond it, and keeps all others: declipping.

    The estimate of a clipped sample is interpreted as the mean of a Gaussian. This Gaussian is truncated at the clip
    level, and the mean of the truncated Gaussian replaces the estimate. Its standard deviation is the RMS error of the
    estimate on nearby samples that were not clipped. (If estimates below the level were set to the level instead, half
    of the clipped samples of Gaussian signals would stay there.)

    Args:
        clip: ``[B, C, T]``.
        clipped: bool of the clip's shape, True on the samples that were clipped.

    Raises:
        ValueError: if the mask is not boolean or not of the clip's shape.
    """

    def __init__(self, clip: Tensor, clipped: Tensor):
        if clipped.dtype != torch.bool or clipped.shape != clip.shape:
            raise ValueError(f"clipped: expected bool {list(clip.shape)}, got {clipped.dtype} {list(clipped.shape)}")
        self.clip, self.side = clip, clip.sign() * clipped

    def onto(self, x0: Tensor) -> Tensor:
        """Returns the clip unchanged, except for clipped samples, which get the mean of the truncated Gaussian."""
        known = self.side == 0
        width = self._width((self.clip - x0).square() * known, known)
        short = (self.clip - x0) * self.side / width  # distance to the level, in widths
        # mean of a unit Gaussian beyond a: sqrt(2/π)/erfcx(a/√2)
        mean = x0 + self.side * width * (2 / torch.pi) ** 0.5 / torch.special.erfcx((short / 2**0.5).clamp(min=-8))
        return torch.where(known, self.clip, self.side * torch.maximum(self.side * mean, self.side * self.clip))

    @staticmethod
    def _width(off: Tensor, known: Tensor) -> Tensor:
        """Returns the RMS error ``[B, 1, T]`` over nearby known samples from squared errors ``off``; the mean over all
        known samples counts as one additional sample."""
        off, count = off.sum(1, keepdim=True), known.sum(1, keepdim=True).to(off.dtype)
        everywhere = off.sum(2, keepdim=True) / count.sum(2, keepdim=True).clamp(min=1)
        off, count = (F.avg_pool1d(v, 2 * _NEAR + 1, 1, _NEAR) * (2 * _NEAR + 1) for v in (off, count))
        return ((off + everywhere) / (count + 1)).sqrt().clamp(min=1e-9)

    def project(self, v: Tensor, x0: Tensor) -> Tensor:
        """Returns v, but 0 where x0 is not constrained: clipped samples whose estimate is already beyond the level."""
        return v * ((x0 - self.clip) * self.side <= 0)
