"""The probability-flow ODE against closed forms: Gaussians of any colour and covariance, and a mixture."""

import math

import pytest
import torch

from audio_diffusion.metrics.flow import flow_likelihood, integrate
from audio_diffusion.metrics.likelihood import uniform, variational_bound

SCALE = 1e-3  # bins far narrower than anything in these data


def placed(audio, generators):
    """Where dequantisation puts each element."""
    return audio + SCALE / 32768 * (uniform(generators, *audio.shape[1:]) - 0.5)


def bits(nats, dims):
    return nats / dims / math.log(2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "cosine", "exploding", "straight"])
@pytest.mark.parametrize("data", ["white", "coloured"])
def test_the_flow_agrees_with_the_closed_form_for_every_clip(schedules, generators, request, name, data):
    gaussian, (schedule, t_min) = request.getfixturevalue(data), schedules[name]
    audio, mask = gaussian.draw(16), torch.ones(16, 1, 64, dtype=torch.bool)
    found = flow_likelihood(
        gaussian.denoise(schedule), schedule, audio, mask, SCALE, generators(16), t_min=t_min, tolerance=1e-4
    )
    exact = gaussian.nats(placed(audio, generators(16))).flatten(1).sum(1) - 64 * math.log(SCALE / 32768)
    torch.testing.assert_close(bits(found.nats, 64), bits(exact, 64), rtol=0, atol=6e-4)


def test_where_the_chain_stops_at_noise_the_density_is_that_of_the_noised_data(schedules, generators, coloured):
    schedule, audio, mask = schedules["cosine"][0], coloured.draw(4), torch.ones(4, 1, 64, dtype=torch.bool)
    found = flow_likelihood(
        coloured.denoise(schedule), schedule, audio, mask, SCALE, generators(4), t_min=0.3, tolerance=1e-4
    )
    noise = math.exp(-schedule.log_snr(torch.tensor(0.3, dtype=torch.float64)).item())
    noised = type(coloured)(coloured.variance + noise)
    exact = noised.nats(placed(audio, generators(4))).flatten(1).sum(1) - 64 * math.log(SCALE / 32768)
    torch.testing.assert_close(bits(found.nats, 64), bits(exact, 64), rtol=0, atol=1e-3)


def test_dequantisation_is_centred_on_the_16_bit_value(schedules, generators, white):
    (schedule, t_min), audio, mask = schedules["linear"], torch.full((4, 1, 64), 2.0).double(), torch.ones(4, 1, 64) > 0
    found = flow_likelihood(  # bins of width 1, as wide as the data
        white.denoise(schedule), schedule, audio, mask, 32768.0, generators(4), t_min=t_min, tolerance=1e-4
    )
    exact = white.nats(audio + uniform(generators(4), 1, 64) - 0.5).flatten(1).sum(1)
    torch.testing.assert_close(bits(found.nats, 64), bits(exact, 64), rtol=0, atol=1e-3)


def test_single_precision_and_the_default_tolerance_cost_little(schedules, generators, coloured):
    schedule, t_min = schedules["exploding"]
    audio, mask = coloured.draw(8), torch.ones(8, 1, 64, dtype=torch.bool)
    found = flow_likelihood(
        coloured.denoise(schedule), schedule, audio.float(), mask, SCALE, generators(8), t_min=t_min
    )
    exact = coloured.nats(placed(audio, generators(8))).flatten(1).sum(1) - 64 * math.log(SCALE / 32768)
    torch.testing.assert_close(bits(found.nats, 64), bits(exact, 64), rtol=0, atol=2e-3)
    assert found.nfe.max() < 100


def test_the_trace_is_right_in_the_mean_where_components_depend_on_each_other(schedules, generators):
    schedule, t_min = schedules["exploding"]
    mixing = torch.tensor([[1.0, 0, 0], [0.2, 0.8, 0], [-0.1, 0.3, 0.9]], dtype=torch.float64)
    covariance = mixing @ mixing.T

    def denoise(x_t, t):
        alpha, sigma = (value[:, None, None] for value in schedule.alpha_sigma(t))
        normed = torch.linalg.solve(
            alpha**2 * covariance + sigma**2 * torch.eye(3, dtype=torch.float64), x_t.transpose(1, 2)
        )
        return alpha * (covariance @ normed).transpose(1, 2), sigma * normed.transpose(1, 2)

    audio = (mixing @ torch.tensor([0.5, -1.0, 0.7], dtype=torch.float64)).expand(400, 1, 3)
    mask = torch.ones(400, 1, 3, dtype=torch.bool)
    nats = flow_likelihood(denoise, schedule, audio, mask, SCALE, generators(400), t_min=t_min, tolerance=1e-4).nats
    normal = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance)
    exact = -normal.log_prob(audio[0, 0]) - 3 * math.log(SCALE / 32768)
    error = nats.std() / 400**0.5
    assert 0.003 < error < 0.03  # each probe is off, by chance
    assert abs(nats.mean() - exact) < 4 * error


class Mixture:
    """0.3·N(-1.4, 0.2²) + 0.7·N(0.6, 0.6²), of mean 0, each element for itself."""

    weight = torch.tensor([0.3, 0.7], dtype=torch.float64)
    mean = torch.tensor([-1.4, 0.6], dtype=torch.float64)
    std = torch.tensor([0.2, 0.6], dtype=torch.float64)

    def log_parts(self, x, alpha, sigma):
        variance = (alpha[..., None] * self.std) ** 2 + sigma[..., None] ** 2
        normed = (x[..., None] - alpha[..., None] * self.mean) / variance
        parts = self.weight.log() - 0.5 * (variance * normed**2 + torch.log(2 * math.pi * variance))
        return parts, normed

    def denoise(self, schedule):
        def denoise(x_t, t):
            alpha, sigma = (value[:, None, None] for value in schedule.alpha_sigma(t))
            parts, normed = self.log_parts(x_t, alpha, sigma)
            noise = sigma * (parts.softmax(-1) * normed).sum(-1)
            return (x_t - sigma * noise) / alpha, noise

        return denoise

    def nats(self, x):
        parts, _ = self.log_parts(x, torch.ones_like(x), torch.zeros_like(x))
        return -parts.logsumexp(-1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "exploding"])
def test_a_mixture_has_its_density_and_a_bound_above_its_entropy(schedules, generators, name):
    mixture, (schedule, t_min) = Mixture(), schedules[name]
    audio = torch.linspace(-2.2, 2.6, 23, dtype=torch.float64)[:, None, None]
    mask = torch.ones(23, 1, 1, dtype=torch.bool)
    found = flow_likelihood(
        mixture.denoise(schedule), schedule, audio, mask, SCALE, generators(23), t_min=t_min, tolerance=1e-5
    )
    exact = mixture.nats(placed(audio, generators(23)))[:, 0, 0] - math.log(SCALE / 32768)
    torch.testing.assert_close(bits(found.nats, 1), bits(exact, 1), rtol=0, atol=1e-3)

    generator = torch.Generator().manual_seed(0)
    first = torch.rand(64, 1, 512, generator=generator) < 0.3
    mean, std = (torch.where(first, *values) for values in (mixture.mean, mixture.std))
    drawn = mean + std * torch.randn(64, 1, 512, generator=generator, dtype=torch.float64)
    bound = variational_bound(
        mixture.denoise(schedule), schedule, drawn, torch.ones(64, 1, 512, dtype=torch.bool), 8.0, generators(64),
        t_min=1e-3 if name == "linear" else 0.2, num_steps=None,
    )  # fmt: skip
    above = (bound.prior + bound.diffusion + bound.reconstruction).mean() / 512
    assert above.item() == pytest.approx(mixture.nats(drawn).mean().item() - math.log(8 / 32768), abs=0.02)


def test_padding_is_not_counted_and_changes_nothing(schedules, generators, coloured):
    schedule, t_min = schedules["linear"]
    audio, mask = coloured.draw(4, channels=2), torch.arange(64).expand(4, 1, 64) < 24
    audio = torch.where(mask, audio, 0.0)
    found = flow_likelihood(
        coloured.denoise(schedule), schedule, audio, mask, SCALE, generators(4), t_min=t_min, tolerance=1e-4
    )
    nats = coloured.nats(placed(audio, generators(4)))[..., :24]
    exact = nats.flatten(1).sum(1) - 48 * math.log(SCALE / 32768)
    torch.testing.assert_close(bits(found.nats, 48), bits(exact, 48), rtol=0, atol=1e-3)
    nothing = flow_likelihood(
        coloured.denoise(schedule), schedule, audio, mask & False, SCALE, generators(4), t_min=t_min
    )
    assert nothing.nats.abs().max() == 0  # slots without a clip


def test_the_network_sees_padding_as_noised_silence(schedules, generators, white):
    schedule, _ = schedules["cosine"]
    seen, exact = [], white.denoise(schedule)

    def denoise(x_t, t):
        seen.append((x_t[..., 32:].detach() / schedule.alpha_sigma(t.double())[1][:, None, None]).std().item())
        return exact(x_t, t)

    mask = torch.arange(64).expand(64, 1, 64) < 32
    flow_likelihood(denoise, schedule, white.draw(64) * mask, mask, SCALE, generators(64), t_min=1e-3)
    assert seen == pytest.approx([1.0] * len(seen), rel=0.05)


def test_bits_do_not_depend_on_the_scale_of_x0(schedules, generators, coloured):
    schedule, t_min = schedules["linear"]
    audio, mask, found = coloured.draw(4) / 10, torch.ones(4, 1, 64, dtype=torch.bool), []
    quiet = type(coloured)(coloured.variance / 100)
    for scale in (10.0, 20.0):
        denoise = quiet.denoise(schedule, scale)
        nats = flow_likelihood(
            denoise, schedule, audio * scale, mask, scale, generators(4), t_min=t_min, tolerance=1e-4
        ).nats
        found.append(bits(nats, 64))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-3)


def test_the_solver_keeps_its_tolerance_row_by_row():
    rates = torch.tensor([[-1.0, -30.0], [0.5, 2.0]], dtype=torch.float64)
    state = torch.ones(2, 2, dtype=torch.float64)
    exact = (rates * -2.0).exp()  # from 0 to -2, backwards as the flow goes
    for tolerance in (1e-3, 1e-6):
        found, nfe = integrate(lambda s, y: rates * y, state, 0.0, -2.0, tolerance)
        torch.testing.assert_close(found, exact, rtol=50 * tolerance, atol=0)
        alone, nfe_alone = integrate(lambda s, y: rates[1:] * y, state[1:], 0.0, -2.0, tolerance)
        assert torch.equal(alone, found[1:])
        assert nfe_alone[0] == nfe[1] < nfe[0]


@pytest.mark.slow
def test_a_tolerance_that_cannot_be_kept_is_refused():
    generator = torch.Generator().manual_seed(0)

    def noise(s, y):
        return 1e9 * torch.randn(y.shape, generator=generator)

    with pytest.raises(ValueError, match="tolerance: expected one that 2000 steps of the solver can keep, got 1e-12"):
        integrate(noise, torch.ones(1, 3), 1.0, 0.0, 1e-12)
