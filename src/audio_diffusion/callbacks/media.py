"""Adapters that show alerts, tables, pictures and sounds in each kind of logger."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor


@dataclass(frozen=True)
class Sounds:
    """Generated clips, with their pictures and figures.

    Args:
        clips: each ``[C, T]``.
        names: name of each clip.
        captions: text shown beside each clip, if the logger supports it.
        sample_rate: Hz.
        pictures: PNG files by name.
        table: one row of values by column for each clip.
    """

    clips: Sequence[Tensor]
    names: Sequence[str]
    captions: Sequence[str]
    sample_rate: int
    pictures: Mapping[str, Path]
    table: Sequence[Mapping[str, Any]]


class Media:
    """Adapter of a logger that supports only numbers, which shows nothing; other adapters override these methods.

    Args:
        logger: the logger that the adapter writes to.
    """

    def __init__(self, logger: Logger):
        self.logger: Any = logger

    def alert(self, title: str, text: str) -> None:
        """Sends a warning to the user."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        """Shows a table of text."""

    def pictures(self, pictures: Mapping[str, Path], step: int) -> None:
        """Shows PNG files by name."""

    def sounds(self, sounds: Sounds, step: int) -> None:
        """Shows generated clips with their pictures and their table."""

    def finish(self, status: str) -> None:
        """Ends the run in the logger's service, and waits for pending uploads."""


class WandbMedia(Media):
    """Media of a W&B logger."""

    def alert(self, title: str, text: str) -> None:
        self.logger.experiment.alert(title, text, level="WARN")

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        self._log({name: wandb.Table(list(columns), [list(row) for row in rows])}, step)

    def pictures(self, pictures: Mapping[str, Path], step: int) -> None:
        self._log({name: wandb.Image(str(path)) for name, path in pictures.items()}, step)

    def sounds(self, sounds: Sounds, step: int) -> None:
        media: dict[str, Any] = {f"samples/{name}": wandb.Image(str(path)) for name, path in sounds.pictures.items()}
        media |= {  # a panel for each slot, whose name is the same in all rounds
            f"samples/{name}": wandb.Audio(
                clip.cpu().float().clamp(-1, 1).T.numpy(), sample_rate=sounds.sample_rate, caption=caption
            )
            for clip, name, caption in zip(sounds.clips, sounds.names, sounds.captions, strict=True)
        }
        columns: list[Any] = list(sounds.table[0])
        media["samples/table"] = wandb.Table(columns, [[row[c] for c in columns] for row in sounds.table])
        self._log(media, step)

    def finish(self, status: str) -> None:
        """Ends the run; if uploads take too long, the error tells the user how to send the rest.

        Raises:
            TimeoutError: if some data were not sent.
        """
        if wandb.run is None:
            return
        folder = Path(wandb.run.dir).parent
        try:
            wandb.run.finish(exit_code=0 if status == "success" else 1)
        except TimeoutError as error:
            raise TimeoutError(
                f"some data were not sent to the server. To send them later: wandb sync {folder}"
            ) from error

    def _log(self, media: dict[str, Any], step: int) -> None:
        self.logger.experiment.log({**media, getattr(self.logger, "step_key", "trainer/global_step"): step})


class TensorBoardMedia(Media):
    """Media of a TensorBoard logger."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        lines = [" | ".join(row) for row in [columns, ["---"] * len(columns), *rows]]
        self.logger.experiment.add_text(name, "\n".join(lines), step)

    def pictures(self, pictures: Mapping[str, Path], step: int) -> None:
        for name, path in pictures.items():
            self.logger.experiment.add_image(name, _read_png(path), step, dataformats="HWC")

    def sounds(self, sounds: Sounds, step: int) -> None:
        for clip, name in zip(sounds.clips, sounds.names, strict=True):
            mono = clip.cpu().float().mean(0, keepdim=True).clamp(-1, 1)
            self.logger.experiment.add_audio(f"samples/{name}", mono, step, sample_rate=sounds.sample_rate)
        self.pictures({f"samples/{name}": path for name, path in sounds.pictures.items()}, step)


#: the adapter of each kind of logger; all others support only numbers
_KINDS: dict[type[Logger], type[Media]] = {WandbLogger: WandbMedia, TensorBoardLogger: TensorBoardMedia}


def media_of(logger: Logger) -> Media:
    """Returns the adapter for a logger."""
    return next((media for kind, media in _KINDS.items() if isinstance(logger, kind)), Media)(logger)


def _read_png(path: Path) -> Any:
    from matplotlib.image import imread

    return imread(path)[:, :, :3]
