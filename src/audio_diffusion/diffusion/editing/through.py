"""Applies constraints on audio to an x0 that is another exact representation of the audio."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from audio_diffusion.diffusion.editing.constraints import Constraint


class Transform(Protocol):
    """The members of a representation that ``Through`` needs: a linear map and its inverse."""

    elementwise: bool

    def encode(self, audio: Tensor) -> Tensor: ...

    def decode(self, x0: Tensor) -> Tensor: ...


class Through(Constraint):
    """Applies a constraint on audio to x0 = encode(audio), for a linear ``encode`` with the inverse ``decode``.

    The constrained quantity is A x0 = P decode(x0). x0 is projected by decoding, projecting the audio and encoding
    again; if x0 given x_t is Gaussian, the conditional mean lies in the directions Aᵀv, which ``adjoint`` returns.

    Args:
        constraint: of audio ``[B, C, T]``.
        transform: between audio and x0.
    """

    def __init__(self, constraint: Constraint, transform: Transform):
        self.constraint, self.transform = constraint, transform

    def onto(self, x0: Tensor) -> Tensor:
        """Returns x0 of the projected audio, which satisfies the constraint."""
        return self.transform.encode(self.constraint.onto(self.transform.decode(x0)))

    def project(self, v: Tensor, x0: Tensor) -> Tensor:
        """Returns x0 of the projection of v's audio."""
        audio = self.constraint.project(self.transform.decode(v), self.transform.decode(x0))
        return self.transform.encode(audio)

    def adjoint(self, v: Tensor) -> Tensor:
        """Returns decodeᵀ of the audio of v, by one backward pass through ``decode``."""
        with torch.enable_grad():
            leaf = torch.zeros_like(v).requires_grad_()
            audio = self.transform.decode(leaf)
        return torch.autograd.grad(audio, leaf, self.transform.decode(v).detach())[0]


def constraint_on_x0(transform: Transform, audio: Tensor, constraint: Callable[[Tensor], Constraint]) -> Constraint:
    """Creates a constraint on x0 from one on audio.

    Args:
        transform: converts between audio and x0. If x0 is the audio times a factor, x0 itself is constrained.
        audio: the clip ``[B, C, T]``.
        constraint: creates the constraint from the clip.
    """
    if transform.elementwise:
        return constraint(transform.encode(audio))
    return Through(constraint(audio), transform)
