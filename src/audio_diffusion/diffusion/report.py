"""What a schedule and a sampler can do at best, said before any time is spent."""

import math

from audio_diffusion.diffusion.grids import Grid
from audio_diffusion.diffusion.process import Diffusion


def _db(ratio: float) -> float:
    return 20 * math.log10(ratio)


def describe(process: Diffusion, grid: Grid | None = None, num_steps: int | None = None) -> list[str]:
    """Lines for the user: signal left at the noisy end, noise left at the clean one; those to worry about begin with
    "warning".

    Args:
        process: what is trained.
        grid: of the sampler that is to be used, with ``num_steps``; None says nothing of it.
        num_steps: of the sampler.
    """
    schedule = process.schedule
    alpha, sigma = schedule.at(1.0)
    left = alpha / math.hypot(alpha, sigma)
    first_alpha, first_sigma = schedule.at(schedule.first_time)
    floor = _db(first_sigma / first_alpha)
    steps = "continuous time" if schedule.num_steps is None else f"T = {schedule.num_steps}"
    lines = [
        f"schedule: {schedule.kind}, {steps}; of x_T {left:.4f} is signal; "
        f"the least noise is {floor:.0f} dB of data of unit variance"
    ]
    if left > 0.1:
        lines.append(
            f"warning: the schedule does not end in noise: {left:.2f} of x_T is signal, but sampling starts from noise "
            "alone, so training looks fine and only noise comes out. Take more steps or larger β "
            "(diffusion.schedule.num_steps, beta_end), or diffusion=zero_snr; DiffWave's has its input scaled for it, "
            "diffusion=diffwave"
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
