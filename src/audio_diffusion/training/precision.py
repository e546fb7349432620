"""What is computed in bf16, and what never is."""

from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import nn

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


def make_precision(precision: str, device: str) -> Precision:
    """Lightning's plugin for ``trainer.precision`` on a kind of device ("cuda" or "cpu").

    Raises:
        ValueError: for a precision that is not one of ``PRECISIONS``.
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
    """Autocast. Lightning's own refuses to clip the gradients of fused optimizers, which is right for float16 alone:
    those unscale gradients after the clipping, and in bf16 nothing is scaled."""

    def clip_gradients(self, optimizer: Any, clip_val: Any = 0.0, gradient_clip_algorithm: Any = "norm") -> None:
        Precision.clip_gradients(self, optimizer, clip_val, gradient_clip_algorithm)


class BF16True(Precision):
    """The network computes in bf16 throughout, from a bf16 copy of its weights: activations take half the memory.

    Weights, gradients, the optimizer's moments, the EMA, times, x0 and the loss stay float32. bf16 keeps 8 bits: small
    steps of a weight would be rounded away, and an average of decay 0.9999 would never move.
    """

    precision = "bf16-true"  # type: ignore[assignment]

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Tells the DiffusionModule, which casts what its network is given."""
        module.compute_dtype = torch.bfloat16  # type: ignore[assignment]
        return module
