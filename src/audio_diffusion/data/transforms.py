"""Augmentation: random changes to a crop that depend only on its seed."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

_MAX_GAIN_DB = 60.0


class Augment:
    """Draws a gain, a polarity and an order of the channels for each crop.

    Args:
        gain_db: lowest and highest gain, dB; the gain is drawn uniformly between them.
        invert: whether to flip the polarity of half of the crops.
        swap_channels: whether to reverse the order of the channels of half of the crops (left and right of stereo).

    Raises:
        ValueError: for an invalid range, or one beyond ±60 dB.
    """

    def __init__(self, gain_db: Sequence[float] = (0.0, 0.0), invert: bool = False, swap_channels: bool = False):
        if len(gain_db) != 2 or not -_MAX_GAIN_DB <= gain_db[0] <= gain_db[1] <= _MAX_GAIN_DB:
            raise ValueError(f"gain_db: expected [lowest, highest] within ±{_MAX_GAIN_DB:g} dB, got {list(gain_db)}")
        self.gain_db, self.invert, self.swap_channels = tuple(gain_db), invert, swap_channels

    def __bool__(self) -> bool:
        """Whether any augmentation is active."""
        return self.gain_db != (0, 0) or self.invert or self.swap_channels

    def __call__(self, audio: Tensor, seed: int) -> None:
        """Changes a crop ``[C, T]`` in place."""
        gain, sign, order = np.random.default_rng(seed).uniform(size=3)
        low, high = self.gain_db
        factor = 10 ** ((low + (high - low) * gain) / 20)
        audio *= -factor if self.invert and sign < 0.5 else factor
        if self.swap_channels and order < 0.5:
            audio.copy_(audio.flip(0))
