"""What is known of a signal beforehand, as the sampler's ``denoise`` is held to it by ``consistency.consistent``."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

_NEAR = 128  # samples to either side


class Constraint(ABC):
    """Something known of x0: P x0 = P y, with an orthogonal projection P, and a y, that may depend on the estimate.

    All tensors are ``[B, C, T]``; a sample's result depends on that sample alone.
    """

    @abstractmethod
    def onto(self, x0: Tensor) -> Tensor:
        """What is nearest to x0, or likeliest, of which the known is true: x0 + P(y - x0)."""

    @abstractmethod
    def project(self, v: Tensor, x0: Tensor) -> Tensor:
        """P v, of what binds at the estimate x0."""

    def adjoint(self, v: Tensor) -> Tensor:
        """The direction in which x0 changes what is known by v most; v itself where P is orthogonal."""
        return v


class Kept(Constraint):
    """Samples that stay as they are: inpainting, outpainting, continuation.

    Args:
        clip: ``[B, C, T]``; what stands where ``keep`` is False does not matter.
        keep: bool ``[B, 1 or C, T]``.

    Raises:
        ValueError: for a mask that is not boolean or not of the clip's shape.
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
        """The clip where it is kept, bit by bit, x0 elsewhere."""
        return torch.where(self.keep, self.clip, x0)

    def project(self, v: Tensor, x0: Tensor) -> Tensor:
        """v where the clip is kept."""
        return v * self.keep


class LowBand(Constraint):
    """The spectrum below a cutoff stays: bandwidth extension.

    The bands are those of the discrete Fourier transform of the whole signal: linear phase, and a projection.

    Args:
        clip: ``[B, C, T]``; what it has above the cutoff does not matter.
        cutoff: as a part of the sample rate, inside (0, 0.5).

    Raises:
        ValueError: for another cutoff.
    """

    def __init__(self, clip: Tensor, cutoff: float):
        if not 0 < cutoff < 0.5:
            raise ValueError(f"cutoff: expected a part of the sample rate inside (0, 0.5), got {cutoff}")
        self.num_samples, self.num_bins = clip.shape[-1], int(cutoff * clip.shape[-1]) + 1
        self.clip = self._low(clip)

    def _low(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)
        spectrum[..., self.num_bins :] = 0
        return torch.fft.irfft(spectrum, n=self.num_samples)

    def onto(self, x0: Tensor) -> Tensor:
        """x0 with the clip's low band."""
        return x0 + (self.clip - self._low(x0))

    def project(self, v: Tensor, x0: Tensor) -> Tensor:
        """The low band of v."""
        return self._low(v)


class Unclipped(Constraint):
    """Samples at the clip level lie at it or beyond, on their side; all others stay: declipping.

    An estimate is the mean of what a sample may be, and of what may be only that beyond the level counts: the mean of a
    Gaussian that is cut off there. Its width is how far the estimate is off where the clip is known near by. (To set
    the samples at the level itself would make it a ceiling: of Gaussian signals half of those clipped then stay at it.)

    Args:
        clip: ``[B, C, T]``.
        clipped: which samples were clipped, bool of the clip's shape.

    Raises:
        ValueError: for a mask that is not boolean or not of the clip's shape.
    """

    def __init__(self, clip: Tensor, clipped: Tensor):
        if clipped.dtype != torch.bool or clipped.shape != clip.shape:
            raise ValueError(f"clipped: expected bool {list(clip.shape)}, got {clipped.dtype} {list(clipped.shape)}")
        self.clip, self.side = clip, clip.sign() * clipped

    def onto(self, x0: Tensor) -> Tensor:
        """The clip bit by bit; where it was clipped, the mean of what may be beyond the level."""
        known = self.side == 0
        width = self._width((self.clip - x0).square() * known, known)
        short = (self.clip - x0) * self.side / width  # of the level, in widths
        # mean of a unit Gaussian beyond a: sqrt(2/π)/erfcx(a/√2)
        mean = x0 + self.side * width * (2 / torch.pi) ** 0.5 / torch.special.erfcx((short / 2**0.5).clamp(min=-8))
        return torch.where(known, self.clip, self.side * torch.maximum(self.side * mean, self.side * self.clip))

    @staticmethod
    def _width(off: Tensor, known: Tensor) -> Tensor:
        """Root of the mean of ``off`` over what is known near by, ``[B, 1, T]``; the mean of all counts as one more."""
        off, count = off.sum(1, keepdim=True), known.sum(1, keepdim=True).to(off.dtype)
        everywhere = off.sum(2, keepdim=True) / count.sum(2, keepdim=True).clamp(min=1)
        off, count = (F.avg_pool1d(v, 2 * _NEAR + 1, 1, _NEAR) * (2 * _NEAR + 1) for v in (off, count))
        return ((off + everywhere) / (count + 1)).sqrt().clamp(min=1e-9)

    def project(self, v: Tensor, x0: Tensor) -> Tensor:
        """v but where x0 is free: clipped, and beyond the level already."""
        return v * ((x0 - self.clip) * self.side <= 0)
