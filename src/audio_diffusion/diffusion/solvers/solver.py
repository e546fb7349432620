"""The contract of a solver.

    solver(denoise, x_t, schedule, draw_noise, num_steps=.., grid=.., on_step=..) -> x0

A solver is a function. With its own options bound (``functools.partial``, or ``_partial_: true`` in YAML) the rest of
the project calls it a sampler. To add one, write such a function in a separate module and a YAML next to
``configs/sampler/ddim.yaml`` that names it; ``ddim`` is the shortest example.

A solver reads alpha_t, sigma_t and lambda_t = log(alpha_t/sigma_t) from ``schedule.levels(grid, num_steps)``, so it
works on every process. They are plain numbers, computed before the loop: nothing in the loop waits for the device.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from audio_diffusion.diffusion.denoiser import Denoiser, Prediction
from audio_diffusion.diffusion.schedule import Grid, Schedule

#: called with the time and the estimate of x0 ``[B, D, L]`` after each network call: previews, progress, interruption
OnStep = Callable[[float, Tensor], None]

#: a solver with its own options bound; called like ``Solver``, with num_steps and grid optional
Sampler = Callable[..., Tensor]


class Solver(Protocol):
    """Integrates from noise to a signal."""

    def __call__(
        self,
        denoise: Denoiser,
        x_t: Tensor,
        schedule: Schedule,
        draw_noise: Callable[[], Tensor],
        *,
        num_steps: int | None = ...,
        grid: Grid = ...,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Samples x0 ``[B, D, L]``, of x_t's dtype.

        Args:
            denoise: estimates x0 and noise. Editing constraints and guidance are part of it.
            x_t: standard normal noise ``[B, D, L]``, which the solver scales to the standard deviation of the first
                level; it is not changed.
            schedule: alpha_t and sigma_t.
            draw_noise: returns fresh standard normal noise of x_t's shape. A deterministic solver never calls it.
            num_steps: number of levels; None for every step of the schedule.
            grid: the times at which the network is called, ``diffusion.grids``.
            on_step: called after each network call with (t, estimate of x0), which it may keep.

        Raises:
            ValueError: for an option out of its range, or more steps than the schedule has.
        """


def reporting(denoise: Denoiser, on_step: OnStep | None) -> Denoiser:
    """``denoise``, with each estimate of x0 passed to ``on_step``; t is a number."""
    if on_step is None:
        return denoise

    def reported(x_t: Tensor, t: Tensor | float) -> Prediction:
        prediction = denoise(x_t, t)
        assert not isinstance(t, Tensor)
        on_step(t, prediction.x0)
        return prediction

    return reported
