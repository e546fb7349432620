"""Fréchet distance and inception score where they are known in closed form."""

import math

import pytest
import torch

from audio_diffusion.metrics.frechet import am_score, frechet_distance, inception_score, modified_inception_score


def gaussian(mean: torch.Tensor, covariance: torch.Tensor, count: int = 200) -> torch.Tensor:
    """Samples ``[count, D]`` whose mean and covariance are exactly these."""
    white = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    white = white - white.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(white.T)), white.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_of_gaussians_with_the_same_axes() -> None:
    basis = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    ours, theirs = torch.tensor([1.0, 4.0, 0.25]).double(), torch.tensor([9.0, 1.0, 0.25]).double()
    shift = torch.tensor([1.0, -2.0, 0.5]).double()
    a = gaussian(shift, basis @ ours.diag() @ basis.T)
    b = gaussian(torch.zeros(3).double(), basis @ theirs.diag() @ basis.T)
    expected = shift.square().sum() + (ours.sqrt() - theirs.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-9)


def test_of_gaussians_with_other_axes() -> None:
    a, b = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double(), torch.tensor([[3.0, 0.0], [0.0, 0.5]]).double()
    root = math.sqrt(torch.trace(a @ b).item() + 2 * math.sqrt(torch.det(a @ b).item()))  # tr of the root of a 2 x 2
    zero = torch.zeros(2).double()
    expected = torch.trace(a + b).item() - 2 * root
    assert frechet_distance(gaussian(zero, a), gaussian(zero, b)) == pytest.approx(expected, rel=1e-9)


def test_of_the_same_features_it_is_nothing_even_if_they_lie_in_a_plane() -> None:
    flat = torch.randn(10, 2, generator=torch.Generator().manual_seed(2)) @ torch.ones(2, 40)
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-5)
    one = torch.randn(10, 1, generator=torch.Generator().manual_seed(3))
    assert frechet_distance(one + 2, one) == pytest.approx(4, rel=1e-5)


def test_inception_score_counts_classes() -> None:
    certain = 1000 * torch.eye(10)
    assert inception_score(certain) == pytest.approx(10)
    assert inception_score(certain[:4].repeat(3, 1)) == pytest.approx(4)
    assert inception_score(certain[:1].repeat(5, 1)) == pytest.approx(1)
    assert inception_score(torch.zeros(5, 10)) == pytest.approx(1)
    half = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()  # two symmetric classes: log 2 less the entropy of one
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert inception_score(half) == pytest.approx(2 * math.exp(-entropy), rel=1e-6)


def test_modified_inception_score_is_its_definition() -> None:
    logits = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(1)
    divergences = [
        sum((p[i] * (p[i] / p[j]).log()).sum().item() for j in others) / len(others)
        for i in range(12)
        if (others := [j for j in range(12) if j != i and p[j].argmax() == p[i].argmax()])
    ]
    expected = math.exp(sum(divergences) / len(divergences))
    assert modified_inception_score(logits) == pytest.approx(expected, rel=1e-9)
    assert modified_inception_score(1000 * torch.eye(10).repeat(3, 1)) == pytest.approx(1)  # collapsed classes
    with pytest.raises(ValueError, match="at least two samples"):
        modified_inception_score(torch.eye(3))


def test_am_score_counts_certainty_and_missing_classes() -> None:
    certain = 1000 * torch.eye(4).repeat(5, 1)
    assert am_score(certain, certain) == pytest.approx(0, abs=1e-9)
    assert am_score(torch.zeros(8, 4), certain) == pytest.approx(math.log(4))  # entropy alone
    skewed = (torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])).log()
    mean = (0.9 + 0.1 + 0.9) / 3
    divergence = 0.5 * math.log(0.5 / mean) + 0.5 * math.log(0.5 / (1 - mean))
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert am_score(skewed, 1000 * torch.eye(2)) == pytest.approx(divergence + entropy, rel=1e-6)
    with pytest.raises(ValueError, match="expected 2 classes as the reference, got 4"):
        am_score(certain, torch.eye(2))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features: expected \[at least 2, 3\], got \[5, 4\]"):
        frechet_distance(torch.zeros(5, 4), torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"reference: expected \[at least 2, 3\], got \[1, 3\]"):
        frechet_distance(torch.zeros(5, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"logits: expected \[N, classes\], got \[0, 3\]"):
        inception_score(torch.zeros(0, 3))
