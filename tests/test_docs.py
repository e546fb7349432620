"""The documentation builds, its links lead somewhere, and the page of options is that of the configuration."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from audio_diffusion.diffusion import schedules
from audio_diffusion.diffusion.parameterization import Epsilon
from audio_diffusion.diffusion.process import Diffusion
from audio_diffusion.diffusion.solvers.ddim import ddim
from audio_diffusion.metrics.metric import Clips, Subject
from audio_diffusion.networks.conditions.condition import Label
from audio_diffusion.networks.network import check_network
from audio_diffusion.representations.representation import check_representation

ROOT = Path(__file__).parents[1]
PAGES = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_shows_formulas(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "tutorial" / "index.html").read_text(encoding="utf-8")
    assert page.count("<math") > 40
    assert "endofformula" not in page
    assert "$`" not in page


@pytest.mark.slow
def test_the_page_of_options_is_up_to_date_and_every_option_is_described() -> None:
    done = subprocess.run([sys.executable, "docs/make_options.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|mailto:|#", target):
            assert ((ROOT / page).parent / target.split("#")[0]).exists(), f"{page}: {target}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000


def test_the_parts_of_the_page_on_extending_work() -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    page: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "extending.md", "exec"), page)

    network = page["MyNetwork"](1, {"label": Label(3)}, width=8)
    check_network(network)
    x_t, t = torch.randn(2, 1, 32), torch.tensor([0.2, 0.9])
    given = network(x_t, t, {"label": torch.tensor([0, 2])})
    assert given.shape == x_t.shape
    assert not torch.equal(given, network(x_t, t, {"label": torch.tensor([1, -1])}))

    representation, stereo = page["MidSide"](3.0), torch.randn(2, 2, 32, dtype=torch.float64)
    check_representation(representation)
    torch.testing.assert_close(representation.decode(representation.encode(stereo)), stereo)
    torch.testing.assert_close(representation.encode(stereo).square().sum(), 9 * stereo.square().sum())

    loudness = page["Loudness"]()
    audio = torch.full((1, 1, 64), 0.1)  # -20 dBFS
    of_crop, of_user = loudness.prepare(audio, "cpu"), loudness.prepare(torch.tensor([-20.0]), "cpu")
    torch.testing.assert_close(of_crop, of_user)

    metric = page["LevelDifference"]()
    metric.start(Subject(8000, 1))
    for source, level in (("real", 0.0), ("generated", 0.1)):  # silence is measured, too
        metric.update(
            Clips(torch.full((1, 1, 64), level), torch.ones(1, 1, 64, dtype=torch.bool), ["a"], [None]), source
        )
    assert metric.compute()["level_difference_db"].value == pytest.approx(100)

    process = Diffusion(schedules.linear(), Epsilon())
    denoise = process.denoiser(network, {"label": torch.tensor([0, 1])})
    with torch.no_grad():
        samples = [solver(denoise, x_t, process.schedule, lambda: x_t, num_steps=5) for solver in (page["euler"], ddim)]
    torch.testing.assert_close(samples[0], samples[1], rtol=1e-3, atol=1e-3 * samples[1].std().item())
