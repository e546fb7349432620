"""What is known comes back as it was, and the rest from the right conditional distribution."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion.editing.consistency import consistent
from audio_diffusion.diffusion.editing.constraints import Constraint, Kept, LowBand, Unclipped
from audio_diffusion.diffusion.editing.vary import edit
from audio_diffusion.diffusion.editing.windows import Windowed
from audio_diffusion.diffusion.process import Diffusion, Net
from audio_diffusion.diffusion.solvers.dpmpp import dpmpp
from audio_diffusion.diffusion.solvers.unipc import unipc

LENGTH, COUNT = 48, 4000
Cov = Callable[[int], Tensor]
NetOf = Callable[[Diffusion, Tensor], Net]
INPAINT = torch.tensor([*[True] * 16, *[False] * 16, *[True] * 16])
CONTINUE = torch.tensor([*[True] * 30, *[False] * 18])


def snr_db(estimate: Tensor, clip: Tensor) -> float:
    return (10 * torch.log10(clip.square().mean() / (estimate - clip).square().mean())).item()


def conditional(cov: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Of N(0, cov) given its products with the rows of ``known`` ``[K, T]``: gain ``[T, K]`` and covariance."""
    gain = cov @ known.T @ torch.linalg.inv(known @ cov @ known.T)
    return gain, cov - gain @ known @ cov


def low_rows(length: int, num_bins: int) -> Tensor:
    """An orthonormal basis of the signals of the first bins."""
    basis = torch.fft.irfft(torch.eye(length // 2 + 1, dtype=torch.complex128)[:num_bins], n=length)
    turned = torch.fft.irfft(1j * torch.eye(length // 2 + 1, dtype=torch.complex128)[1:num_bins], n=length)
    rows = torch.cat([basis, turned])
    return rows / rows.norm(dim=1, keepdim=True)


def linear_problem(name: str, clip: Tensor) -> tuple[Constraint, Tensor]:
    """The constraint, and the rows that it knows the products with."""
    if name == "low band":
        return LowBand(clip, 6.5 / LENGTH), low_rows(LENGTH, 7)
    keep = INPAINT if name == "inpaint" else CONTINUE
    return Kept(clip, keep.expand(len(clip), 1, -1)), torch.eye(LENGTH, dtype=torch.float64)[keep]


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["inpaint", "continue", "low band"])
@pytest.mark.parametrize("sampler", [partial(unipc, num_steps=20), partial(dpmpp, eta=1.0, num_steps=40)])
def test_the_unknown_has_its_conditional_mean_and_covariance(
    problem: str, sampler: Callable[..., Tensor], process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable
) -> None:
    cov = covariance(LENGTH)
    clip = draw(cov, 1, seed=3).expand(COUNT, -1, -1)
    constraint, rows = linear_problem(problem, clip)
    x0 = edit(net_of(process, cov), process, sampler, clip, range(COUNT), {}, constraint=constraint, iterations=3)
    gain, true = conditional(cov, rows)
    made, std = x0[:, 0].double(), true.trace().sqrt()
    assert ((made.mean(0) - gain @ rows @ clip[0, 0].double()).norm() / std).item() < 0.1  # by chance 1/√4000 = 0.016
    got = torch.cov(made.T)
    assert ((got - true).norm() / true.norm()).item() < 0.12
    assert got.trace().item() == pytest.approx(true.trace().item(), rel=0.1)


def test_plain_projection_is_worse(process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable) -> None:
    """Which the gradients are there for: without them the estimate knows the kept part as noisy only."""
    cov = covariance(LENGTH)
    clip = draw(cov, 2000)
    constraint, rows = linear_problem("inpaint", clip)
    gain, _ = conditional(cov, rows)
    best = (gain @ rows @ clip[:, 0].double().T).T[:, ~INPAINT]
    off = []
    for iterations in (0, 1, 2):
        x0 = edit(
            net_of(process, cov), process, unipc, clip, range(2000), {}, constraint=constraint, iterations=iterations
        )
        off.append((x0[:, 0, ~INPAINT] - best).square().mean().item())
    assert off[0] > 1.04 * off[1] > 1.0 * off[2]


def test_kept_samples_come_back_bit_by_bit(process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable) -> None:
    cov = covariance(LENGTH)
    clip = draw(cov, 4).expand(-1, 2, -1) * 0.3
    keep = torch.rand(4, 2, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.5
    given = torch.where(keep, clip, torch.nan)  # what is not kept is not looked at
    for iterations in (0, 2):
        constraint = Kept(given, keep)
        x0 = edit(
            net_of(process, cov), process, unipc, clip, range(4), {}, constraint=constraint, iterations=iterations
        )
        assert torch.equal(x0[keep], clip[keep])
        assert x0.isfinite().all()


def test_no_step_at_the_edges(process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable) -> None:
    """Level, jump from sample to sample and spectrum are at the edges of a gap as everywhere."""
    cov = covariance(LENGTH)
    clip = draw(cov, COUNT)
    constraint, _ = linear_problem("inpaint", clip)
    x0 = edit(net_of(process, cov), process, unipc, clip, range(COUNT), {}, constraint=constraint)[:, 0]
    frames = torch.fft.rfft(x0.unfold(1, 16, 1) * torch.hann_window(16)).abs().square().mean(0)
    expected = torch.fft.rfft(clip[:, 0].unfold(1, 16, 1) * torch.hann_window(16)).abs().square().mean((0, 1))
    for measured, usual, most_db in (
        (x0.square().mean(0), 1.0, 0.4),
        (x0.diff(dim=1).square().mean(0), 2 - 2 * cov[0, 1].item(), 0.4),
        (frames, expected, 0.8),
    ):
        assert (10 * torch.log10(measured / usual)).abs().max().item() < most_db  # by chance 0.1 dB each


def test_low_band_stays(process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable) -> None:
    clip = draw(covariance(LENGTH), 8)
    x0 = edit(
        net_of(process, covariance(LENGTH)), process, unipc, clip, range(8), {}, constraint=LowBand(clip, 6.5 / LENGTH)
    )
    low = torch.fft.rfft(x0)[..., :7], torch.fft.rfft(clip)[..., :7]
    assert snr_db(torch.view_as_real(low[0]), torch.view_as_real(low[1])) > 100
    assert snr_db(x0, clip) < 20


def test_declipping(process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable) -> None:
    """What was not clipped stays, what was lies beyond, as far as in truth, and is as near to it as a draw from the
    posterior itself: by Gibbs' sampler that is 1.5 dB nearer than what was clipped."""
    cov, level = covariance(LENGTH), 1.0
    clean = draw(cov, 500)
    clipped = clean.clamp(-level, level)
    net, whole = net_of(process, cov), clipped.abs() < level
    x0 = edit(net, process, unipc, clipped, range(500), {}, constraint=Unclipped(clipped, clipped.abs() >= level))
    assert torch.equal(x0[whole], clipped[whole])
    assert (x0[clipped == level] >= level).all()
    assert (x0[clipped == -level] <= -level).all()
    beyond = (x0.abs() - level)[~whole]
    torch.testing.assert_close(beyond.mean(), (clean.abs() - level)[~whole].mean(), rtol=0.1, atol=0)
    torch.testing.assert_close(beyond.std(), (clean.abs() - level)[~whole].std(), rtol=0.1, atol=0)
    assert snr_db(x0, clean) > snr_db(clipped, clean) + 1.3


def test_a_sample_is_the_same_in_any_batch(process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable) -> None:
    cov = covariance(LENGTH)
    net, clip = net_of(process, cov), draw(cov, 3)

    def made(which: list[int]) -> Tensor:
        constraint = Kept(clip[which], INPAINT.expand(len(which), 1, -1))
        return edit(net, process, unipc, clip[which], which, {}, constraint=constraint, iterations=3)

    together = made([0, 1, 2])
    torch.testing.assert_close(together, torch.cat([made([i]) for i in range(3)]), rtol=1e-4, atol=1e-4)


def test_no_gradients_are_kept_and_weights_get_none(process: Diffusion) -> None:
    weight = torch.ones(1, requires_grad=True)
    clip = torch.zeros(2, 1, 8)
    constraint = Kept(clip, torch.ones(2, 1, 8, dtype=torch.bool))
    x0 = edit(lambda x, t, cond: weight * x, process, unipc, clip, [0, 1], {}, constraint=constraint)
    assert not x0.requires_grad
    assert weight.grad is None


def test_a_long_signal_is_repaired_in_windows(
    process: Diffusion, covariance: Cov, net_of: NetOf, draw: Callable
) -> None:
    """Windows are a network, so a constraint holds over them, gradients and all."""
    whole = covariance(2 * LENGTH)
    clip = draw(whole, 1000)
    keep = torch.ones(1000, 1, 2 * LENGTH, dtype=torch.bool)
    keep[:, :, LENGTH - 8 : LENGTH + 8] = False
    constraint = Kept(clip, keep)
    net = Windowed(net_of(process, covariance(LENGTH)), LENGTH, batch_size=1500)
    x0 = edit(net, process, unipc, clip, range(1000), {}, constraint=constraint)
    known = keep[0, 0]
    gain, true = conditional(whole, torch.eye(2 * LENGTH, dtype=torch.float64)[known])
    off = (x0[:, 0].double() - clip[:, 0, known].double() @ gain.T)[:, ~known]
    assert off.square().mean().item() == pytest.approx(true.diagonal()[~known].mean().item(), rel=0.1)


def test_bad_values_are_refused(process: Diffusion) -> None:
    clip = torch.zeros(2, 1, 8)
    with pytest.raises(ValueError, match=r"keep: expected a bool mask of shape \[2, 1, 8\]"):
        Kept(clip, torch.ones(2, 1, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="keep: expected a bool mask"):
        Kept(clip, torch.ones(2, 1, 8))
    with pytest.raises(ValueError, match=r"cutoff: expected a fraction of the sample rate inside \(0, 0.5\), got 8000"):
        LowBand(clip, 8000)
    with pytest.raises(ValueError, match="clipped: expected bool"):
        Unclipped(clip, clip)
    with pytest.raises(ValueError, match="iterations: expected 0 or more"):
        consistent(process.denoiser(lambda x, t, cond: x, {}), process, Unclipped(clip, clip > 1), -1)
