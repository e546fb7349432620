"""Keyed random numbers.

Nothing in this package draws from global random state. Each random number belongs to an object (a clip of an epoch, a
training sample, a slot of the generated samples), and its generator is seeded by a hash of this object's key. The
results therefore do not depend on the order of draws, or on the rank or worker.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_of(*parts: int | str) -> int:
    """Returns a 63-bit seed for a key of any parts, e.g. ``seed_of(seed, "crop", epoch, key)``.

    Unlike Python's ``hash``, it is the same in every process and on every machine. (torch's CPU generator uses only 32
    bits of a seed: among 77,000 keys, two share their noise with a probability of one half, which does not affect
    training.)
    """
    parts = tuple(part if isinstance(part, str) else int(part) for part in parts)  # includes numpy's integers
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Creates a torch generator on ``device``, seeded by ``seed_of(*parts)``."""
    return torch.Generator(device=device).manual_seed(seed_of(*parts))


class SeededNoise:
    """Draws standard normal noise for B samples, sample i from its own generator seeded by ``seeds[i]``.

    Sample i is therefore the same in any batch and on any rank. It is drawn on the CPU, so that it is the same on every
    type of device.

    Args:
        seeds: one seed per sample.
        shape: shape of one sample, without the batch dimension.
        device: device to which the noise is moved.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu"):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = tuple(shape), device

    def __call__(self) -> Tensor:
        """Returns the next noise, float32 ``[B, *shape]``."""
        noise = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(noise).to(self.device)
