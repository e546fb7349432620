"""Reports the limits of a schedule and a sampler before training starts."""

import math

from audio_diffusion.diffusion.process import Diffusion
from audio_diffusion.diffusion.schedule import Grid


def _db(ratio: float) -> float:
    return 20 * math.log10(ratio)


def describe(process: Diffusion, grid: Grid | None = None, num_steps: int | None = None) -> list[str]:
    """Describes a process for the user: the remaining signal at the noisy end and the noise floor at the clean end.

    Lines that begin with "warning" are warnings.

    Args:
        process: the process that is trained.
        grid: grid of the sampler that will be used; None leaves the sampler out.
        num_steps: the sampler's number of steps.
    """
    schedule = process.schedule
    alpha, sigma = schedule.at(1.0)
    left = alpha / math.hypot(alpha, sigma)
    first_alpha, first_sigma = schedule.at(schedule.first_time)
    floor = _db(first_sigma / first_alpha)
    steps = "continuous time" if schedule.num_steps is None else f"T = {schedule.num_steps}"
    lines = [
        f"schedule: {schedule.kind}, {steps}; of x_T {left:.4f} is signal; "
        f"the lowest noise is {floor:.0f} dB relative to data of unit variance"
    ]
    if left > 0.1:
        lines.append(
            f"warning: the schedule does not end in noise: {left:.2f} of x_T is signal, but sampling starts from noise "
            "alone, so training looks fine and only noise comes out. Take more steps or larger β: num_steps and "
            "beta_end of the β schedule, which is diffusion.schedule, or diffusion.schedule.schedule where another "
            "schedule is built on it (as in diffusion=default). Or take diffusion=zero_snr; DiffWave's schedule works "
            "with a scaled input, diffusion=diffwave"
        )
    if floor > -50:
        lines.append(
            f"warning: the schedule ends at {floor:.0f} dB of noise: anything quieter is hidden under hiss. "
            "diffusion=default reaches -90 dB; other schedules can be lowered, see configs/diffusion/default.yaml"
        )
    if grid is not None:
        times = grid(schedule, num_steps)
        last_alpha, last_sigma = schedule.at(times[-1])
        last = _db(last_sigma / last_alpha)
        lines.append(f"sampler: {len(times)} steps, the last at {last:.0f} dB of noise; quieter sounds are lost")
    return lines
