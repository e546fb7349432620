"""The package: what importing it brings, what a wheel of it holds, and the console command that it installs."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import audio_diffusion
from audio_diffusion.cli import command_line, help, main

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchaudio", "lightning", "wandb", "matplotlib", "webdataset", "aiohttp", "transformers")
SCRIPTS = ("train", "sample", "evaluate", "export", "make_shards")


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """console(*arguments) -> (status, output, errors) of audio-diffusion, run in this process."""

    def ran(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(command_line, "_command", None)
        monkeypatch.setattr(main.startup, "begin", lambda program: None)
        monkeypatch.setattr(sys, "argv", ["audio-diffusion", *arguments])
        try:
            main.console()
            status = 0
        except SystemExit as stopped:
            status = stopped.code  # type: ignore[assignment]
        return status, *capsys.readouterr()

    return ran


@pytest.mark.slow
def test_signals_are_listened_to_and_threads_set_up_before_torch_is_imported() -> None:
    code = "import sys; from audio_diffusion.checkpoints import signals; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_package_has_what_it_names_and_nothing_else() -> None:
    assert all(callable(getattr(audio_diffusion, name)) for name in audio_diffusion.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        audio_diffusion.lod  # noqa: B018


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_mistakes_are_answered_before_anything_heavy_is_imported(script: str, tmp_path: Path) -> None:
    code = f"""
import runpy, sys
for argument in ("--help", "nmae=x"):
    sys.argv = ["{script}.py", argument]
    try:
        runpy.run_path({str(ROOT / script)!r} + ".py", run_name="__main__")
    except SystemExit as end:
        print(end.code)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-2:] == ["2", "[]"], done.stdout + done.stderr
    assert done.stderr.startswith("error: nmae: there is no such option.")


def test_types_of_root_options_are_checked_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    code = f"""
import runpy, sys
for script, *arguments in (["train", "name=a", "max_steps=x"], ["sample", "ckpt=a", "num_samples=x"]):
    sys.argv = [script, *arguments]
    try:
        runpy.run_path({str(ROOT)!r} + f"/{{script}}.py", run_name="__main__")
    except SystemExit as end:
        print(end.code)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["2", "2", "[]"], done.stdout + done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith("error: max_steps: expected int")
    assert second == "error: num_samples: expected int, got 'x'"


def test_the_console_command_lists_its_commands_and_names_the_nearest(console: Callable) -> None:
    for arguments in ((), ("--help",)):
        status, output, _ = console(*arguments)
        assert status == 0
        assert [line.split()[0] for line in output.splitlines() if line.startswith("    ")] == list(main.COMMANDS)
    assert console("trian") == (2, "", "error: trian: there is no such command. Did you mean 'train'?\n")
    assert console("--version") == (0, f"audio_diffusion {audio_diffusion.__version__}\n", "")
    assert console("verify")[::2] == (2, "error: verify: expected the shards to check: audio-diffusion verify SHARDS\n")


@pytest.mark.parametrize("command", main.COMMANDS)
def test_help_has_a_line_for_each_option_of_the_program_alone(command: str, console: Callable) -> None:
    status, output, _ = console(command, "--help")
    lines = output.splitlines()
    program, about = main.COMMANDS[command]
    assert status == 0
    assert lines[0] == f"{about[0].upper()}{about[1:]}."
    assert max(map(len, lines)) <= 120
    assert f"usage: audio-diffusion {command}" in output
    own = {o.path for o in help.read_yaml(ROOT / "configs" / f"{program}.yaml").options if not o.is_group}
    listed = {line.strip().split("=")[0] for line in lines if line.startswith("  ")}
    assert ("verify" in listed) if command == "verify" else own <= listed
    assert ("model" in listed) == (program == "train")
    assert ("task=inpaint" in output) == (program == "sample")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of a copy of what git has."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    built = subprocess.run([*pip, "-w", str(target), str(source)], capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    (made,) = target.glob("*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_holds_every_config_and_the_marker_of_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert {f"audio_diffusion/{name}" for name in configs} <= names
    assert "audio_diffusion/py.typed" in names
    assert {f"audio_diffusion/callbacks/page/templates/page.{kind}" for kind in ("html.j2", "css", "js")} <= names


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' folder of a fresh environment with the wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(programs / "python"),
        "install",
        "-q",
        "--no-deps",
        "--no-index",
    ]
    environment = {
        k: v for k, v in os.environ.items() if k != "PYTHONPATH"
    }  # a checkout on it would count as installed
    done = subprocess.run([*pip, str(wheel)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (packages,) = folder.rglob("site-packages")
    dependencies = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(dependencies), encoding="utf-8")
    return programs


@pytest.mark.slow
def test_the_installed_command_trains_on_two_devices_and_samples_from_another_folder(
    installed: Path, drum_shards: Path, tiny_sampled: list[str], tmp_path: Path
) -> None:
    """Lightning starts the second rank with the command that was typed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "SLURM", "PYTHONPATH"))}
    environment |= {"OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(installed / "audio-diffusion"), *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    shutil.copytree(drum_shards, tmp_path / "shards")
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    trained = run("train", "data.train=shards", *tiny_sampled, *two, "name=one", "max_steps=2")
    assert "batch: 4 = 1 node × 2 devices × 2 clips × 1 accumulated" in trained
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in trained
    assert trained.count("next: audio-diffusion sample ckpt=runs/one") == trained.count("starting a new run") == 1
    assert '"git_commit": "version 0.1.0"' in (tmp_path / "runs/one/details.json").read_text()
    run("sample", "ckpt=runs/one", "num_samples=1", "device=cpu")
    assert len(list((tmp_path / "runs/one/generated").glob("*.wav"))) == 1
