"""The files that describe the repository are valid by the schemas of those who read them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", ".github/workflows/*.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/[bf]*.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("citation-file-format", "CITATION.cff"),
    ],
)
def test_files_are_valid(schema: str, files: str) -> None:
    paths = [str(path) for path in ROOT.glob(files)]
    assert paths
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_smoke_run_of_other_systems_uses_commands_of_the_readme() -> None:
    workflow, readme = ((ROOT / name).read_text() for name in (".github/workflows/test.yml", "README.md"))
    assert ".ci/run" in workflow
    for script in ("make_shards.py", "train.py", "sample.py"):
        assert f"python {script} " in workflow
        assert f"python {script} " in readme
