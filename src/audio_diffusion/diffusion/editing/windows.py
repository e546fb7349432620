"""Signals longer than a network was trained on: overlapping windows, denoised jointly."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from audio_diffusion.diffusion.process import Cond, Net


def starts(length: int, window: int, hop: int) -> list[int]:
    """Returns the starts of windows: every ``hop`` samples, with the last window at the end of the signal."""
    return [*range(0, length - window, hop), length - window]


class Windowed:
    """Applies a network trained on ``window`` samples to longer signals; called in the same way as the network.

    At each step the output at every sample is the mean of the outputs of the windows that contain it (MultiDiffusion,
    Bar-Tal et al. 2023, arXiv:2302.08113, eq. 5); x0 and noise are linear in the output, so averaging outputs averages
    them too. A window has the least context at its edges, so its weight falls towards them, as sin² over the overlap.
    Measured in benchmarks/editing.

    For a signal shorter than a window, generate ``window`` samples and keep the first ones, which have the right
    distribution with any network.

    Args:
        net: network for ``window`` samples.
        window: length of the signals that the network was trained on, in samples.
        overlap: number of samples that neighbouring windows share; None for half the window.
        batch_size: windows per call of ``net``; it bounds the memory, as gradients are recomputed window by window.
        cond_at: returns the conditions of the window that starts at a sample from those of the signal; None if all
            windows have the same.

    Raises:
        ValueError: if the overlap is negative or more than half the window, or the batch size is below 1.
    """

    def __init__(
        self,
        net: Net,
        window: int,
        overlap: int | None = None,
        batch_size: int = 16,
        cond_at: Callable[[Cond, int], Cond] | None = None,
    ):
        overlap = window // 2 if overlap is None else overlap
        if not 0 <= overlap <= window // 2:
            raise ValueError(f"overlap: expected 0 to half the window of {window} samples, got {overlap}")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1 window, got {batch_size}")
        self.net, self.window, self.hop, self.batch_size = net, window, window - overlap, batch_size
        self.cond_at = cond_at or (lambda cond, start: cond)
        ramp = torch.arange(window).minimum(torch.arange(window).flip(0)) + 0.5
        self.weight = (
            torch.sin(0.5 * torch.pi * (ramp / overlap).clamp(max=1)).square() if overlap else torch.ones(window)
        )

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Computes the output ``[B, C, L]`` for x_t ``[B, C, L]``.

        Raises:
            ValueError: if L is less than the window.
        """
        length = x_t.shape[-1]
        if length < self.window:
            raise ValueError(
                f"x_t: expected at least the window of {self.window} samples, got {length}; generate a window and keep "
                "its beginning"
            )
        places = starts(length, self.window, self.hop)
        windows = torch.cat([x_t[..., start : start + self.window] for start in places])
        conds = [self.cond_at(cond, start) for start in places]
        every = {name: torch.cat([one[name] for one in conds]) for name in conds[0]}
        outputs = self._outputs(windows, t.repeat(len(places)), every).chunk(len(places))
        weight = self.weight.to(x_t)
        total, weights = torch.zeros_like(x_t), x_t.new_zeros(length)
        for start, output in zip(places, outputs, strict=True):
            total[..., start : start + self.window] += output * weight
            weights[start : start + self.window] += weight
        return total / weights

    def _outputs(self, windows: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Evaluates the network on all windows, ``batch_size`` at a time; with gradients, activations are recomputed in
        the backward pass."""
        outputs = []
        for first in range(0, len(windows), self.batch_size):
            part = slice(first, first + self.batch_size)
            given = windows[part], t[part], {name: value[part] for name, value in cond.items()}
            if windows.requires_grad:
                outputs.append(checkpoint(self.net, *given, use_reentrant=False, preserve_rng_state=False))
            else:
                outputs.append(self.net(*given))
        return torch.cat(outputs)
