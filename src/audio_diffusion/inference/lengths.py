"""Applies a network trained on one length to signals of any length.

A short signal is the beginning of one window; a long one consists of several.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from audio_diffusion.diffusion.editing.windows import Windowed
from audio_diffusion.diffusion.process import Cond, Net
from audio_diffusion.networks.conditions.condition import Condition, Number


@dataclass(frozen=True)
class Length:
    """The length of a signal, for a network that was trained on windows of another length.

    Args:
        wanted: number of samples of audio in the signal.
        window: number of samples of audio that the network was trained on.
        hop: samples per position of x0.
        frame: samples per frame of a condition.
    """

    wanted: int
    window: int
    hop: int = 1
    frame: int = 1

    @property
    def multiple(self) -> int:
        """The number of samples of which the starts of windows and the generated length are multiples."""
        return math.lcm(self.hop, self.frame)

    @property
    def made(self) -> int:
        """The number of generated samples, of which the first ``wanted`` are used."""
        return max(self.window, -(-self.wanted // self.multiple) * self.multiple)

    def pad(self, audio: Tensor) -> Tensor:
        """Pads ``[.., wanted]`` to ``[.., made]`` with zeros at the end."""
        return F.pad(audio, (0, self.made - self.wanted))

    def net(self, net: Net, conditions: Mapping[str, Condition], sample_rate: int) -> Net:
        """Adapts ``net`` to signals of this length.

        Args:
            net: network for ``window`` samples.
            conditions: the network's conditions by name; each window gets its own start time and its own frames.
            sample_rate: Hz.
        """
        if self.made == self.window:
            return net

        def cond_at(cond: Cond, start: int) -> Cond:
            return {n: self._at(n, conditions[n], value, start * self.hop, sample_rate) for n, value in cond.items()}

        overlap = self.window // 2 // self.multiple * self.multiple
        return Windowed(net, self.window // self.hop, overlap // self.hop, cond_at=cond_at)

    def _at(self, name: str, condition: Condition, value: Tensor, start: int, sample_rate: int) -> Tensor:
        """Returns a condition's value for the window that starts at a sample."""
        if condition.kind == "frames" and value.shape[-1] > 1:  # one frame is "not given"
            per_frame = self.made // value.shape[-1]
            return value[..., start // per_frame : (start + self.window) // per_frame]
        if isinstance(condition, Number) and (condition.field or name) == "seconds_start":
            return (value + start / sample_rate / (condition.high - condition.low)).clamp(max=1)
        return value
