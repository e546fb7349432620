"""Each task by what defines it, with a network that has learnt nothing: it must hold for any."""

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from audio_diffusion import Model
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.solvers.ddim import ddim
from audio_diffusion.diffusion.solvers.ddpm import ddpm
from audio_diffusion.diffusion.solvers.unipc import unipc

RATE = 8000


def level_db(x: Tensor, than: Tensor) -> float:
    return 10 * torch.log10(x.square().sum() / than.square().sum()).item()


TASKS: dict[str, Callable[[Model, Tensor, list[int]], Tensor]] = {
    "generate": lambda m, x, seeds: m.generate(seeds, ["kick"] * len(seeds)),
    "generate longer": lambda m, x, seeds: m.generate(seeds, ["kick"] * len(seeds), seconds=0.3),
    "inpaint": lambda m, x, seeds: m.inpaint(x, [(0.02, 0.05)], seeds),
    "continue": lambda m, x, seeds: m.continue_(x, 0.02, seeds),
    "vary": lambda m, x, seeds: m.vary(x, 0.5, seeds, ["hat"] * len(seeds)),
    "extend_bandwidth": lambda m, x, seeds: m.extend_bandwidth(x, 1000, seeds),
    "declip": lambda m, x, seeds: m.declip(x.clamp(-0.4, 0.4), seeds),
    "denoise": lambda m, x, seeds: m.denoise(x, seeds, snr_db=10),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_result_depends_on_its_own_seed_and_clip_alone(model: Model, clips: Tensor, task: str) -> None:
    stochastic = model.using(sampler=partial(ddpm, num_steps=12))
    both = TASKS[task](stochastic, clips, [3, 4])
    alone = TASKS[task](stochastic, clips[1:], [4])
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3 * both.abs().max().item())
    other = TASKS[task](stochastic, clips[1:], [5])
    assert (alone - other).abs().max() > 1e-3


@pytest.mark.parametrize("length", [700, 1024, 3000])
def test_what_is_not_in_a_region_is_kept_bit_by_bit(model: Model, length: int) -> None:
    clip = torch.rand(2, 1, length, generator=torch.Generator().manual_seed(0)) - 0.5
    made = model.inpaint(clip, [(0.01, 0.02), (0.05, 0.06)], [1, 2])
    anew = torch.zeros(length, dtype=torch.bool)
    anew[80:160] = anew[400:480] = True
    assert torch.equal(made[..., ~anew], clip[..., ~anew])
    assert (made != clip)[..., anew].float().mean() > 0.99


def test_far_from_what_is_missing_nothing_is_asked(model: Model) -> None:
    """A gap in a long file costs three windows' length, however long the file is."""
    lengths = []
    model.net.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[0] * args[0].shape[2]))
    clip = torch.rand(1, 1, 40_000) - 0.5
    made = model.using(sampler=partial(unipc, num_steps=2)).inpaint(clip, [(2, 2.01)], [1])
    model.net._forward_pre_hooks.clear()
    assert torch.equal(made[..., :16_000], clip[..., :16_000])
    assert max(lengths) < 6 * 1024


def test_a_clip_is_continued_on_either_side(model: Model, clips: Tensor) -> None:
    made = model.outpaint(clips, [1, 2], before=0.02, after=0.1)
    assert made.shape == (2, 1, 160 + 1024 + 800)
    assert torch.equal(made[..., 160:-800], clips)
    assert made[..., :160].std() > 0
    assert made[..., -800:].std() > 0
    short = model.continue_(clips[..., :500], 0.025, [1, 2])
    assert short.shape == (2, 1, 700)
    assert torch.equal(short[..., :500], clips[..., :500])


def test_strength_0_is_the_clip_and_1_a_fresh_sample(model: Model, clips: Tensor) -> None:
    labels = ["kick", "hat"]
    assert torch.equal(model.vary(clips, 0, [1, 2], labels), clips)
    torch.testing.assert_close(model.vary(clips, 1, [1, 2], labels), model.generate([1, 2], labels))
    slightly, much = (level_db(model.vary(clips, s, [1, 2]) - clips, clips) for s in (0.1, 0.7))
    assert slightly < much


def test_the_ends_of_an_interpolation_are_the_clips(model: Model, clips: Tensor) -> None:
    made = model.interpolate(clips[:1], clips[1:], [0, 0.5, 1], num_steps=5)
    assert made.clips.shape == (1, 3, 1, 1024)
    assert torch.equal(made.clips[:, 0], clips[:1])
    assert torch.equal(made.clips[:, 2], clips[1:])
    assert not torch.allclose(made.clips[:, 1], clips.mean(0, keepdim=True), atol=1e-2)
    assert made.error_db.shape == (1, 2)


@pytest.mark.parametrize("length", [700, 1024, 2000])
def test_the_low_band_is_kept(model: Model, length: int) -> None:
    clip = torch.nn.functional.avg_pool1d(torch.randn(1, 1, length + 4), 5, stride=1)
    low = torch.fft.rfftfreq(length, 1 / RATE) <= 1000
    made = model.extend_bandwidth(clip, 1000, [1])
    difference, before = (torch.fft.rfft(x)[..., low].abs() for x in (made - clip, clip))
    assert level_db(difference, before) < -100
    assert level_db(torch.fft.rfft(made - clip)[..., ~low].abs(), before) > -60


def test_only_clipped_samples_are_changed_and_lie_beyond_the_level(model: Model, clips: Tensor) -> None:
    clipped = (clips * 2).clamp(-1, 32767 / 32768)  # as a 16-bit file has it
    made = model.declip(clipped, [1, 2])
    over = clips.abs() * 2 >= 32767 / 32768
    assert over.any()
    assert torch.equal(made[~over], clipped[~over])
    assert (made[over].abs() >= clipped[over].abs()).all()
    assert (made[over].sign() == clipped[over].sign()).all()
    assert (made[over].abs() > 1).any()
    lower = model.declip(clips, [1, 2], level=0.5)
    assert torch.equal(lower[clips.abs() < 0.5], clips[clips.abs() < 0.5])


def test_noise_is_looked_for_at_its_own_level(model: Model, clips: Tensor) -> None:
    """Of the time the chain starts at: the more noise is said to be there, the more changes."""
    nearly, much = (level_db(model.denoise(clips, [1, 2], snr_db=snr) - clips, clips) for snr in (60, 0))
    assert nearly < much
    mean = model.denoise(clips, [1, 2], snr_db=10, mean=True)
    assert mean.shape == clips.shape
    assert torch.equal(mean, model.denoise(clips, [8, 9], snr_db=10, mean=True))  # nothing is drawn
    silence = torch.zeros(1, 1, 1024)
    assert torch.equal(model.denoise(silence, [1]), silence)


def test_a_window_is_told_its_own_frames_and_time(make_model: Callable[..., Model]) -> None:
    told: list[dict[str, Tensor]] = []
    vocoder, timed = make_model("mel"), make_model("start")
    for model in (vocoder, timed):
        model.net.register_forward_pre_hook(lambda _, args: told.append(args[2]))
    clip = torch.rand(1, 1, 2000) - 0.5
    made = vocoder.using(guidance=1.0).vocode(clip, [1])
    assert made.shape == clip.shape
    whole = vocoder.conditions.read({"audio": torch.nn.functional.pad(clip, (0, 48))}, "cpu")["mel"]
    starts = (0, 8, 16)
    assert torch.equal(told[0]["mel"], torch.cat([whole[..., start : start + 16] for start in starts]))

    told.clear()
    timed.using(guidance=1.0).generate([1], cond={"seconds_start": [2.0]}, seconds=0.192)
    torch.testing.assert_close(told[0]["seconds_start"], torch.tensor([0.2, 0.2064]))


def test_lengths_are_what_was_asked_for(model: Model) -> None:
    full = model.generate([1], ["kick"])
    short = model.generate([1], ["kick"], seconds=0.05)
    assert short.shape == (1, 1, 400)
    assert torch.equal(short, full[..., :400])
    assert model.generate([1], ["kick"], seconds=0.4).shape == (1, 1, 3200)


def test_the_process_goes_from_noise_to_the_result(model: Model) -> None:
    points = model.using(sampler=partial(unipc, num_steps=6)).reverse_process([1, 2], ["kick", "hat"], num_points=4)
    times = [t for t, _ in points]
    assert len(times) == 4
    assert times == sorted(times, reverse=True)
    result = model.using(sampler=partial(unipc, num_steps=6)).generate([1, 2], ["kick", "hat"])
    assert torch.equal(points[-1][1], result)


def test_one_negative_is_for_all(model: Model) -> None:
    one, two = (Guidance(2, negative={"label": torch.zeros(n, dtype=torch.long)}) for n in (1, 2))
    made = [model.using(guidance=guidance).generate([1, 2], ["kick", "kick"]) for guidance in (one, two)]
    assert torch.equal(*made)


def test_guidance_costs_nothing_where_nothing_is_told(model: Model, clips: Tensor) -> None:
    sizes: list[int] = []
    hook = model.net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    guided = model.using(guidance=2.0)
    untold = guided.vary(clips, 0.5, [1, 2])
    assert set(sizes) == {2}
    assert torch.equal(untold, model.using(guidance=1.0).vary(clips, 0.5, [1, 2]))
    sizes.clear()
    guided.vary(clips, 0.5, [1, 2], ["hat", "kick"])
    hook.remove()
    assert set(sizes) == {4}


REFUSED: dict[str, tuple[Callable[[Model, Tensor], object], str]] = {
    "region": (lambda m, x: m.inpaint(x, [(0.1, 0.2)], [1, 2]), "0 <= start < end <= 0.128, the seconds of the clip"),
    "backwards": (lambda m, x: m.inpaint(x, [(0.1, 0.05)], [1, 2]), r"got \[0.1, 0.05\]"),
    "label": (lambda m, x: m.vary(x, 0.5, [1, 2], ["kik", "hat"]), "label 'kik' is unknown .* Did you mean 'kick'"),
    "no label": (lambda m, x: m.generate([1]), "labels: this model needs one per clip, of hat, kick"),
    "strength": (lambda m, x: m.vary(x, 2, [1, 2]), r"strength: expected 0 \(the clip itself\) to 1"),
    "cutoff": (lambda m, x: m.extend_bandwidth(x, 4000, [1, 2]), r"cutoff: expected Hz inside \(0, 4000\), got 4000"),
    "level": (lambda m, x: m.declip(x, [1, 2], level=-1), "level: expected a positive magnitude"),
    "task": (lambda m, x: m.vocode(x, [1, 2]), "trained with condition=mel.*with the conditions label"),
    "channels": (lambda m, x: m.vary(x.expand(2, 2, -1), 0.5, [1, 2]), r"audio: expected floats \[B, 1, T\] at 8000"),
    "seeds": (lambda m, x: m.vary(x, 0.5, [1]), "seeds: expected one for each of 2 clips, got 1"),
    "seconds": (lambda m, x: m.continue_(x, 0, [1, 2]), "seconds: expected at least one sample, 1/8000 s, got 0"),
    "nowhere": (lambda m, x: m.outpaint(x, [1, 2]), "before, after: expected seconds of which one is positive"),
    "lengths": (lambda m, x: m.interpolate(x, x[..., :9], [0.5]), "second: expected the first clip's shape"),
    "points": (lambda m, x: m.reverse_process([1], ["hat"], num_points=1), "num_points: expected at least 2"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistakes_are_told_what_is_allowed(model: Model, clips: Tensor, mistake: str) -> None:
    call, message = REFUSED[mistake]
    with pytest.raises(ValueError, match=message):
        call(model, clips)


def test_a_sampler_that_does_not_keep_levels_is_warned_of(model: Model) -> None:
    with pytest.warns(UserWarning, match=r"with this solver, grid and number of steps .* Choose sampler"):
        model.using(sampler=partial(ddim, num_steps=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.using(sampler=partial(unipc, num_steps=50)).using(guidance=2.0)


def test_a_model_is_printed_as_one_line(model: Model) -> None:
    assert "\n" not in repr(model)
    assert str(model) == repr(model)
    assert repr(model).startswith("Model(UNet1d of 0.0")
    assert "8000 Hz mono, 0.13 s, conditions: label, step 7, ema weights, on cpu, from tiny.ckpt)" in repr(model)
