"""The page of a run: what it holds, how large it is, and that damaged records do not prevent it."""

import json
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from audio_diffusion.callbacks.page import curves
from audio_diffusion.callbacks.page.metrics_log import MOST_KEPT, Curve, MetricsLog
from audio_diffusion.callbacks.page.page import write_page, write_results_page
from audio_diffusion.callbacks.page.records import lowest, read_run
from audio_diffusion.callbacks.sampling import SampleAudio
from audio_diffusion.data.training_data import CropFormat
from audio_diffusion.diffusion.solvers.ddim import ddim

Make = Callable[..., Path]


def data_of(page: str) -> list[dict[str, Any]]:
    """The runs that the script of a page is given."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])["runs"]


def test_a_page_has_the_sounds_curves_and_settings_of_its_run(make_run_folder: Make) -> None:
    folder = make_run_folder("one")
    assert write_page([folder], folder / "index.html") == []
    page = (folder / "index.html").read_text()
    (run,) = data_of(page)
    assert [found["step"] for found in run["rounds"]] == [5, 10, 15]
    assert [(slot["id"], slot["label"], slot["seed"]) for slot in run["slots"]][2] == (
        "002_kick",
        "kick",
        f"{10**17 + 2}",
    )
    for found in run["rounds"]:  # every address is that of a file, from the page's folder
        assert found["pictures"] == ["spectrograms.png", "reverse_process.png"]
        for slot, peak, rms, clipped, has_picture in found["clips"]:
            assert (folder / run["samples"] / found["folder"] / f"{run['slots'][slot]['id']}.wav").is_file()
            assert (folder / run["thumbnails"] / found["folder"] / f"{run['slots'][slot]['id']}.png").is_file()
            assert (peak, rms, clipped, has_picture) == (-6.0, -9.1, 0.0, 1)
    assert "20 of 1,000" in page
    for title in ("Loss", "Loss by noise level: range of t", "metrics/kad", "train/lr"):
        assert f"<figcaption>{title}</figcaption>" in page
    assert page.count('class="band') == 1  # the interval of metrics/kad, which has no curves of its own
    assert '<th scope="row">trainer.max_steps</th><td>1000</td>' in page
    assert "http" not in re.sub(r"<footer>.*", "", page.replace("http-equiv", ""))  # nothing is fetched


def test_a_page_of_200_rounds_and_a_long_log_is_small(make_run_folder: Make) -> None:
    folder = make_run_folder("long", rounds=200, rows=20_000, audio=False)
    write_page([folder], folder / "index.html")
    page = (folder / "index.html").read_text()
    assert len(data_of(page)[0]["rounds"]) == 200
    assert len(page.encode()) < 500_000
    points = re.findall(r'<polyline[^>]* points="([^"]*)"', page)
    assert max(len(line.split()) for line in points) <= curves.MOST


def test_several_runs_stand_side_by_side_with_their_differences(make_run_folder: Make, tmp_path: Path) -> None:
    one, two = make_run_folder("one"), make_run_folder("two", rounds=2, lr=0.2)
    path = tmp_path / "pages" / "both.html"
    write_page([one, two], path)
    page = path.read_text()
    assert [run["name"] for run in data_of(page)] == ["one", "two"]
    assert data_of(page)[1]["samples"] == "../runs/two/samples"
    table = page.partition('id="differences"')[2].partition("</section>")[0]
    assert re.findall(r'<th scope="row">([^<]*)</th>', table) == ["lr"]  # names and folders differ in any two
    assert "<td>0.1</td><td>0.2</td>" in table
    assert page.count("<figcaption>val/loss_ema</figcaption>") == 1
    assert page.count('data-name="two"') == page.count('data-name="one"') > 5


@pytest.mark.parametrize("damage", ["line", "sound", "empty", "table", "config", "nothing"])
def test_damaged_records_are_noted_and_the_rest_is_shown(damage: str, make_run_folder: Make) -> None:
    folder = make_run_folder("one", rounds=0 if damage == "nothing" else 2)
    round_folder = folder / "samples" / "step_00000005"
    notes = {
        "line": "metrics.jsonl: 1 damaged or half-written line left out",
        "sound": "samples/step_00000005: samples.csv has 6 rows for 5 sounds",
        "empty": "1 spectrogram cannot be drawn",
        "table": "samples/step_00000005/samples.csv cannot be read",
        "config": "config.yaml cannot be read",
        "nothing": "",
    }
    if damage == "line":
        with open(folder / "metrics.jsonl", "a") as f:
            f.write('{"step": 21, "train/lo')
    elif damage == "sound":
        (round_folder / "001_hat.wav").unlink()
    elif damage == "empty":
        (round_folder / "001_hat.wav").write_bytes(b"RIFF")
    elif damage == "table":
        (round_folder / "samples.csv").write_bytes(b"\xff\xfe,\n")
    elif damage == "config":
        (folder / "config.yaml").write_text("a: [")
    found = write_page([folder], folder / "index.html")
    assert len(found) == (damage != "nothing")
    page = (folder / "index.html").read_text()
    assert notes[damage] in " ".join(found)
    assert "<figcaption>Loss</figcaption>" in page
    if damage == "nothing":
        assert "No sounds yet" in page
        return
    counts = [len(each["clips"]) for each in data_of(page)[0]["rounds"]]
    assert counts == [5 if damage == "sound" else 6, 6]
    labels = [slot["label"] for slot in data_of(page)[0]["slots"]]
    assert labels == ["clap", "hat", "kick"] * 2  # of a round without a table by the names of its files


def test_a_folder_of_sounds_has_a_page_beside_it(make_run_folder: Make, tmp_path: Path) -> None:
    folder = tmp_path / "generated"
    make_run_folder("one", rounds=1)
    (tmp_path / "runs/one/samples/step_00000005").rename(folder)
    with pytest.raises(ValueError, match=r"expected .*generated\.json"):
        write_results_page(folder, tmp_path / "generated.html")
    files = [{"file": f"{i:03d}_{label}.wav", "label": label, "seed": i} for i, label in enumerate(["clap", "hat"])]
    record = {"checkpoint": {"step": 7}, "options": {"seed": 3}, "files": [*files, {"file": "002_gone.wav"}]}
    (tmp_path / "generated.json").write_text(json.dumps(record))
    notes = write_results_page(folder, tmp_path / "generated.html")
    assert notes == ["generated: 1 of 3 sounds missing"]
    page = (tmp_path / "generated.html").read_text()
    (found,) = data_of(page)
    assert (found["isFolder"], found["samples"], found["ending"]) == (True, ".", ".wav")
    assert [slot["seed"] for slot in found["slots"]] == ["0", "1"]
    assert found["rounds"][0]["folder"] == "generated"
    assert all(address.startswith("data:image/png;base64,iVBOR") for address in found["embedded"].values())
    assert len(found["embedded"]) == 2
    assert '<th scope="row">options.seed</th><td>3</td>' in page


def test_values_that_are_not_finite_are_gaps(make_run_folder: Make) -> None:
    folder = make_run_folder("one", rounds=0)
    with open(folder / "metrics.jsonl", "a") as f:
        f.write('{"step": 21, "train/loss": NaN}\n{"step": 22, "train/loss": Infinity, "lonely": 3}\n')
    run = read_run(folder)
    assert run.curves["train/loss"][-1][0] == 20
    assert run.notes == ["metrics.jsonl: 2 values not finite, not drawn"]
    (panel,) = (panel for panel in curves.panels([run]) if panel.title == "lonely")
    assert panel.lines[0].last == "3"


def test_what_comes_from_records_is_no_html(make_run_folder: Make) -> None:
    folder = make_run_folder("one", rounds=1)
    (folder / "config.yaml").write_text('caption: "<script>alert(1)</script>"\n')
    table = folder / "samples" / "step_00000005" / "samples.csv"
    table.write_text(table.read_text().replace("hat", "</script><b>"))
    write_page([folder], folder / "index.html")
    page = (folder / "index.html").read_text()
    assert "<script>alert" not in page
    assert "</script><b>" not in page
    assert data_of(page)[0]["slots"][1]["label"] == "</script><b>"


def test_only_pages_are_replaced(make_run_folder: Make, tmp_path: Path) -> None:
    folder = make_run_folder("one", rounds=0)
    other = tmp_path / "mine.html"
    other.write_text("<html>")
    with pytest.raises(ValueError, match="is not a page of this program"):
        write_page([folder], other)
    with pytest.raises(ValueError, match="expected the folder of a run"):
        write_page([tmp_path / "runs"], tmp_path / "page.html")
    assert other.read_text() == "<html>"


def test_a_page_written_again_reads_the_new_rows_alone(tmp_path: Path) -> None:
    def row(step: int, **values: float) -> str:
        return json.dumps({"step": step, **values}) + "\n"

    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    assert log.read() == []
    path.write_text("".join(row(step, loss=100.0 - step) for step in range(1, 11)) + '{"step": 11, "lo')
    assert log.read() == ["metrics.jsonl: 1 damaged or half-written line left out"]
    with open(path, "a") as f:
        f.write('ss": 1.0}\n' + row(12, loss=50.0))
    assert log.read() == []  # the line is whole now
    curve = log.curves["loss"]
    assert [value for _, value in curve[-3:]] == [90.0, 1.0, 50.0]
    assert (curve.least, curve.last) == ((11, 1.0), (12, 50.0))
    path.write_text(row(1, other=1.0))  # a run that begins again cuts the file
    assert log.read() == []
    assert list(log.curves) == ["other"]


def test_a_long_curve_is_kept_in_few_points_with_its_least_and_last_value() -> None:
    curve = Curve()
    for step in range(1, 20_001):
        curve.add(step, -7.0 if step == 777 else float(step % 10))
    assert len(curve) <= MOST_KEPT
    assert (curve.least, curve.last) == ((777, -7.0), (20_000, 0.0))
    assert all(3.5 < value < 5.5 for step, value in curve[:-1] if abs(step - 777) > 20)
    assert [step for step, _ in curve] == sorted(step for step, _ in curve)


def test_the_lowest_and_the_last_value_of_the_curves_that_judge_a_model(make_run_folder: Make) -> None:
    folder = make_run_folder("one", rounds=0)
    with open(folder / "metrics.jsonl", "a") as f:
        f.write('{"step": 1500, "metrics/kad": 3}\n')
    assert [str(found) for found in lowest(read_run(folder).curves)] == [
        "val/loss_ema: lowest 0.1177 at step 20, last 0.1177",
        "metrics/kad: lowest 2.5 at step 20, last 3",
    ]


@pytest.mark.parametrize(
    ("low", "high", "is_log", "expected"),
    [
        (0, 1000, False, [0, 500, 1000]),
        (0.1, 0.35, False, [0.1, 0.2, 0.3]),
        (0.03, 2.0, True, [0.05, 0.1, 0.2, 0.5, 1, 2]),
        (1e-4, 10, True, [1e-4, 1e-2, 1]),
    ],
)
def test_ticks_are_round_numbers_within_the_range(low: float, high: float, is_log: bool, expected: list) -> None:
    assert curves.ticks(low, high, 4, is_log) == pytest.approx(expected)


@pytest.mark.slow
def test_training_writes_the_page_after_each_round_and_goes_on_where_it_cannot(make_run: Any, tmp_path: Path) -> None:
    def callback(page: Path) -> SampleAudio:
        options = {"every_n_steps": 1, "num_samples": 2, "num_process_points": 2, "page": str(page)}
        folder = str(page.parent / "samples")
        return SampleAudio(partial(ddim, num_steps=2), CropFormat(16000, 1, 2048), ["clap", "hat"], folder, **options)

    make_run(max_steps=2, callbacks=[callback(tmp_path / "good" / "index.html")]).fit()
    page = (tmp_path / "good" / "index.html").read_text()
    assert [found["step"] for found in data_of(page)[0]["rounds"]] == [1, 2]

    (tmp_path / "bad" / "index.html").mkdir(parents=True)
    run = make_run(max_steps=2, callbacks=[callback(tmp_path / "bad" / "index.html")])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit()
    assert run.trainer.global_step == 2
    assert sum("cannot be written; training continues without it" in str(w.message) for w in caught) == 1
    assert [row["page/failures"] for row in run.rows if "page/failures" in row] == [1, 2, 3]
