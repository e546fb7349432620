"""The clips of an evaluation that one can listen to, beside its figures."""

from pathlib import Path
from typing import Any

from torch import Tensor

from audio_diffusion.data.audio.reading import file_name, write_audio
from audio_diffusion.inference.levels import limited
from audio_diffusion.metrics.metric import Clips, unpadded

FOLDER = "sounds"  # in the folder of the evaluation


class Heard:
    """Keeps the first clips of each source, and writes them.

    Args:
        most: number of clips of a source.
    """

    def __init__(self, most: int = 12):
        self.most = most
        self._clips: dict[str, list[tuple[str, str | None, Tensor]]] = {}

    def begin(self, source: str) -> None:
        """Forgets the clips of a source."""
        self._clips[source] = []

    def add(self, clips: Clips, source: str) -> None:
        """Keeps clips of a source, until there are enough."""
        kept = self._clips.setdefault(source, [])
        if len(kept) < self.most:
            named = [both for both in zip(clips.names, clips.labels, clips.mask, strict=True) if both[2].any()]
            for (name, label, _), audio in zip(named, unpadded(clips), strict=True):
                kept.append((name, label, audio.clone()))
            del kept[self.most :]

    def rename(self, source: str, name: str) -> None:
        """Calls the clips of a source by another name, so that the next ones of the source do not replace them."""
        self._clips[name] = self._clips.pop(source, [])

    def write(self, folder: Path, sample_rate: int) -> list[dict[str, Any]]:
        """Writes the clips as WAV files, in place of those of an earlier evaluation.

        Returns:
            For each its file, relative to ``folder``, its source, its label and its name.
        """
        target, rows = folder / FOLDER, []
        for old in target.glob("*.wav"):
            old.unlink()
        for source, clips in self._clips.items():
            for number, (name, label, audio) in enumerate(clips):
                file = target / f"{file_name(source)}_{number:03d}_{file_name(label or name)}.wav"
                file.parent.mkdir(exist_ok=True)
                write_audio(file, limited(audio), sample_rate)
                row = {"file": f"{FOLDER}/{file.name}", "source": source, "label": label, "name": name}
                rows.append(row)
        return rows
