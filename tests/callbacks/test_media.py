"""Each kind of logger shows what it can, by one adapter."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from audio_diffusion.callbacks.jsonl import JsonlLogger
from audio_diffusion.callbacks.media import Media, Sounds, TensorBoardMedia, WandbMedia, media_of


class Experiment:
    """Records the calls of a logger's service."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self.calls.append((name, args))


@pytest.fixture
def sounds(tmp_path: Path) -> Sounds:
    plt.imsave(tmp_path / "grid.png", [[0.0, 1.0]])
    clips = [torch.full((2, 50), 3.0), torch.zeros(2, 50)]
    table = [{"label": "kick", "peak": 3.0}, {"label": "hat", "peak": 0.0}]
    return Sounds(clips, ["a", "b"], ["loud a", "b"], 1000, {"grid": tmp_path / "grid.png"}, table)


def test_each_kind_of_logger_has_its_adapter(tmp_path: Path) -> None:
    class Own(TensorBoardLogger):
        """A user's own logger is of the kind that it derives from."""

    found = [
        media_of(logger)
        for logger in (
            Own(str(tmp_path)),
            WandbLogger(offline=True, save_dir=str(tmp_path)),
            CSVLogger(str(tmp_path)),
            JsonlLogger(str(tmp_path)),
        )
    ]
    assert [type(media) for media in found] == [TensorBoardMedia, WandbMedia, Media, Media]


def test_tensorboard_is_given_each_clip_and_picture(sounds: Sounds) -> None:
    experiment = Experiment()
    media = TensorBoardMedia(SimpleNamespace(experiment=experiment))  # type: ignore[arg-type]
    media.sounds(sounds, 7)
    names = [(name, args[0], args[2]) for name, args in experiment.calls]
    assert names == [
        ("add_audio", "samples/a", 7),
        ("add_audio", "samples/b", 7),
        ("add_image", "samples/grid", 7),
    ]
    assert torch.equal(experiment.calls[0][1][1], torch.ones(1, 50))  # mono, and no louder than full scale
    media.table("skipped", ["key"], [["x"]], 8)
    assert experiment.calls[-1] == ("add_text", ("skipped", "key\n---\nx", 8))


def test_wandb_is_given_everything_in_one_row(sounds: Sounds, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("Audio", "Image", "Table"):
        monkeypatch.setattr(f"wandb.{kind}", lambda *args, kind=kind, **options: (kind, options.get("caption")))
    experiment = Experiment()
    media = WandbMedia(SimpleNamespace(experiment=experiment, step_key="step"))  # type: ignore[arg-type]
    media.sounds(sounds, 7)
    assert experiment.calls == [
        (
            "log",
            (
                {
                    "samples/grid": ("Image", None),
                    "samples/a": ("Audio", "loud a"),
                    "samples/b": ("Audio", "b"),
                    "samples/table": ("Table", None),
                    "step": 7,
                },
            ),
        )
    ]


def test_another_logger_is_given_nothing(sounds: Sounds) -> None:
    experiment = Experiment()
    media = Media(SimpleNamespace(experiment=experiment))  # type: ignore[arg-type]
    media.alert("title", "text")
    media.table("skipped", ["key"], [["x"]], 8)
    media.pictures(sounds.pictures, 8)
    media.sounds(sounds, 8)
    media.finish("success")
    assert experiment.calls == []
