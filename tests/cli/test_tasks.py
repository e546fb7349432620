"""Tasks of sample.py are found by name, in this package or in the user's own, and their options are checked."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from audio_diffusion import Model
from audio_diffusion.cli.samples import Input, Sample
from audio_diffusion.cli.tasks.task import make_task
from audio_diffusion.inference.targets import ConfigError

OWN = """
from dataclasses import dataclass
import torch
from audio_diffusion.cli.samples import Result
from audio_diffusion.cli.tasks.task import Task, arguments_of, clips_of
from audio_diffusion.diffusion.editing.constraints import Kept

@dataclass(frozen=True)
class KeepStart(Task):
    seconds: float = 0.05

    def perform(self, model, batch):
        def kept(clip):
            keep = torch.arange(clip.shape[-1]) < round(self.seconds * model.sample_rate)
            return Kept(clip, keep.expand(len(clip), 1, -1))

        made = model.edit(clips_of(batch), constraint=kept, **arguments_of(batch))
        return [Result([clip]) for clip in made]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tasks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_tasks", raising=False)


def test_a_task_of_ones_own_is_one_class(own: None, model: Model, clips: torch.Tensor) -> None:
    batch = [Sample(i, i, "kick", files=(Input(Path("a.wav"), None, clip),)) for i, clip in enumerate(clips)]
    results = make_task("my_tasks.KeepStart", {"seconds": 0.05}).perform(model, batch)
    for clip, result in zip(clips, results, strict=True):
        torch.testing.assert_close(result.clips[0][:, :400], clip[:, :400], rtol=0, atol=1e-6)
        assert (result.clips[0] != clip)[:, 400:].float().mean() > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "vary", "strength": "loud"}, "strength: expected float, got 'loud'"),
        ({"task": "inpaint", "regions": 0.5}, "regions: expected a list, got 0.5"),
        ({"task": "vary"}, "task=vary: its YAML lacks the options strength"),
        ({"task": "my_tasks.Missing"}, "my_tasks has no 'Missing'"),
        (
            {"task": "my_tasks.Kept"},
            "task: expected a subclass of audio_diffusion.cli.tasks.task.Task, got my",
        ),
    ],
)
def test_options_of_a_task_are_checked(own: None, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_task(options["task"], options)
    assert str(refused.value).startswith(message)
