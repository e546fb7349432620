"""Each kind of condition from the command line: one option to train.py, one to sample.py."""

import io
import json
import runpy
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from audio_diffusion.diffusion.solvers.ddim import ddim
from audio_diffusion.inference import checkpoint_reader
from audio_diffusion.inference.loading import load
from audio_diffusion.networks.conditions import text

ROOT = Path(__file__).parents[2]
TINY = [
    "name=run", "trainer=cpu", "logger=csv", "max_steps=2", "batch_size=4", "val_every_steps=2", "data.num_workers=0",
    "audio.num_samples=2048", "model.widths=[8,64]", "model.factors=[4]", "model.num_blocks=1", "model.cond_width=16",
    "sampler.num_steps=2", "callbacks.sampling.num_samples=2", "callbacks.sampling.guidance.scale=2",
    "training.loss.cond_dropout=0.3", "trainer.enable_progress_bar=false",
]  # fmt: skip
CAPTIONS = ["a dog barks", "rain on the roof", "", "a hit"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, write_tar: Any, noise: Any) -> Path:
    """Clips of noise of 0.2 s with all there is to be told: a caption, a tempo, an embedding of tokens."""
    folder = tmp_path_factory.mktemp("told")
    for split, num in (("train", 8), ("val", 4)):
        members = []
        for i in range(num):
            sound, tokens = io.BytesIO(), io.BytesIO()
            soundfile.write(sound, noise(3200, seed=i), 16_000, format="WAV")
            np.save(tokens, np.random.default_rng(i).normal(size=(3, 6)).astype(np.float32))
            meta = json.dumps({"caption": CAPTIONS[i % 4], "tempo": 60 + i}).encode()
            members += [(f"{i}.wav", sound.getvalue()), (f"{i}.json", meta), (f"{i}.text.npy", tokens.getvalue())]
        write_tar(folder / f"{split}-000.tar", members)
    np.save(folder / "tokens.npy", np.ones((3, 6), dtype=np.float32))
    soundfile.write(folder / "sound.wav", noise(5000, channels=2, seed=9), 44_100)
    return folder


def call(folder: Path, script: str, *arguments: str) -> list[str]:
    """Runs a script in a folder as the command line does; returns the files of samples it left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", [script, *arguments])
        runpy.run_path(str(ROOT / script), run_name="__main__")
    samples = "generated" if script == "sample.py" else "samples/step_00000002"
    return sorted(path.name for path in (folder / "runs/run" / samples).glob("*.wav"))


CHOICES = {
    "caption": ("{caption: [the dog, rain]}", ["a_dog_barks", "rain_on_the_roof"], ["the_dog", "rain"]),
    "embedding": ("{text: SHARDS/tokens.npy}", ["sample", "sample"], ["sample", "sample"]),
    "mel": ("{mel: SHARDS/sound.wav}", ["sample", "sample"], ["sample", "sample"]),
    "seconds": ("{seconds_start: 0, seconds_total: [1, 2.5]}", ["sample", "sample"], ["sample", "sample"]),
}


@pytest.fixture(scope="module")
def small(text_encoders: dict[str, Path]) -> dict[str, list[str]]:
    """What makes each choice small, and fit the shards."""
    return {
        "caption": [
            f"model.conditions.caption.encoder={text_encoders['t5']}",
            "model.conditions.caption.width=32",
            "model.conditions.caption.max_tokens=10",
        ],
        "embedding": ["model.conditions.text.width=6"],
        "mel": ["model.conditions.mel.n_mels=10"],
        "seconds": [],
    }


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_one_option_trains_and_one_samples(
    tmp_path: Path, shards: Path, small: dict[str, list[str]], choice: str
) -> None:
    cond, told, named = CHOICES[choice]
    got = call(tmp_path, "train.py", f"condition={choice}", f"data.train={shards}", *TINY, *small[choice])
    assert got == [f"{i:03d}_{name}.wav" for i, name in enumerate(told)]
    given = f"cond={cond.replace('SHARDS', str(shards))}"
    got = call(tmp_path, "sample.py", "ckpt=runs/run", "num_samples=2", given)
    assert got == [f"{i:03d}_{name}.wav" for i, name in enumerate(named)]


@pytest.mark.slow
def test_an_encoder_in_the_current_folder_is_found_again(
    tmp_path: Path, shards: Path, small: dict[str, list[str]], text_encoders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """``encoder=$PWD/enc``: no part of its path is taken for a secret, so sampling and evaluating find it."""
    shutil.copytree(text_encoders["t5"], tmp_path / "enc")
    monkeypatch.setenv("PWD", str(tmp_path))
    encoder = f"model.conditions.caption.encoder={tmp_path}/enc"
    call(tmp_path, "train.py", "condition=caption", f"data.train={shards}", *TINY, *small["caption"][1:], encoder)
    assert f"encoder: {tmp_path}/enc\n" in (tmp_path / "runs/run/config.yaml").read_text()
    assert call(tmp_path, "sample.py", "ckpt=runs/run", "num_samples=1", "cond={caption: rain}") == ["000_rain.wav"]
    call(
        tmp_path,
        "evaluate.py",
        "ckpt=runs/run",
        "num_clips=2",
        "metrics.likelihood.flow=null",
        "metrics.likelihood.bound.num_levels=2",
    )
    evaluation = json.loads((tmp_path / "runs/run/evaluation/evaluation.json").read_text())
    assert evaluation["metrics"]["likelihood"]["clips"] == 2


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, shards: Path, small: dict[str, list[str]]) -> Path:
    """A folder with runs/run: a model that is told a caption and seconds."""
    folder = tmp_path_factory.mktemp("user")
    call(folder, "train.py", "condition=[caption,seconds]", f"data.train={shards}", *TINY, *small["caption"])
    return folder


@pytest.fixture
def trained(user: Path) -> checkpoint_reader.Model:
    """The model, its weights moved off their start."""
    model = load(user / "runs/run")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.slow
def test_the_text_encoder_is_neither_trained_nor_averaged_nor_saved(
    user: Path, trained: checkpoint_reader.Model, text_encoders: dict[str, Path]
) -> None:
    from transformers import T5EncoderModel

    _, used = text._load(str(text_encoders["t5"]), "cpu")
    saved = T5EncoderModel.from_pretrained(text_encoders["t5"]).state_dict()
    assert all(torch.equal(weight, saved[name]) for name, weight in used.state_dict().items())
    content = checkpoint_reader.read(checkpoint_reader.find(str(user / "runs/run")))
    learnt = {name: weight.shape for name, weight in trained.net.named_parameters()}
    for prefix in ("net.", "ema.net."):
        kept = {k.removeprefix(prefix): v.shape for k, v in content["state_dict"].items() if k.startswith(prefix)}
        assert kept == learnt
    (optimizer,) = content["optimizer_states"]
    assert len(optimizer["state"]) == len(learnt)


def test_what_is_generated_follows_from_the_seed_and_the_conditions_alone(trained: checkpoint_reader.Model) -> None:
    def generated(seeds: list[int], scale: float = 2.0, **cond: Any) -> Tensor:
        return trained.using(sampler=partial(ddim, num_steps=2), guidance=scale).generate(seeds, cond=cond)

    both = generated([1, 2, 3], caption=["a dog", "rain", ""], seconds_total=[60, float("nan"), 100])
    torch.testing.assert_close(generated([2], caption=["rain"])[0], both[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(generated([3], seconds_total=[100])[0], both[2], rtol=1e-3, atol=1e-4)
    for change in ({"caption": ["a hit"]}, {"seconds_total": [400]}, {"seconds_start": [1]}, {"scale": 1.0}):
        other = generated([1], **{"caption": ["a dog"], "seconds_total": [60], **change})
        assert (other[0] - both[0]).abs().max() > 1e-3, change
    torch.testing.assert_close(
        generated([1], 3.0), generated([1], 1.0), rtol=1e-3, atol=1e-4
    )  # nothing to be guided by


def test_guidance_moves_away_from_what_no_condition_makes(trained: checkpoint_reader.Model) -> None:
    """The network is called once a step, with the conditions and without any."""
    calls: list[dict[str, Tensor]] = []
    trained.net.register_forward_pre_hook(lambda _, args: calls.append(args[2]))
    cond = {"caption": ["a dog", "rain"], "seconds_total": [1, 2]}
    trained.using(sampler=partial(ddim, num_steps=2), guidance=2).generate([1, 2], cond=cond)
    assert len(calls) == 2
    for name, value in calls[0].items():
        assert len(value) == 4
        assert value[2:].isnan().all()
        assert value[:2].isnan().all() == (name not in cond)


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ("{tempo: 3}", "cond: this model has no condition 'tempo'; it has: caption, seconds_start, seconds_total"),
        ("{label: 3}", "cond.label: labels are given by name: labels=[..]"),
        ("{caption: nowhere.npy}", "cond.caption: 'nowhere.npy' cannot be read"),
        ("{caption: []}", "cond.caption: expected a value or a list of them, got none"),
        ("{caption: 3}", "text: expected words, got numbers"),
        ("{seconds_total: long}", "number: expected numbers, got words such as 'long'"),
    ],
)
def test_sample_says_what_is_wrong(user: Path, capsys: pytest.CaptureFixture, cond: str, message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        call(user, "sample.py", "ckpt=runs/run", "num_samples=1", f"cond={cond}")
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
