"""Metrics of a set of samples by a classifier: Fréchet distance of its features, and inception score."""

import torch
from torch import Tensor

from audio_diffusion.diffusion.float64 import in_double


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (FID, Heusel et al. 2017, arXiv:1706.08500).

    |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2·(Σ₁Σ₂)^½), in float64. It is biased upwards for few samples, so compare sets of equal
    size.

    Args:
        features: ``[N, D]``.
        reference: ``[M, D]``.

    Raises:
        ValueError: for other shapes, or fewer than two samples in a set.
    """
    for name, value in (("features", features), ("reference", reference)):
        if value.ndim != 2 or len(value) < 2 or value.shape[1] != reference.shape[1]:
            raise ValueError(f"{name}: expected [at least 2, {reference.shape[-1]}], got {list(value.shape)}")
    features, reference = in_double(features), in_double(reference)
    ours, theirs = (torch.atleast_2d(torch.cov(of_set.T)) for of_set in (features, reference))
    # the trace of (Σ₁Σ₂)^½ is the sum of the singular values of Σ₁^½·Σ₂^½
    mixed = torch.linalg.svdvals(_root(ours) @ _root(theirs)).sum()
    means = (features.mean(0) - reference.mean(0)).square().sum()
    return (means + ours.trace() + theirs.trace() - 2 * mixed).item()


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def inception_score(logits: Tensor) -> float:
    """exp of the mean KL divergence of p(y|x) from p(y) (Salimans et al. 2016, arXiv:1606.03498, section 4).

    It is 1 if all samples get the same class or none is classified with any certainty, and at most the number of
    classes.

    Args:
        logits: of N samples, ``[N, classes]``.

    Raises:
        ValueError: for another shape, or no sample.
    """
    if logits.ndim != 2 or not len(logits):
        raise ValueError(f"logits: expected [N, classes], got {list(logits.shape)}")
    log_p = in_double(logits).log_softmax(1)
    log_mean = log_p.logsumexp(0) - torch.tensor(len(logits), dtype=torch.float64).log()
    return (log_p.exp() * (log_p - log_mean)).sum(1).mean().exp().item()
