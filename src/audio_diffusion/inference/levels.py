"""How loud is a sound, and is it one? Said of what a model makes, before anybody listens."""

import math

import torch
from torch import Tensor

SILENT = 1e-3  # peak: -60 dBFS
MOSTLY_CLIPPED, MOSTLY_DC, LEAST_DC = 0.1, 0.5, 0.05  # part of the samples; of the power; of full scale


def dbfs(magnitude: float) -> float:
    """Decibels of full scale, at least -120."""
    return 20 * math.log10(max(magnitude, 1e-6))


def trouble(clip: Tensor) -> str:
    """What is wrong with a clip ``[C, T]``, with the figures: samples that are not finite, silence, a constant offset,
    more than a tenth of the samples over full scale. Empty where it may be a sound."""
    clip = clip.detach().cpu().float()
    if finite := 100 * (1 - clip.isfinite().float().mean().item()):
        return f"{finite:.3g} % of the samples are not finite"
    peak, offset = clip.abs().max().item(), clip.mean(1).abs().max().item()
    power, over = clip.square().mean().item(), (clip.abs() > 1).float().mean().item()
    if peak < SILENT:
        return f"silent, peak {dbfs(peak):.0f} dBFS"
    if over > MOSTLY_CLIPPED:
        return f"{100 * over:.0f} % of the samples over full scale, peak {dbfs(peak):+.1f} dBFS"
    if offset > LEAST_DC and offset**2 > MOSTLY_DC * power:
        return f"a constant offset of {offset:.2f}, RMS {power**0.5:.2f}"
    return ""


def limited(clip: Tensor) -> Tensor:
    """The clip, scaled down to full scale where it is louder; what is not finite is silence."""
    clip = clip.nan_to_num(0.0, 0.0, 0.0)
    peak = clip.abs().max()
    return clip / peak if peak > 1 else clip


def limited_name(name: str, clip: Tensor) -> str:
    """The name of a clip, and its own peak where ``limited`` changes it."""
    peak = clip.nan_to_num(torch.inf).abs().max().item()
    return f"{name} (peak {dbfs(peak):+.0f} dBFS)" if peak > 1 else name


def told(troubles: dict[str, str], count: int) -> str:
    """One line of what is wrong with some of ``count`` clips, by name; the first five are named."""
    named = [f"{name}: {words}" for name, words in list(troubles.items())[:5]]
    more = [f"and {len(troubles) - 5} more"] if len(troubles) > 5 else []
    return f"{len(troubles)} of {count} are hardly sound: " + "; ".join(named + more)
