"""Measures levels of generated clips, and detects clips that are silent, clipped or otherwise unusable."""

import math

import torch
from torch import Tensor

SILENT = 1e-3  # peak: -60 dBFS
MOSTLY_CLIPPED, MOSTLY_DC, LEAST_DC = 0.1, 0.5, 0.05  # fractions of: the samples, the power, full scale


def dbfs(magnitude: float) -> float:
    """Converts a magnitude to dBFS, at least -120."""
    return 20 * math.log10(max(magnitude, 1e-6))


def trouble(clip: Tensor) -> str:
    """Describes the fault of a clip ``[C, T]``, with figures; empty if there is none.

    Faults are samples that are not finite, silence, more than a tenth of the samples over full scale, and a constant
    offset.
    """
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
    """Scales a clip down to full scale if it is louder; samples that are not finite become 0."""
    clip = clip.nan_to_num(0.0, 0.0, 0.0)
    peak = clip.abs().max()
    return clip / peak if peak > 1 else clip


def limited_name(name: str, clip: Tensor) -> str:
    """Returns the name of a clip, with its peak added if ``limited`` changes the clip."""
    peak = clip.nan_to_num(torch.inf).abs().max().item()
    return f"{name} (peak {dbfs(peak):+.0f} dBFS)" if peak > 1 else name


def summary(troubles: dict[str, str], count: int) -> str:
    """Formats the faults of some of ``count`` clips, by name, in one line; the first five are named."""
    named = [f"{name}: {words}" for name, words in list(troubles.items())[:5]]
    more = [f"and {len(troubles) - 5} more"] if len(troubles) > 5 else []
    verb = "is" if len(troubles) == 1 else "are"
    return f"{len(troubles)} of {count} {verb} not usable audio: " + "; ".join(named + more)
