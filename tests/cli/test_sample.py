"""sample.py and export.py as a user runs them: every task, from files to files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from audio_diffusion import load

RATE = 8000


@pytest.fixture(scope="module")
def user(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    vocoder_checkpoint: Path,
    noise: Callable[..., NDArray],
) -> Path:
    """A folder with tiny.ckpt (8 kHz, mono, 1024 samples, classes hat and kick), vocoder.ckpt, and sounds of several
    kinds."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "tiny.ckpt").write_bytes(tiny_checkpoint.read_bytes())
    (folder / "vocoder.ckpt").write_bytes(vocoder_checkpoint.read_bytes())
    sound = noise(1024, seed=1)[:, 0]
    soundfile.write(folder / "pcm16.wav", sound, RATE, subtype="PCM_16")
    soundfile.write(folder / "pcm24.flac", noise(1024, seed=2)[:, 0], RATE, subtype="PCM_24")
    soundfile.write(folder / "float.wav", 1.9 * sound, RATE, subtype="FLOAT")  # peaks near 0.95
    soundfile.write(folder / "stereo.wav", noise(2048, channels=2, seed=3), 2 * RATE)
    soundfile.write(folder / "long.wav", noise(3000, seed=4)[:, 0], RATE)
    (folder / "no.wav").write_text("not audio")
    return folder


@pytest.fixture(scope="module")
def sample(user: Path, launch: Callable[..., Any]) -> Callable[..., str]:
    """sample("task=..", ..) -> what sample.py printed; it must succeed, or end with ``status``."""

    def run(*arguments: str, status: int = 0) -> str:
        ckpt = [] if any(a.startswith("ckpt=") for a in arguments) else ["ckpt=tiny.ckpt"]
        done = launch(user, "sample.py", *ckpt, "device=cpu", *arguments)
        assert done.wait() == [status], done.text
        assert "Traceback" not in done.text
        return done.text

    return run


def read(path: Path) -> NDArray[np.float32]:
    return soundfile.read(path, dtype="float32")[0]


def rows(user: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((user / f"{name}.json").read_text())["files"]


@pytest.mark.parametrize(
    ("name", "format", "subtype", "exact"),
    [
        ("pcm16.wav", "wav", "PCM_16", True),
        ("pcm16.wav", "flac", "PCM_16", True),
        ("pcm24.flac", "wav", "PCM_24", True),
        ("pcm24.flac", "flac", "PCM_24", True),
        ("float.wav", "wav", "FLOAT", True),
        ("float.wav", "flac", "PCM_24", False),
        ("long.wav", "wav", "PCM_16", True),
    ],
)
def test_what_is_kept_is_kept_in_the_file(
    user: Path, sample: Callable[..., str], name: str, format: str, subtype: str, exact: bool
) -> None:
    output = f"kept_{Path(name).stem}_{format}"
    said = sample("task=inpaint", f"input={name}", "regions=[[0.03,0.06]]", f"format={format}", f"output={output}")
    file = user / output / f"000_{Path(name).stem}.{format}"
    assert soundfile.info(file).subtype == subtype
    assert ("24 bits; format=wav keeps every bit" in said) == (format == "flac" and subtype == "PCM_24")
    before, after = read(user / name), read(file)
    kept = np.r_[0:240, 480 : len(before)]
    assert (before[240:480] != after[240:480]).mean() > 0.9
    np.testing.assert_allclose(after[kept], before[kept], rtol=0, atol=0 if exact else 2**-23)


def test_a_file_of_another_kind_is_converted_and_that_is_said(user: Path, sample: Callable[..., str]) -> None:
    said = sample("task=vary", "input=stereo.wav", "strength=0", "output=converted")
    assert "stereo.wav: resampled from 16000 to 8000 Hz, converted from 2 channels to 1" in said
    assert soundfile.info(user / "converted/000_stereo.wav").subtype == "FLOAT"
    assert len(read(user / "converted/000_stereo.wav")) == 1024
    assert rows(user, "converted")[0]["input"][0]["converted"]


def test_samples_are_the_same_whatever_the_batch_and_the_number_of_devices(
    user: Path, sample: Callable[..., str]
) -> None:
    sample("num_samples=5", "output=one")
    sample("num_samples=5", "batch_size=2", "devices=2", "output=two")
    names = sorted(path.name for path in (user / "one").iterdir())
    assert names == [f"{i:03d}_{['hat', 'kick'][i % 2]}.wav" for i in range(5)]
    assert names == sorted(path.name for path in (user / "two").iterdir())
    for name in names:
        np.testing.assert_allclose(read(user / "one" / name), read(user / "two" / name), atol=1e-3)
    one, two = rows(user, "one"), rows(user, "two")
    assert [row["seed"] for row in one] == [row["seed"] for row in two]
    assert len({row["seed"] for row in one}) == 5


def test_the_json_makes_the_same_file_again(user: Path, sample: Callable[..., str]) -> None:
    sample(
        "task=generate", "num_samples=2", "labels=[kick]", "seed=3", "sampler=ddpm", "sampler.num_steps=4", "output=a"
    )
    record = json.loads((user / "a.json").read_text())
    assert record["checkpoint"]["step"] == 7
    assert len(record["checkpoint"]["sha256"]) == 64
    assert record["sampler"]["_target_"].endswith("ddpm")
    assert record["guidance_scale"] == 1.5
    assert record["versions"].keys() >= {"audio_diffusion", "torch"}
    assert record["files"][1]["label"] == "kick"
    program, script, *arguments = record["command"]
    assert (program, script) == ("python", "sample.py")
    assert (user / "a.png").stat().st_size > 5000
    assert '"isFolder":true' in (user / "a.html").read_text()
    before = [(user / "a" / row["file"]).read_bytes() for row in record["files"]]
    sample(*arguments[2:])
    assert before == [(user / "a" / row["file"]).read_bytes() for row in record["files"]]


TASKS: dict[str, tuple[list[str], list[tuple[str, int]]]] = {
    "generate longer": (["num_samples=1", "seconds=0.3", "labels=[hat]"], [("000_hat.wav", 2400)]),
    "outpaint": (["input=pcm16.wav", "before=0.01", "after=0.02"], [("000_pcm16.wav", 1264)]),
    "continue": (["input=long.wav", "seconds=0.1", "labels=[hat]"], [("000_long.wav", 3800)]),
    "vary": (["input=[pcm16.wav,long.wav]", "num_samples=3"],
             [("000_pcm16.wav", 1024), ("001_long.wav", 3000), ("002_pcm16.wav", 1024)]),
    "extend_bandwidth": (["input=pcm16.wav", "cutoff=2000"], [("000_pcm16.wav", 1024)]),
    "declip": (["input=pcm16.wav", "level=0.3"], [("000_pcm16.wav", 1024)]),
    "denoise": (["input=pcm16.wav"], [("000_pcm16.wav", 1024)]),
    "process": (
        ["labels=[kick]", "num_points=3"],
        [("000_kick_00_t0.675.wav", 1024), ("000_kick_01_t0.224.wav", 1024), ("000_kick_02_t0.058.wav", 1024)],
    ),
    "interpolate": (["input=[pcm16.wav,float.wav]", "at=[0,0.5,1]", "num_steps=4"],
                    [(f"000_pcm16_float_{at}.wav", 1024) for at in ("0.000", "0.500", "1.000")]),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_every_task_leaves_files_a_json_and_a_picture(user: Path, sample: Callable[..., str], task: str) -> None:
    arguments, files = TASKS[task]
    name = task.replace(" ", "_")
    sample(f"task={task.split()[0]}", *arguments, f"output={name}")
    found = sorted((path.name, len(read(path))) for path in (user / name).iterdir())
    assert found == files
    assert [row["file"] for row in rows(user, name)] == [file for file, _ in files]
    assert (user / f"{name}.png").stat().st_size > 5000


def test_the_ends_of_an_interpolation_are_the_files(user: Path, sample: Callable[..., str]) -> None:
    said = sample("task=interpolate", "input=[pcm16.wav,float.wav]", "at=[0,1]", "num_steps=4", "output=ends")
    assert "to noise and back:" in said
    for place, name in (("0.000", "pcm16"), ("1.000", "float")):
        assert np.array_equal(read(user / f"ends/000_pcm16_float_{place}.wav"), read(user / f"{name}.wav"))
    errors = rows(user, "ends")[0]["round_trip_error_db"]
    assert len(errors) == 2
    assert ("the interpolations are unreliable" in said) == (max(errors) > -10)
    random = sample("task=interpolate", "input=[pcm16.wav,float.wav]", "at=[0.5]", "num_steps=1", "output=lost")
    assert "the interpolations are unreliable" in random


def test_a_file_of_a_mel_spectrogram_is_vocoded_as_its_sound_is(user: Path, sample: Callable[..., str]) -> None:
    model = load(user / "vocoder.ckpt")
    np.save(user / "spectrum.npy", model.spectrogram(model.read(user / "long.wav"))[0].numpy())
    np.save(user / "other.npy", np.zeros((9, 20), np.float32))
    sample("task=vocode", "ckpt=vocoder.ckpt", "input=long.wav", "output=of_sound")
    sample("task=vocode", "ckpt=vocoder.ckpt", "input=spectrum.npy", "output=of_mel")
    of_sound, of_mel = read(user / "of_sound/000_long.wav"), read(user / "of_mel/000_spectrum.wav")
    assert (len(of_sound), len(of_mel)) == (3000, 3008)  # whole hops of 64
    assert np.abs(of_sound).max() > 0.01
    assert np.array_equal(of_sound, of_mel[:3000])
    assert rows(user, "of_mel")[0]["input"][0]["sha256"]
    said = sample("task=vocode", "ckpt=vocoder.ckpt", "input=other.npy", status=2)
    assert "error: input: 'other.npy' cannot be used: expected ln magnitudes [8, frames], got [9, 20]" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=inpaint", "input=pcm16.wav", "regions=[[0.1,1]]"], "regions: expected [start, end] with 0 <= start"),
        (["task=inpaint", "input=pcm16.wav", "regons=[[0,0.1]]"], "regons: there is no such option. Did you mean"),
        (["task=inpaint", "input=pcm16.wav"], "regions: must be given: regions=VALUE"),
        (["task=inpant"], "task=inpant: there is no such config. Did you mean 'inpaint'?"),
        (["task=vary", "input=nowhere.wav"], "input: 'nowhere.wav' cannot be used: there is no such file"),
        (["task=vary", "input=no.wav"], "input: 'no.wav' cannot be used: cannot be decoded"),
        (["task=interpolate", "input=pcm16.wav"], "input: expected two files or more to interpolate between, got 1"),
        (["task=vary", "input=spectrum.npy"], "input: 'spectrum.npy' cannot be used"),
        (["task=vocode", "input=pcm16.wav"], "vocode: expected a model with a mel condition"),
        (["task=vary", "input=pcm16.wav", "labels=[kik]"], "label 'kik' is unknown to this model. Did you mean"),
        (["strength=1"], "strength: there is no such option."),
        (["format=mp3"], "format: expected wav or flac, got 'mp3'"),
        (["devices=0"], "devices: expected at least 1, got 0"),
        (["output=no.wav"], "output: expected a folder, made if there is none, but 'no.wav' is a file"),
        (["seed=-1"], "seed: expected 0 or more, got -1"),
        (["guidance_scale=nan"], "guidance_scale: expected a finite number, got nan"),
        (["seconds=nan"], "seconds: expected a finite number, got nan"),
        (["clip=inf"], "clip: expected a finite number, got inf"),
        (["cond={seconds_start: nan}"], "cond.seconds_start: expected a finite number, got nan"),
        (["task=continue", "input=pcm16.wav", "seconds=0", "devices=2"], "seconds: expected at least one sample"),
    ],
)  # fmt: skip
def test_mistakes_are_told_what_is_allowed(sample: Callable[..., str], arguments: list[str], message: str) -> None:
    assert f"error: {message}" in sample(*arguments, status=2)


def test_an_exported_folder_is_sampled_like_its_checkpoint(
    user: Path, sample: Callable[..., str], launch: Callable[..., Any]
) -> None:
    done = launch(user, "export.py", "ckpt=tiny.ckpt", "output=exported")
    assert done.wait() == [0], done.text
    assert "license" in done.text
    sample("num_samples=2", "output=from_ckpt")
    done = launch(user, "sample.py", "ckpt=exported", "device=cpu", "num_samples=2")
    assert done.wait() == [0], done.text
    for name in ("000_hat.wav", "001_kick.wav"):
        assert (user / "exported_generated" / name).read_bytes() == (user / "from_ckpt" / name).read_bytes()
