"""The code of the tutorial runs as it is printed, and prints what the text says; both languages have the same code."""

import contextlib
import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
PRINTS = re.compile(r"# prints (about )?(.*)$")
TOLERANCE = 0.25  # of figures of a trained network, relative


def code_blocks(page: str) -> list[str]:
    """The Python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def assert_prints(block: str, printed: str) -> None:
    """Compares the lines that a block has printed with its comments ``# prints [about] ..``."""
    stated = [found for line in block.splitlines() if (found := PRINTS.search(line))]
    assert len(printed.splitlines()) == len(stated), printed
    for line, (about, expected) in zip(printed.splitlines(), (found.groups() for found in stated), strict=True):
        if not about:
            assert line == expected
            continue
        assert NUMBER.sub("#", line) == NUMBER.sub("#", expected)
        numbers, about_numbers = ([float(n) for n in NUMBER.findall(text)] for text in (line, expected))
        assert numbers == pytest.approx(about_numbers, rel=TOLERANCE, abs=0.01)


@pytest.mark.documentation
def test_the_code_runs_and_prints_what_the_text_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    with torch.random.fork_rng():
        for block in code_blocks("tutorial.md"):
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(block, "tutorial.md", "exec"), namespace)
            assert_prints(block, printed.getvalue())
    plt.close("all")
    pictures = {path.name for path in tmp_path.glob("*.png")}
    shown = set(re.findall(r"\]\((tutorial_\w+\.png)\)", (DOCS / "tutorial.md").read_text(encoding="utf-8")))
    assert shown == pictures
    assert all((DOCS / name).stat().st_size < 100_000 for name in shown)


def test_a_wrong_output_is_found() -> None:
    assert_prints("print(x)  # prints about [1.0]", "[1.1]")
    for stated, printed in [("[1.0]", "[1.1]"), ("about [1.0]", "[2.0]"), ("about [1.0]", "1.0"), ("[1.0]", "")]:
        with pytest.raises(AssertionError):
            assert_prints(f"print(x)  # prints {stated}", printed)


def test_both_languages_have_the_same_code_and_formulas() -> None:
    english, chinese = ((DOCS / name).read_text(encoding="utf-8") for name in ("tutorial.md", "tutorial.zh.md"))
    fenced = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    assert fenced.findall(english) == fenced.findall(chinese)
    assert english.count("\n## ") == chinese.count("\n## ")
