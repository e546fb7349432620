"""Random numbers keyed by what they belong to.

Nothing in this package draws from global random state. A draw belongs to something (a clip of an epoch,
a training sample, a slot that is listened to), and its generator is seeded by a hash of that something,
so that the order in which draws happen, and on which rank or worker, never matters.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from any parts, e.g. ``seed_of(seed, "crop", epoch, key)``.

    Unlike Python's ``hash`` it is the same in every process and on every machine. (Of a seed, torch's CPU generator
    uses 32 bits: among 77,000 keys two are as likely as not to share their noise, which training never notices.)
    """
    parts = tuple(part if isinstance(part, str) else int(part) for part in parts)  # numpy's integers too
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on ``device`` seeded by ``seed_of(*parts)``."""
    return torch.Generator(device=device).manual_seed(seed_of(*parts))


class SeededNoise:
    """Standard normal noise for B samples, sample i from its own generator seeded by ``seeds[i]``.

    Sample i is therefore the same in any batch, on any rank. It is drawn on the CPU, so that it is also the
    same on every kind of device.

    Args:
        seeds: one seed a sample.
        shape: shape of one sample, without the batch dimension.
        device: where the drawn noise is put.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu"):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = tuple(shape), device

    def __call__(self) -> Tensor:
        """The next noise, float32 ``[B, *shape]``."""
        noise = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(noise).to(self.device)
