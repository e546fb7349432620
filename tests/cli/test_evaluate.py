"""evaluate.py: folders of audio of every kind, and mistakes that are found before anything is measured."""

import json
import re
import signal as signal_module
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio_diffusion.callbacks.page.page import write_evaluation_page
from audio_diffusion.cli import evaluate, options
from audio_diffusion.cli.config import ConfigError, read_command_line, to_plain
from audio_diffusion.cli.options import EvaluateOptions
from audio_diffusion.inference import checkpoint_reader
from audio_diffusion.metrics.bits import BoundMeter
from audio_diffusion.metrics.bits_per_dim import BitsPerDim
from audio_diffusion.metrics.copies import Copies
from audio_diffusion.metrics.distance import Distances
from audio_diffusion.metrics.distances.kernel import kad
from audio_diffusion.metrics.distances.neighbours import precision_recall_density_coverage
from audio_diffusion.metrics.embeddings.log_mel import LogMel
from audio_diffusion.metrics.metric import Clips, Figure, Metric, Subject
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


def test_an_evaluation_leaves_a_page_with_its_sounds_and_figures(
    tmp_path: Path, signal: dict[str, Metric], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, real = sounds(tmp_path / "made", *[0.1] * 14), sounds(tmp_path / "real", 0.2)
    (tmp_path / "made" / "0kick").mkdir()
    (tmp_path / "made" / "0.wav").rename(tmp_path / "made" / "0kick" / "first.wav")
    monkeypatch.setattr(evaluate, "build_metrics", lambda _: signal)
    given = replace(NONE, folder=made, reference=real, output=str(tmp_path / "out"))
    for _ in range(2):  # a second evaluation replaces the sounds of the first
        evaluate.main(given)
    assert f"to listen: {tmp_path}/out/index.html" in capsys.readouterr().out
    page, found = (
        (tmp_path / "out" / "index.html").read_text(),
        json.loads((tmp_path / "out/evaluation.json").read_text()),
    )
    assert [row["source"] for row in found["sounds"]] == ["real"] + ["generated"] * 12
    assert {path.name for path in (tmp_path / "out" / "sounds").iterdir()} == {
        Path(row["file"]).name for row in found["sounds"]
    }
    (run,) = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["runs"]  # type: ignore[index]
    assert len(run["embedded"]) == 13  # a spectrogram of each
    assert {slot["label"] for slot in run["slots"]} == {"real", "generated", "0kick"}
    for slot in run["slots"]:
        assert (tmp_path / "out" / run["samples"] / "sounds" / f"{slot['id']}.wav").is_file()
    assert '<th scope="row">signal/rms_dbfs</th>' in page
    assert 'src="spectrum.png"' in page


def test_the_page_of_an_evaluation_shows_a_sweep_and_lengths(tmp_path: Path) -> None:
    figure = {"value": 3.25, "error": 0.5, "interval": [2.0, 4.5], "note": ""}
    row = {"sampler": "unipc", "num_steps": 8, "guidance_scale": 1.0, "network_calls": 8.0, "real_time_factor": 2.5}
    unknown = {"value": None, "error": None, "interval": None, "note": "too few"}
    record = {
        "step": 7, "clips": {"real": 1}, "metrics": {}, "sounds": [], "sweep": [{**row, "figures": {"kad": figure}}],
        "ema_lengths": [{"length": 0.05, "figures": {"kad": unknown}}],
    }  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    path, notes = write_evaluation_page(tmp_path)
    page = path.read_text()
    assert not notes
    assert "<td>unipc</td><td>8</td><td>1</td><td>8</td><td>2.5</td><td>3.25 ± 0.5 (2 to 4.5)</td>" in page
    assert "<td>0.05</td><td>-</td>" in page


def test_options_that_only_a_model_has_are_named_beside_a_folder(
    tmp_path: Path, signal: dict[str, Metric], capsys: pytest.CaptureFixture[str]
) -> None:
    made, real = sounds(tmp_path / "made", 0.1), sounds(tmp_path / "real", 0.1)
    given = replace(NONE, folder=made, reference=real, device="auto")
    evaluate.evaluate_folder(given, signal)
    assert "not used" not in capsys.readouterr().out
    evaluate.evaluate_folder(replace(given, device="cpu", weights="raw", sampler={"num_steps": 2}), signal)
    assert f"not used with folder={made}, which has no model: device, weights, sampler" in capsys.readouterr().out


def test_the_defaults_of_a_models_options_are_those_of_the_configuration() -> None:
    cfg, _ = read_command_line("evaluate", ["ckpt=x"])
    assert {name: to_plain(cfg).get(name) for name in evaluate._OF_MODELS} == evaluate._OF_MODELS


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


class Counted(SignalComparison):
    """Counts the clips that it is given."""

    def start(self, subject: Subject) -> None:
        super().start(subject)
        self.started = getattr(self, "started", 0) + 1
        self.given = getattr(self, "given", Counter())

    def update(self, clips: Clips, source: str) -> None:
        super().update(clips, source)
        self.given[source] += len(clips)


def test_the_real_clips_are_measured_once_for_all_lengths_and_snapshots_are_read_once(
    tiny_checkpoint: Path, drum_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, reads = checkpoint_reader.read_weights(tiny_checkpoint, "ema"), []

    def rebuild(run: str, lengths: list[float]) -> list[checkpoint_reader.Weights]:
        reads.append(lengths)
        louder = [{name: value * (1 + length) for name, value in weights.state.items()} for length in lengths]
        return [
            replace(weights, state=state, kind=f"ema of length {n:g}") for state, n in zip(louder, lengths, strict=True)
        ]

    monkeypatch.setattr(evaluate.averages, "rebuild_weights", rebuild)
    metrics: dict[str, Metric] = {"counted": Counted(), "bits": BitsPerDim(BoundMeter(2, 1), None)}
    given = replace(
        NONE, ckpt=str(tmp_path), reference=str(drum_shards), num_clips=3, num_generated=2,
        ema_lengths=[0.05, 0.1, 0.2], output=str(tmp_path / "out"), sampler={"num_steps": 1},
    )  # fmt: skip
    evaluation, about, _ = evaluate.evaluate_lengths(given, metrics)
    assert reads == [[0.05, 0.1, 0.2]]
    counted = metrics["counted"]
    assert isinstance(counted, Counted)
    assert counted.given == {"real": 3, "generated": 6}
    assert counted.started == 1
    assert evaluation.counts == {"real": 3, "train": 0, "generated": 2}
    figures = [row["figures"] for row in about["ema_lengths"]]
    assert len({row["bits_per_dim"]["value"] for row in figures}) == 3  # of the model: measured for each length
    one = {"counted": SignalComparison()}
    monkeypatch.setattr(evaluate.averages, "write_checkpoint", lambda *_: tmp_path)
    alone = evaluate.evaluate_lengths(replace(given, ema_lengths=[0.2]), one)[1]["ema_lengths"][0]["figures"]
    assert {name: figures[-1][name] for name in alone} == alone


class Interrupting(SignalComparison):
    """Is interrupted while it computes its figures."""

    def compute(self) -> dict[str, Figure]:
        signal_module.raise_signal(signal_module.SIGINT)
        return super().compute()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests run in the background, and does as before afterwards."""
    before = signal_module.signal(signal_module.SIGINT, signal_module.default_int_handler)
    yield
    signal_module.signal(signal_module.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("finished", [True, False])
def test_ctrl_c_while_figures_are_computed_keeps_the_finished_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    made, real = sounds(tmp_path / "made", 0.1), sounds(tmp_path / "real", 0.1)
    metrics: dict[str, Metric] = {**({"signal": SignalComparison()} if finished else {}), "slow": Interrupting()}
    monkeypatch.setattr(evaluate, "build_metrics", lambda _: metrics)
    with pytest.raises(SystemExit) as ended:
        evaluate.main(replace(NONE, folder=made, reference=real))
    assert ended.value.code == 130
    said, path = capsys.readouterr().err, tmp_path / "made_evaluation" / "evaluation.json"
    if finished:
        assert "those of slow were not finished; kept in" in said
        found = json.loads(path.read_text())
        assert found["interrupted"]
        assert list(found["metrics"]) == ["signal"]
    else:
        assert "no figure was finished, so nothing is written" in said
        assert not path.parent.exists()


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
