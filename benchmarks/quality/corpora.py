"""The corpora: folders of audio with a manifest, packed once into shards, and crops of their splits."""

import csv
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from audio_diffusion.data.order import ClipOrder, Mixture
from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.data.shards.find import read_classes
from audio_diffusion.data.shards.shards import Shards
from audio_diffusion.data.stream import ClipReader, Reading

ROOT = Path(__file__).parents[2]
#: experiment of a corpus by its name; others are trained as one-shots
EXPERIMENTS = {"speech": "speech", "music": "music", "environment": "environment"}
SPLITS = {"train", "val", "valid", "test"}


@dataclass(frozen=True)
class Corpus:
    """Recordings in shards, and the form in which all systems are given them.

    Attributes:
        name: of the corpus.
        experiment: the experiment of this project whose defaults are compared; the form of the crops is its.
        shards: folder with train-*.tar, val-*.tar and test-*.tar.
        overrides: further options of the experiment.
        classes: class names; empty if the corpus has fewer than two labels.
    """

    name: str
    experiment: str
    shards: Path
    overrides: tuple[str, ...] = ()
    classes: list[str] = field(default_factory=list)

    @property
    def options(self) -> dict[str, Any]:
        """The options that decide the crops: audio, batch_size, data.order.crops_per_clip."""
        files = [ROOT / "configs" / name for name in ("train.yaml", f"experiment/{self.experiment}.yaml")]
        merged = OmegaConf.merge(*map(OmegaConf.load, files), OmegaConf.from_dotlist(list(self.overrides)))
        return {
            **{name: merged.audio[name] for name in ("sample_rate", "channels", "num_samples")},
            "batch_size": merged.batch_size,
            "crops_per_clip": OmegaConf.select(merged, "data.order.crops_per_clip", default=1),
        }

    def crops(self, split: str, count: int, seed: int = 0) -> tuple[Tensor, list[str]]:
        """Up to ``count`` random crops ``[N, C, T]`` of a split and their labels, drawn as in training.

        Every clip is visited once before any is visited again, and only clips of at least two crops are.
        """
        form = self.options
        shards = Shards.open([f"{self.shards}/{split}-*.tar"], RemoteStore(None))
        mixture = Mixture([ClipOrder(shards.num_clips, seed)], [1], None)
        reader = ClipReader([shards], mixture, form["sample_rate"], Reading(self.classes), seed)
        seconds = form["num_samples"] / form["sample_rate"]
        found, labels = list[Tensor](), list[str]()
        clips = int(mixture.num_clips)
        for position in range(clips * 50):
            audio = torch.empty(form["channels"], form["num_samples"])
            crop = reader(position, audio)
            again = position // clips
            if crop.num_valid and (not again or crop.seconds_total >= 2 * again * seconds):
                found.append(audio)
                labels.append(self.classes[crop.label] if self.classes else "")
            if len(found) == count:
                break
        if not found:
            raise ValueError(f"{self.name}: the split {split} has no audio")
        return torch.stack(found), labels


def find(arguments: Sequence[str]) -> dict[str, Path]:
    """The corpora by name: of NAME=FOLDER one, of FOLDER each sub-folder that has a manifest.csv.

    Raises:
        ValueError: if there is no manifest, or it lacks a column or a split.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        if equals:
            found[name] = Path(folder)
        else:
            found |= {path.parent.name: path.parent for path in sorted(Path(argument).glob("*/manifest.csv"))}
    if not found:
        raise ValueError(f"corpora: expected NAME=FOLDER, or a folder of folders with manifest.csv, got {arguments}")
    for name, path in found.items():
        _check(name, path / "manifest.csv")
    return found


def _check(name: str, manifest: Path) -> None:
    if not manifest.is_file():
        raise ValueError(f"{name}: expected a file {manifest}: see benchmarks/quality/README.md")
    with open(manifest, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if missing := {"file", "split"} - set(rows[0] if rows else ()):
        raise ValueError(f"{name}: {manifest} has no column {', '.join(sorted(missing))}")
    given = {row["split"] for row in rows}
    if unknown := given - SPLITS:
        raise ValueError(f"{name}: split: expected train, val or test, got {', '.join(sorted(unknown))}")
    if "train" not in given or "test" not in given or not given & {"val", "valid"}:
        raise ValueError(f"{name}: expected clips of each split, train, val and test, got {', '.join(sorted(given))}")


def prepare(name: str, folder: Path, work: Path, experiment: str | None, overrides: Sequence[str]) -> Corpus:
    """Packs a corpus, on first use, as its manifest says."""
    shards = work / "shards" / name
    if not (shards / "manifest.json").is_file():
        command = [sys.executable, str(ROOT / "make_shards.py"), f"input={folder}", f"output={shards}"]
        subprocess.run([*command, f"manifest={folder / 'manifest.csv'}", "num_workers=1"], check=True, cwd=ROOT)
    classes = read_classes([str(shards)], RemoteStore(None)) or []
    classes = classes if len(classes) > 1 else []
    return Corpus(name, experiment or EXPERIMENTS.get(name, "oneshots"), shards, tuple(overrides), classes)
