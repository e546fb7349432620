"""The container image, as far as no engine is needed: what enters it suffices for the programs, and is pinned."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Dockerfile copies out of what .dockerignore lets through, laid out as in /app."""
    app = tmp_path_factory.mktemp("app")
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for copied in re.findall(r"^COPY (.+)$", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE):
        *sources, target = copied.split()
        for source in sources:
            assert source.rstrip("/") in allowed, f".dockerignore keeps {source} out"
            if source.endswith("/"):  # a folder's contents
                shutil.copytree(ROOT / source, app / target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
            else:
                shutil.copy(ROOT / source, app / target)
    return app


RUN_ALL = r"""
import os, runpy, sys
image, *programs = sys.argv[1:]
for program in programs:
    sys.argv = [f"{image}/{program}", "--cfg", "job"]
    runpy.run_path(sys.argv[0], run_name="__main__")
import audio_diffusion
from audio_diffusion.cli.train import git_commit
print(audio_diffusion.__file__)
print(git_commit())  # nothing says it yet
open(f"{image}/COMMIT", "w").write("0123abc\n")
print(git_commit())
os.environ["AUDIO_DIFFUSION_COMMIT"] = "4567def"
print(git_commit())
"""


@pytest.mark.slow
def test_the_programs_need_no_file_that_the_image_lacks_and_know_its_commit(image: Path, tmp_path: Path) -> None:
    programs = sorted(p.name for p in ROOT.glob("*.py") if p.name != "setup.py")
    environment = {
        **os.environ,
        "PYTHONPATH": str(image / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "AUDIO_DIFFUSION_COMMIT": "",
        "GIT_CEILING_DIRECTORIES": str(image.parent),
    }
    ask = [sys.executable, "-c", RUN_ALL, str(image), *programs]
    done = subprocess.run(ask, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    package, *commits = done.stdout.splitlines()[-4:]
    assert Path(package).is_relative_to(image)
    assert commits == ["unknown", "0123abc", "4567def"]
    assert not list(tmp_path.iterdir())


def test_every_dependency_is_pinned_to_a_version_that_is_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(pin.name.lower().replace("_", "-"), []).append(pin)
    wanted = [Requirement(text) for group in project["optional-dependencies"].values() for text in group]
    for requirement in [*map(Requirement, project["dependencies"]), *wanted]:
        found = pins.get(requirement.name.lower().replace("_", "-"))
        assert found, f"constraints.txt has no {requirement.name}"
        for pin in found:
            version = next(iter(pin.specifier)).version
            assert requirement.specifier.contains(version), f"{requirement} refuses constraints.txt's {version}"
