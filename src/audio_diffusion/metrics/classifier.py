"""A linear classifier of vectors, and what it says of vectors that it was not fitted to."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from audio_diffusion.diffusion.float64 import in_double


class Classifier(NamedTuple):
    """Multinomial logistic regression of standardised vectors.

    mean, scale: of each component ``[E]``.   weight, bias: ``[K, E]`` and ``[K]``, for K classes.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, vectors: Tensor) -> Tensor:
        """The logits ``[N, K]`` of vectors ``[N, E]``, float64."""
        return functional.linear((in_double(vectors) - self.mean) / self.scale, self.weight, self.bias)


def fit(vectors: Tensor, labels: Tensor, num_classes: int, penalty: float = 10.0) -> Classifier:
    """Fits a classifier by L-BFGS, in float64; the result depends on its arguments alone.

    Args:
        vectors: ``[N, E]``.
        labels: class of each, int64 ``[N]``.
        num_classes: number of classes K.
        penalty: of the squared weights, beside the cross-entropy summed over vectors; with E far above N it should not
            be small.
    """
    vectors = in_double(vectors)
    mean, scale = vectors.mean(0), vectors.std(0, correction=0)
    scale = torch.where(scale > 1e-6 * scale.max().clamp(min=1e-12), scale, 1.0)  # constant components say nothing
    standard = (vectors - mean) / scale
    weight = torch.zeros(num_classes, vectors.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        cross_entropy = functional.cross_entropy(functional.linear(standard, weight, bias), labels)
        value = cross_entropy + penalty / (2 * len(labels)) * weight.square().sum()
        value.backward()
        return value.item()

    with torch.enable_grad():
        optimizer.step(loss)
    return Classifier(mean, scale, weight.detach(), bias.detach())


def held_out_logits(
    vectors: Tensor, labels: Tensor, num_classes: int, penalty: float = 10.0, folds: int = 5, seed: int = 0
) -> Tensor:
    """The logits ``[N, K]`` of each vector by a classifier that was fitted without it: cross-validation, with the
    classes spread evenly over the folds."""
    generator = torch.Generator().manual_seed(seed)
    fold = torch.zeros(len(labels), dtype=torch.int64)
    for label in labels.unique():
        places = (labels == label).nonzero().flatten()
        fold[places[torch.randperm(len(places), generator=generator)]] = torch.arange(len(places)) % folds
    logits = torch.zeros(len(labels), num_classes, dtype=torch.float64)
    for number in range(folds):
        inside = fold == number
        if inside.any():
            logits[inside] = fit(vectors[~inside], labels[~inside], num_classes, penalty).logits(vectors[inside])
    return logits
