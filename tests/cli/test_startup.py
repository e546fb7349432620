"""What a program does first, and text that is the same on every system: consoles and files that are not UTF-8."""

import ast
import io
import subprocess
import sys
from pathlib import Path

import pytest

from audio_diffusion.cli import startup

ROOT = Path(__file__).parents[2]
PROGRAMS = ("train", "sample", "evaluate", "export", "make_shards")
SOURCES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *ROOT.glob("*.py")]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_no_console_ends_a_program_over_a_character(encoding: str) -> None:
    printed = io.BytesIO()
    console = io.TextIOWrapper(printed, encoding=encoding)
    startup.make_printable(console)
    console.write("4 × ε → not UTF-8: \udce9\n")
    console.flush()
    assert printed.getvalue().endswith(b"not UTF-8: ?\n")


def test_streams_without_an_encoding_are_left_alone() -> None:
    for stream in (None, io.StringIO()):
        startup.make_printable(stream)


@pytest.mark.parametrize(
    ("variable", "said"), [("RANK", False), ("SLURM_PROCID", False), ("LOCAL_RANK", False), ("", True)]
)
def test_one_rank_says_that_it_is_loading(
    variable: str, said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "1")
    startup.say_loading()
    assert capsys.readouterr().err == ("audio_diffusion: loading ..\n" if said else "")


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_begins_before_it_imports_torch(program: str) -> None:
    code = (
        "import sys, runpy, audio_diffusion.cli.startup as starting\n"
        "def begin(program):\n    print('begun', 'torch' in sys.modules)\n    raise SystemExit\n"
        f"starting.begin = begin\nrunpy.run_path({str(ROOT / f'{program}.py')!r}, run_name='__main__')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "begun False\n"


def _without_encoding(path: Path) -> list[str]:
    """Calls that read or write text in the encoding of the machine."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
            continue
        if isinstance(node.func, ast.Attribute):
            is_text = node.func.attr in ("read_text", "write_text")
        else:
            modes = [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "mode")]
            is_text = getattr(node.func, "id", "") == "open" and "b" not in "".join(map(ast.unparse, modes))
        if is_text:
            found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    return found


def test_text_files_are_utf_8_on_every_machine() -> None:
    assert [call for path in SOURCES for call in _without_encoding(path)] == []


def test_the_search_finds_text_files_without_encoding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "a.py").write_text("open(p)\nopen(p, 'rb')\nopen(p, 'w', encoding='utf-8')\np.read_text()\n")
    assert [call.partition(": ")[2] for call in _without_encoding(tmp_path / "a.py")] == ["open(p)", "p.read_text()"]
