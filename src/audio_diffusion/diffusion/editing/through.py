"""What is known of audio, as something known of an x0 that is another exact representation of it."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from audio_diffusion.diffusion.editing.constraints import Constraint


class Transform(Protocol):
    """What is needed of a representation: a linear map and its inverse."""

    elementwise: bool

    def encode(self, audio: Tensor) -> Tensor: ...

    def decode(self, x0: Tensor) -> Tensor: ...


class Through(Constraint):
    """A constraint on audio, put on x0 = encode(audio) for a linear ``encode`` with the inverse ``decode``.

    The known is A x0 = P decode(x0). The set of all x0 for which it is true is reached by going to the audio and back;
    where x0 given x_t is Gaussian, the conditional mean is found in the directions Aᵀv, which ``adjoint`` gives.

    Args:
        constraint: of audio ``[B, C, T]``.
        transform: between audio and x0.
    """

    def __init__(self, constraint: Constraint, transform: Transform):
        self.constraint, self.transform = constraint, transform

    def onto(self, x0: Tensor) -> Tensor:
        """x0 of the audio of which the known is true."""
        return self.transform.encode(self.constraint.onto(self.transform.decode(x0)))

    def project(self, v: Tensor, x0: Tensor) -> Tensor:
        """x0 of the part of v's audio that binds."""
        audio = self.constraint.project(self.transform.decode(v), self.transform.decode(x0))
        return self.transform.encode(audio)

    def adjoint(self, v: Tensor) -> Tensor:
        """decodeᵀ of the audio of v, by one backward pass through ``decode``."""
        with torch.enable_grad():
            leaf = torch.zeros_like(v).requires_grad_()
            audio = self.transform.decode(leaf)
        return torch.autograd.grad(audio, leaf, self.transform.decode(v).detach())[0]


def known_of(transform: Transform, audio: Tensor, constraint: Callable[[Tensor], Constraint]) -> Constraint:
    """A constraint on x0.

    Args:
        transform: between audio and x0. Where x0 is the audio times a factor, the constraint is made of x0 itself.
        audio: the clip ``[B, C, T]``.
        constraint: makes the constraint of the clip.
    """
    if transform.elementwise:
        return constraint(transform.encode(audio))
    return Through(constraint(audio), transform)
