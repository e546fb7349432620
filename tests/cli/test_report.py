"""The command report: which of its arguments are folders, and where the page is written."""

import sys
from pathlib import Path

import pytest

from audio_diffusion.cli import command_line, report
from audio_diffusion.cli.config import ConfigError
from audio_diffusion.cli.options import ReportOptions


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """What the program is given of a command line."""
    monkeypatch.setattr(command_line, "_command", "report")
    monkeypatch.setattr(sys, "argv", ["audio-diffusion", "report", *arguments])
    return command_line.typed()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["runs/one"], ["runs=['runs/one']"]),
        (["runs/one", "output=a.html", "lr=0.1"], ["output=a.html", "runs=['runs/one','lr=0.1']"]),  # a folder
        (["it's"], [r"runs=['it\'s']"]),
        (["runs=[a,b]"], ["runs=[a,b]"]),
        (["otput=a"], "report: expected the folder of a run"),
        ([], "report: expected the folder of a run"),
        (["one", "runs=two"], "runs: expected folders with or without runs=, not both"),
    ],
)
def test_folders_need_no_name(
    arguments: list[str], expected: list[str] | str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    if isinstance(expected, list):
        assert typed(monkeypatch, *arguments) == expected
        return
    with pytest.raises(ConfigError, match=expected):
        typed(monkeypatch, *arguments)


def test_a_page_is_written_into_the_run_and_of_several_runs_where_one_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "train/loss": 0.5}\n{"step"')
    report.main(ReportOptions(runs="one", output=None))
    report.main(ReportOptions(runs=["one", "two"], output=None))
    assert capsys.readouterr().out.splitlines() == [
        "note: one: metrics.jsonl: 1 damaged or half-written line left out",
        "written: one/index.html, to open in a browser",
        "note: one: metrics.jsonl: 1 damaged or half-written line left out",
        "note: two: metrics.jsonl: 1 damaged or half-written line left out",
        "written: report.html, to open in a browser",
    ]
    assert 'data-name="two"' in (tmp_path / "report.html").read_text()
    with pytest.raises(ConfigError, match=r"expected the folder of a run.*but none is not a folder"):
        report.main(ReportOptions(runs=["none"], output="page.html"))
