"""Long signals: at the joins of the windows level and spectrum are as elsewhere."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from audio_diffusion.diffusion.editing.windows import Windowed, starts
from audio_diffusion.diffusion.generation import generate
from audio_diffusion.diffusion.process import Cond, Diffusion, Net
from audio_diffusion.diffusion.solvers.unipc import unipc

WINDOW, FRAME = 96, 32
Cov = Callable[[int], Tensor]
NetOf = Callable[[Diffusion, Tensor], Net]


def made_covariance(net: Net, process: Diffusion, length: int) -> Tensor:
    """Exact: for Gaussian data x0 is a matrix times the start noise; its rows are what unit vectors become."""
    units = torch.eye(length, dtype=torch.float64)[:, None]
    rows = unipc(process.denoiser(net, {}), units, process.schedule, lambda: units)[:, 0]
    return rows.T @ rows


def spectra(cov: Tensor) -> Tensor:
    """Expected power of a frame at every position, dB ``[positions, bins]``."""
    fourier = torch.fft.rfft(torch.diag(torch.hann_window(FRAME, dtype=torch.float64)))
    power = [
        (fourier.conj().T @ cov[i : i + FRAME, i : i + FRAME].to(fourier.dtype) @ fourier).diagonal().real
        for i in range(len(cov) - FRAME + 1)
    ]
    return 10 * torch.log10(torch.stack(power))


@pytest.mark.parametrize("length", [3 * WINDOW, 2 * WINDOW + 29])
def test_joins_are_as_elsewhere(length: int, process: Diffusion, covariance: Cov, net_of: NetOf) -> None:
    net = Windowed(net_of(process, covariance(WINDOW)), WINDOW, batch_size=4096)
    made = made_covariance(net, process, length)
    assert (10 * torch.log10(made.diagonal())).abs().max().item() < 0.03
    assert (spectra(made) - spectra(covariance(length))).abs().max().item() < 0.12


def test_joins_can_be_heard_by_this_measure(process: Diffusion, covariance: Cov, net_of: NetOf) -> None:
    """Windows that do not overlap, and equal weights, fail it by far."""
    plain = Windowed(net_of(process, covariance(WINDOW)), WINDOW, overlap=0, batch_size=4096)
    flat = Windowed(net_of(process, covariance(WINDOW)), WINDOW, batch_size=4096)
    flat.weight = torch.ones(WINDOW)
    for net, least in ((plain, 1.5), (flat, 0.5)):
        made = spectra(made_covariance(net, process, 2 * WINDOW))
        assert (made - spectra(covariance(2 * WINDOW))).abs().max().item() > least


def test_one_window_is_the_network_itself(process: Diffusion, covariance: Cov, net_of: NetOf) -> None:
    net = net_of(process, covariance(WINDOW))
    made = generate(Windowed(net, WINDOW), process, unipc, (2, WINDOW), [1, 2], {})
    torch.testing.assert_close(made, generate(net, process, unipc, (2, WINDOW), [1, 2], {}))


def test_batches_are_bounded_and_change_nothing(process: Diffusion) -> None:
    """Each window with its own condition, whatever is called together."""
    seen: list[int] = []

    def net(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        seen.append(len(x_t))
        return x_t * t[:, None, None] + cond["label"][:, None, None] + cond["at"][:, None, None]

    def at(cond: Cond, start: int) -> Cond:
        return {**cond, "at": torch.full((len(cond["label"]),), float(start))}

    x_t, t = torch.randn(3, 2, 70, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.5, 0.9])
    labels = torch.tensor([1, 2, 3])
    outputs, largest = [], []
    for size in (1, 4, 100):
        outputs.append(Windowed(net, 16, batch_size=size, cond_at=at)(x_t, t, {"label": labels}))
        largest.append(max(seen))
        seen.clear()
    assert largest == [1, 4, 3 * len(starts(70, 16, 8))]
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])
    alone = Windowed(net, 16, cond_at=at)(x_t[1:2], t[1:2], {"label": labels[1:2]})
    torch.testing.assert_close(outputs[0][1:2], alone)
    torch.testing.assert_close(outputs[0][:, :, 0], x_t[:, :, 0] * t[:, None] + labels[:, None])


def test_bad_values_are_refused(process: Diffusion) -> None:
    net = lambda x_t, t, cond: x_t  # noqa: E731
    with pytest.raises(ValueError, match="overlap: expected 0 to half the window of 16 samples, got 9"):
        Windowed(net, 16, overlap=9)
    with pytest.raises(ValueError, match="batch_size: expected at least 1"):
        Windowed(net, 16, batch_size=0)
    with pytest.raises(ValueError, match="generate a window and keep its beginning"):
        generate(Windowed(net, 16), process, unipc, (1, 15), [0], {})
