"""Precision plugins: which computations use bf16 and which stay in float32."""

from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


def make_precision(precision: str, device: str) -> Precision:
    """Creates Lightning's plugin for ``trainer.precision`` on a type of device ("cuda" or "cpu").

    Raises:
        ValueError: if the precision is not one of ``PRECISIONS``.
    """
    if precision == "32-true":
        return Precision()
    if precision == "bf16-mixed":
        return BF16Mixed("bf16-mixed", device)
    if precision == "bf16-true":
        return BF16True()
    raise ValueError(
        f"trainer.precision: expected auto, {', '.join(PRECISIONS)}, got {precision!r} "
        "(float16 would need its loss scaled)"
    )


class BF16Mixed(MixedPrecision):
    """Autocast to bf16 with gradient clipping for fused optimizers.

    Lightning's plugin refuses to clip the gradients of fused optimizers, because they unscale gradients after clipping.
    That concerns float16 only: in bf16 gradients are not scaled.
    """

    def clip_gradients(self, optimizer: Any, clip_val: Any = 0.0, gradient_clip_algorithm: Any = "norm") -> None:
        Precision.clip_gradients(self, optimizer, clip_val, gradient_clip_algorithm)


class BF16True(Precision):
    """Computes the network entirely in bf16, from a bf16 copy of its weights: activations take half the memory.

    Weights, gradients, optimizer state, the EMA, times, x0 and the loss stay float32. bf16 has 8 significant bits, so
    small updates of a weight would be rounded away, and an average of decay 0.9999 would never change.
    """

    precision = "bf16-true"  # type: ignore[assignment]
    network_dtype = torch.bfloat16  # to which ``DiffusionModule`` casts the inputs and weights of its network
