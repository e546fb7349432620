"""Metrics of a set of samples by a classifier: Fréchet distance of its features (FID), inception score (IS), its
modification for variety within classes (mIS), and AM score."""

import math

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
    _check_logits(logits)
    log_p = in_double(logits).log_softmax(1)
    log_mean = log_p.logsumexp(0) - torch.tensor(len(logits), dtype=torch.float64).log()
    return (log_p.exp() * (log_p - log_mean)).sum(1).mean().exp().item()


def modified_inception_score(logits: Tensor) -> float:
    """exp of the mean KL divergence between p(y|x) of two samples of one predicted class, mIS (Gurumurthy et al. 2017,
    arXiv:1706.02071, section 4.1).

    It measures certainty together with variety *within* classes, which the inception score does not see: 1 if the
    predictions of all samples of a class are equal. Classes count by their number of samples, and a class with a single
    sample is left out.

    Args:
        logits: of N samples, ``[N, classes]``.

    Raises:
        ValueError: for another shape, or if no class has two samples.
    """
    _check_logits(logits)
    log_p = in_double(logits).log_softmax(1)
    predicted = log_p.argmax(1)
    total, count = 0.0, 0
    for label in predicted.unique():
        members = log_p[predicted == label]
        n = len(members)
        if n < 2:
            continue
        # Σ_{i≠j} KL(p_i ‖ p_j) = Σ_i Σ_y p_i(y)·(n·log p_i(y) - Σ_j log p_j(y)), over n - 1 partners of each
        divergence = (members.exp() * (n * members - members.sum(0))).sum()
        total, count = total + divergence.item() / (n - 1), count + n
    if not count:
        raise ValueError("logits: expected at least two samples that are given one class, got none")
    return float(torch.tensor(total / count, dtype=torch.float64).exp())


def am_score(logits: Tensor, reference_logits: Tensor) -> float:
    """AM score: KL divergence of the mean real prediction from the mean generated one, plus the mean entropy of the
    generated predictions (Zhou et al. 2018, arXiv:1703.02000, section 5.2).

    Lower is better: 0 if every sample is classified with certainty and classes are as frequent as in the reference.

    Args:
        logits: of N generated samples, ``[N, classes]``.
        reference_logits: of M real samples, ``[M, classes]``.

    Raises:
        ValueError: for other shapes, or no sample.
    """
    _check_logits(logits)
    _check_logits(reference_logits, "reference_logits")
    if logits.shape[1] != reference_logits.shape[1]:
        raise ValueError(
            f"logits: expected {reference_logits.shape[1]} classes as the reference, got {logits.shape[1]}"
        )
    log_p, log_real = (in_double(values).log_softmax(1) for values in (logits, reference_logits))
    log_mean, log_mean_real = (values.logsumexp(0) - math.log(len(values)) for values in (log_p, log_real))
    divergence = (log_mean_real.exp() * (log_mean_real - log_mean)).sum()
    entropy = -(log_p.exp() * log_p).sum(1).mean()
    return (divergence + entropy).item()


def _check_logits(logits: Tensor, name: str = "logits") -> None:
    if logits.ndim != 2 or not len(logits):
        raise ValueError(f"{name}: expected [N, classes], got {list(logits.shape)}")
