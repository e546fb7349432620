"""evaluate.py: folders of audio of every kind, and mistakes that are found before anything is measured."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio_diffusion.cli import evaluate, options
from audio_diffusion.cli.config import ConfigError
from audio_diffusion.cli.options import EvaluateOptions
from audio_diffusion.metrics.copies import Copies
from audio_diffusion.metrics.distance import Distances
from audio_diffusion.metrics.distances.kernel import kad
from audio_diffusion.metrics.distances.neighbours import precision_recall_density_coverage
from audio_diffusion.metrics.embeddings.log_mel import LogMel
from audio_diffusion.metrics.metric import Metric
from audio_diffusion.metrics.signal_comparison import SignalComparison

NONE = EvaluateOptions(
    ckpt=None, folder=None, reference=None, num_clips=64, num_generated=None, train=None, num_train=1000,
    guidance_scale=None, weights="ema", trust=[], batch_size=16, seed=0, device="cpu", output=None,
    sweep={"sampler": None, "num_steps": None, "guidance_scale": None},
)  # fmt: skip


@pytest.fixture
def signal() -> dict[str, Metric]:
    return {"signal": SignalComparison()}


def sounds(folder: Path, *values: float, channels: int = 1, sample_rate: int = 16_000) -> str:
    """Writes one file of constant samples for each value."""
    folder.mkdir()
    for number, value in enumerate(values):
        audio = np.full((800, channels), value, np.float32)
        soundfile.write(folder / f"{number}.wav", audio, sample_rate, subtype="FLOAT")
    return str(folder)


def test_the_first_readable_file_decides_rate_and_channels(
    tmp_path: Path, signal: dict[str, Metric], capsys: pytest.CaptureFixture[str]
) -> None:
    made, real = sounds(tmp_path / "made", 0.1, 0.2, channels=2, sample_rate=8000), sounds(tmp_path / "real", 0.1)
    (tmp_path / "made" / "-.wav").write_text("no sound")
    evaluation, _, output = evaluate.evaluate_folder(replace(NONE, folder=made, reference=real), signal)
    assert evaluation.counts == {"real": 1, "train": 0, "generated": 2}
    assert output == tmp_path / "made_evaluation"
    assert output.is_dir()
    said = capsys.readouterr().out
    assert "8000 Hz stereo" in said
    assert f"left out: {tmp_path}/made/-.wav: cannot be decoded" in said


@pytest.mark.parametrize(("broken", "option"), [("made", "folder"), ("real", "reference")])
def test_a_side_without_a_usable_file_is_refused(
    tmp_path: Path, signal: dict[str, Metric], broken: str, option: str
) -> None:
    made, real = (sounds(tmp_path / name, np.nan if name == broken else 0.1) for name in ("made", "real"))
    with pytest.raises(ConfigError, match=f"^{option}: none of the clips can be used"):
        evaluate.evaluate_folder(replace(NONE, folder=made, reference=real), signal)


def test_copies_in_a_folder_need_training_clips_and_name_the_option(tmp_path: Path) -> None:
    made, real = sounds(tmp_path / "made", 0.1), sounds(tmp_path / "real", 0.1)
    metrics: dict[str, Metric] = {"copies": Copies(LogMel())}
    given = replace(NONE, folder=made, reference=real)
    with pytest.raises(ConfigError, match=r"^train: copies needs training clips"):
        evaluate.evaluate_folder(given, metrics)
    with pytest.raises(ConfigError, match=r"^train: .*does not exist"):
        evaluate.evaluate_folder(replace(given, train=str(tmp_path / "gone")), metrics)


def test_training_clips_of_a_model_are_found_before_anything_is_measured(
    tiny_checkpoint: Path, drum_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = replace(NONE, ckpt=str(tiny_checkpoint), reference=str(drum_shards), train=str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"^train: .*does not exist"):
        evaluate.evaluate_model(given, {"copies": Copies(LogMel())})
    assert "weights, on" not in capsys.readouterr().out


def test_options_of_the_models_own_sampler(
    tiny_checkpoint: Path, drum_shards: Path, tmp_path: Path, signal: dict[str, Metric]
) -> None:
    given = replace(
        NONE, ckpt=str(tiny_checkpoint), reference=str(drum_shards), num_clips=1, sampler={"num_steps": 2},
        output=str(tmp_path / "out"),
    )  # fmt: skip
    evaluation, _, _ = evaluate.evaluate_model(given, signal)
    assert evaluation.counts == {"real": 1, "train": 0, "generated": 1}


def test_results_that_cannot_be_written_are_refused_before_anything_is_measured(
    tmp_path: Path, signal: dict[str, Metric], capsys: pytest.CaptureFixture[str]
) -> None:
    made, real = sounds(tmp_path / "made", 0.1), sounds(tmp_path / "real", 0.1)
    given = replace(NONE, folder=made, reference=real, output=f"{made}/0.wav/out")
    with pytest.raises(ConfigError, match=r"^output: .*cannot be written to: Not a directory"):
        evaluate.evaluate_folder(given, signal)
    assert not capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"^output: expected a folder"):
        options._check_evaluate({**vars(given), "output": f"{made}/0.wav"})


@pytest.mark.parametrize(
    ("measure", "given", "message"),
    [
        (kad, {"replicates": 0}, "^measures.x: replicates: expected a whole number of at least 2, got 0"),
        (kad, {"replicates": None}, "^measures.x: replicates: expected a whole number of at least 2, got None"),
        (precision_recall_density_coverage, {"k": 0}, "^measures.x: k: expected at least 1, got 0"),
    ],
)
def test_options_of_distances_are_checked_when_they_are_built(measure, given, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        Distances(LogMel(), {"x": lambda made, real, seed: measure(made, real, seed=seed, **given)})


def test_columns_of_signal_statistics_do_not_touch(tmp_path: Path, signal: dict[str, Metric]) -> None:
    made, real = sounds(tmp_path / "made", -1.234e-5, -1.567e-5), sounds(tmp_path / "real", -1.234e-5, -1.567e-5)
    evaluate.evaluate_folder(replace(NONE, folder=made, reference=real), signal)
    lines = signal["signal"].describe()
    assert all(")-" not in line and ")0" not in line for line in lines)
    assert any("below -60 dBFS  " in line for line in lines)


def test_averages_of_several_lengths_are_measured_and_the_best_is_saved(
    run_program: Callable, drum_shards: Path, tiny: list[str], tmp_path: Path
) -> None:
    def program(script: str, *given: str, status: int = 0) -> str:
        done = run_program(tmp_path, script, *given)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    averaging = ["callbacks=power_ema", "callbacks.power_ema.every_n_steps=1", "max_steps=4", "name=averaged"]
    program("train.py", "experiment=drums", f"data.train={drum_shards}", *tiny, *averaging)
    few = ["num_clips=2", "metrics.likelihood.flow=null", "metrics.likelihood.bound.num_levels=2", "device=cpu"]
    said = program("evaluate.py", "ckpt=runs/averaged", "ema_lengths=[0.05,0.2]", *few)
    assert "least bits_per_dim: ema of length 0." in said
    found = json.loads((tmp_path / "runs/averaged/evaluation/evaluation.json").read_text())
    assert [row["length"] for row in found["ema_lengths"]] == [0.05, 0.2]
    bits = [row["figures"]["bits_per_dim"]["value"] for row in found["ema_lengths"]]
    assert found["best"]["weights"] == f"ema of length {(0.05, 0.2)[bits.index(min(bits))]}"
    program("evaluate.py", "ckpt=runs/averaged/best_average", "output=again", *few)
    again = json.loads((tmp_path / "again/evaluation.json").read_text())["metrics"]["likelihood"]["figures"]
    assert again["bits_per_dim"]["value"] == pytest.approx(min(bits), rel=1e-5)

    refused = program("evaluate.py", "ckpt=runs/averaged", "ema_lengths=[0.5]", *few, status=2)
    assert "length of an average: expected above 0 to 0.2887, got 0.5" in refused
    refused = program("evaluate.py", "ckpt=runs/averaged", "ema_lengths=[0.1]", "ema_monitor=kat", *few, status=2)
    assert "ema_monitor: there is no figure 'kat'. There are: bits_per_dim" in refused
    file = "ckpt=runs/averaged/best_average/step_00000004.ckpt"
    assert "expected ckpt=RUN, the folder of a run" in program("evaluate.py", file, "ema_lengths=[0.1]", status=2)
