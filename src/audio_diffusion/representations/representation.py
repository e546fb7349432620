"""The contract of a representation: the conversion between audio and the signal that is diffused."""

from typing import Protocol

from torch import Tensor

from audio_diffusion.diffusion.contracts import Member, check


class Representation(Protocol):
    """Turns audio ``[B, C, T]`` (float, full scale ±1) into x0 ``[B, D, L]``, the signal that is diffused, and back.

    A position of x0 stands for ``hop`` samples of audio: L = T / hop, and T must be a multiple of ``hop``. x0 should
    have about unit variance, as the noise of the schedules has. Everything else in the project that depends on the
    kind of signal (masks, crop lengths, windows of long audio, editing, likelihood) uses these members alone.

    A class with these members can come from any package:
    ``representation._target_=my_package.MyRepresentation representation.my_option=1``.

    Attributes:
        hop: samples of audio per position of x0.
        exact: whether ``decode(encode(audio))`` is the audio up to rounding and ``encode`` is linear. False for latents
            of an autoencoder. The likelihood and sample-exact editing need it.
        elementwise: whether x0 is the audio times a positive factor. Constraints on audio samples, such as fixed
            values of some of them, then apply to x0 directly.

    A representation whose options depend on the data may have a method ``statistics(clips) -> dict`` as well: it
    receives training clips ``[C, T]`` before a new run starts, and returns arguments of the constructor, which are
    stored in the run's configuration.
    """

    hop: int
    exact: bool
    elementwise: bool

    def shape(self, channels: int, num_samples: int) -> tuple[int, int]:
        """(D, L) of one x0 for audio ``[channels, num_samples]``.

        Raises:
            ValueError: if ``num_samples`` is not a multiple of ``hop``.
        """
        ...

    def encode(self, audio: Tensor) -> Tensor:
        """Audio ``[B, C, T]`` -> x0 ``[B, D, L]``."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """x0 ``[B, D, L]`` -> audio ``[B, C, L · hop]``. Nothing is clipped."""
        ...

    def mask(self, valid: Tensor) -> Tensor:
        """Converts a mask of the samples that belong to a clip, bool ``[B, 1, T]``, to positions, ``[B, 1, L]``."""
        ...

    def log_det(self, channels: int, num_samples: int) -> float:
        """ln |det ∂x0/∂audio| of ``encode`` for audio ``[channels, num_samples]``, for the change of variables of a
        density. It is called only if ``exact`` is true."""
        ...


_MEMBERS = {
    "hop": Member("hop: int, samples of audio per position of x0", int),
    "exact": Member("exact: bool, whether decode(encode(audio)) is the audio", bool),
    "elementwise": Member("elementwise: bool, whether x0 is the audio times a factor", bool),
    "shape": Member("shape(channels: int, num_samples: int) -> tuple[int, int]", arguments=2),
    "encode": Member("encode(audio: Tensor) -> Tensor, [B, C, T] -> [B, D, L]", arguments=1),
    "decode": Member("decode(x0: Tensor) -> Tensor, [B, D, L] -> [B, C, T]", arguments=1),
    "mask": Member("mask(valid: Tensor) -> Tensor, bool [B, 1, T] -> [B, 1, L]", arguments=1),
    "log_det": Member("log_det(channels: int, num_samples: int) -> float", arguments=2),
}


def check_representation(representation: object) -> None:
    """Checks that an object is a ``Representation``.

    Raises:
        ValueError: naming its class, the member that is missing or wrong, and the declaration that is expected.
    """
    check(representation, "representation (audio_diffusion.representations.representation)", _MEMBERS)


def check_length(num_samples: int, hop: int) -> None:
    """Raises a ``ValueError`` that names the nearest valid lengths, if ``num_samples`` is not a multiple of ``hop``."""
    if num_samples < hop or num_samples % hop:
        below = max(num_samples // hop, 1) * hop
        raise ValueError(
            f"num_samples: expected a multiple of {hop}, the samples of a position, such as {below} or {below + hop}, "
            f"got {num_samples}"
        )
