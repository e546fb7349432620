"""Sampling while training: it must not touch training, and what it writes must be what it made."""

import csv
from functools import partial

import pytest
import soundfile
import torch

from audio_diffusion.callbacks.diagnostics import Diagnostics
from audio_diffusion.callbacks.sampling import SampleAudio, level_row
from audio_diffusion.data.training_data import CropFormat
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.solvers.ddim import ddim


def sampling(folder, **options) -> SampleAudio:
    settings = {"every_n_steps": 2, "num_samples": 3, "num_process_points": 2, **options}
    return SampleAudio(
        partial(ddim, num_steps=2, eta=1.0), CropFormat(16000, 1, 2048), ["clap", "hat"], str(folder), **settings
    )


@pytest.mark.slow
def test_training_is_the_same_to_the_bit_with_sampling_on_and_off(make_run, tmp_path):
    torch.manual_seed(1)
    plain = make_run(max_steps=4, callbacks=[Diagnostics(every_n_steps=1)])
    plain.fit()
    state = torch.get_rng_state()
    torch.manual_seed(1)
    sampled = make_run(max_steps=4, callbacks=[sampling(tmp_path), Diagnostics(every_n_steps=1)])
    sampled.fit()
    losses = [row["train/loss"] for row in plain.rows if "train/loss" in row]
    assert losses == [row["train/loss"] for row in sampled.rows if "train/loss" in row]
    assert len(losses) == 4
    assert torch.equal(state, torch.get_rng_state())


def test_files_table_and_levels(make_run, tmp_path):
    callback = sampling(tmp_path, guidance=Guidance(2.0))
    run = make_run(max_steps=2, callbacks=[callback])
    run.fit()
    (folder,) = tmp_path.iterdir()  # every two steps and at the end are the same step: once
    assert folder.name == "step_00000002"
    assert {p.name for p in folder.iterdir()} == {
        "000_clap.wav", "001_hat.wav", "002_clap.wav", "samples.csv", "spectrograms.png", "reverse_process.png",
    }  # fmt: skip
    with open(folder / "samples.csv") as f:
        rows = list(csv.DictReader(f))
    assert [row["label"] for row in rows] == ["clap", "hat", "clap"]
    assert {(row["step"], row["sampler"], row["nfe"], row["guidance"]) for row in rows} == {("2", "ddim", "4", "2.0")}
    audio, rate = soundfile.read(folder / "000_clap.wav")
    assert (rate, len(audio)) == (16000, 2048)
    assert abs(abs(audio).max() - min(1.0, float(rows[0]["peak"]))) < 1e-3  # raw level, not normalised


@pytest.mark.slow
def test_a_slot_starts_from_the_same_noise_every_time_and_alone(make_run, tmp_path):
    run = make_run(max_steps=1)
    run.fit()
    first = sampling(tmp_path / "a").sample(run.trainer, run.module)
    again = sampling(tmp_path / "b").sample(run.trainer, run.module)
    fewer = sampling(tmp_path / "c", num_samples=1).sample(run.trainer, run.module)
    assert torch.equal(first, again)
    torch.testing.assert_close(first[:1], fewer, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first[0], first[2])  # same label, another slot


@pytest.mark.slow
def test_sampling_uses_the_ema_weights(make_run, tmp_path):
    run = make_run(max_steps=1)
    run.fit()
    before = sampling(tmp_path / "a").sample(run.trainer, run.module)
    with torch.no_grad():
        for parameter in run.module.net.parameters():
            parameter.add_(0.1)
    assert torch.equal(before, sampling(tmp_path / "b").sample(run.trainer, run.module))
    with torch.no_grad():
        for parameter in run.module.ema.net.parameters():
            parameter.add_(0.1)
    assert not torch.equal(before, sampling(tmp_path / "c").sample(run.trainer, run.module))


def test_levels_of_a_known_clip():
    clip = torch.tensor([[0.0, 2.0, -1.0, 0.0005]])
    assert level_row(clip) == {
        "peak": 2.0, "rms": round((5.00000025 / 4) ** 0.5, 5), "clipped_percent": 25.0, "silence_percent": 50.0,
    }  # fmt: skip


@pytest.mark.slow
def test_clip_bounds_the_samples_and_other_values_are_refused(make_run, tmp_path):
    run = make_run(max_steps=1)
    run.fit()
    free = sampling(tmp_path / "a").sample(run.trainer, run.module)
    bound = 0.5 * free.abs().max().item()
    clip = bound * run.module.representation.scale
    bounded = sampling(tmp_path / "b", guidance=Guidance(clip=clip)).sample(run.trainer, run.module)
    assert bounded.abs().max().item() <= bound * 1.0001
    assert torch.equal(free, sampling(tmp_path / "c", guidance=Guidance()).sample(run.trainer, run.module))
    with pytest.raises(ValueError, match="clip: expected a positive bound"):
        sampling(tmp_path, guidance=Guidance(clip=0))
    with pytest.raises(ValueError, match="guidance_scale: expected 0 or more"):
        sampling(tmp_path, guidance=Guidance(-1))
