"""Where a run is logged: W&B, and a local file that is always complete."""

import json
import netrc
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import lightning as L
import wandb
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor


def has_wandb_credentials() -> bool:
    """Whether W&B can be reached with a key: from WANDB_API_KEY, or the netrc file that ``wandb login`` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_logger(run_dir: str, name: str, project: str = "audio_diffusion", mode: str = "auto") -> WandbLogger:
    """A W&B logger that never asks: online with credentials, else offline. A resumed run goes on as the same W&B run.

    Args:
        run_dir: the run's folder; its W&B id is kept there in ``wandb_id``.
        name: shown in W&B.
        project: W&B project.
        mode: "auto", "online", "offline" or "disabled"; WANDB_MODE in the environment goes before "auto".

    Raises:
        ValueError: for another mode.
    """
    if mode not in ("auto", "online", "offline", "disabled"):
        raise ValueError(f'mode: expected "auto", "online", "offline" or "disabled", got {mode!r}')
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_credentials() else "offline")
    id_file = Path(run_dir, "wandb_id")
    if getattr(rank_zero_only, "rank", 0) == 0 and not id_file.exists():
        id_file.parent.mkdir(parents=True, exist_ok=True)
        id_file.write_text(uuid.uuid4().hex[:12])
    os.environ.setdefault("WANDB_SILENT", "true")
    if mode == "offline":
        rank_zero_info(
            f"W&B: offline, as there are no credentials or offline was asked for. To see the run there, later:\n"
            f"    wandb login && wandb sync {run_dir}/wandb/offline-run-*"
        )
    return WandbLogger(
        name=name,
        project=project,
        save_dir=run_dir,
        id=id_file.read_text().strip() if id_file.exists() else None,
        offline=mode == "offline",
        mode=mode,
    )


class JsonlLogger(Logger):
    """Appends every logged row to ``metrics.jsonl``, one json object a line, complete whatever happens elsewhere."""

    def __init__(self, run_dir: str):
        super().__init__()
        self.path = Path(run_dir, "metrics.jsonl")

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as f:
            f.write(json.dumps(row) + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration lies beside this file, as config.yaml."""


def log_metrics(trainer: L.Trainer, metrics: Mapping[str, float]) -> None:
    """Writes one row of metrics, at the current optimizer step, to all loggers."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=trainer.global_step)


def log_table(trainer: L.Trainer, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Sends a table of words to W&B and TensorBoard."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            table = wandb.Table(list(columns), [list(row) for row in rows])
            logger.experiment.log({name: table, "trainer/global_step": trainer.global_step})
        elif isinstance(logger, TensorBoardLogger):
            lines = [" | ".join(row) for row in [columns, ["---"] * len(columns), *rows]]
            logger.experiment.add_text(name, "\n".join(lines), trainer.global_step)


def log_pictures(trainer: L.Trainer, pictures: Mapping[str, Path]) -> None:
    """Sends pictures (PNG files by name) to W&B and TensorBoard."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            images = {name: wandb.Image(str(path)) for name, path in pictures.items()}
            logger.experiment.log({**images, "trainer/global_step": trainer.global_step})
        elif isinstance(logger, TensorBoardLogger):
            for name, path in pictures.items():
                logger.experiment.add_image(name, _read_png(path), trainer.global_step, dataformats="HWC")


def log_samples(
    trainer: L.Trainer,
    clips: Sequence[Tensor],
    names: Sequence[str],
    sample_rate: int,
    pictures: Mapping[str, Path],
    table: Sequence[Mapping[str, Any]],
) -> None:
    """Sends generated audio, pictures (PNG files by name) and one table row per clip to W&B and TensorBoard."""
    step = trainer.global_step
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            media: dict[str, Any] = {f"samples/{k}": wandb.Image(str(path)) for k, path in pictures.items()}
            media["samples/audio"] = [
                wandb.Audio(clip.cpu().float().clamp(-1, 1).T.numpy(), sample_rate=sample_rate, caption=name)
                for clip, name in zip(clips, names, strict=True)
            ]
            columns: list[Any] = list(table[0])
            media["samples/table"] = wandb.Table(columns, [[row[c] for c in columns] for row in table])
            logger.experiment.log({**media, "trainer/global_step": step})
        elif isinstance(logger, TensorBoardLogger):
            for clip, name in zip(clips, names, strict=True):
                mono = clip.cpu().float().mean(0, keepdim=True).clamp(-1, 1)
                logger.experiment.add_audio(f"samples/{name}", mono, step, sample_rate=sample_rate)
            for name, path in pictures.items():
                image = _read_png(path)
                logger.experiment.add_image(f"samples/{name}", image, step, dataformats="HWC")


def _read_png(path: Path) -> Any:
    from matplotlib.image import imread

    return imread(path)[:, :, :3]
