"""Reports every clip that could not be used, with counts by kind."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from audio_diffusion.callbacks.cluster.preemption import is_stopping
from audio_diffusion.callbacks.loggers import log_metrics, log_table
from audio_diffusion.checkpoints.redaction import redacted
from audio_diffusion.data.batch import AudioBatch
from audio_diffusion.data.faults import BY_RULE, KINDS, Skipped

_TABLE_ROWS = 10_000  # number of the latest rows sent to W&B
_HELD_OUT, _SOURCE, _USED = "held out", "of ", "used"  # keys of counts, in addition to KINDS
_ENOUGH = 32  # if none of the first 32 clips can be used, the run stops


class ReportSkipped(L.Callback):
    """Writes ``skipped.csv`` (shard, key, kind, reason), logs counts, and stops a run that loses too many clips.

    The logged counts are ``data/clips``, ``data/clips/NAME`` if there are several data sets, ``data/skipped_clips`` and
    ``data/skipped_clips/KIND``. They include all ranks and all restarts of the run. They are logged every
    ``log_every_n_steps`` optimizer steps and, with one rank, as soon as a clip is skipped; ``skipped.csv`` is also sent
    to W&B as a table. Unless ``max_fraction`` is 1, a run stops with an error if none of its first 32 clips can be used
    or if it ends without having used any.

    Args:
        folder: the run's folder.
        max_fraction: fraction of the clips read so far that may be unusable. Clips that the configuration excludes (too
            short with ``pad=false``, another rate with ``convert=false``) do not count.
        min_clips: number of clips to read before the fraction is checked.

    Raises:
        ValueError: if ``max_fraction`` lies outside [0, 1].
    """

    def __init__(self, folder: str, max_fraction: float = 0.05, min_clips: int = 100):
        if not 0 <= max_fraction <= 1:
            raise ValueError(f"max_fraction: expected 0 to 1, got {max_fraction}")
        self.path, self.max_fraction, self.min_clips = Path(folder) / "skipped.csv", max_fraction, min_clips
        self._read: Counter[int] = Counter()  # by index of the data set; -1 for held-out clips
        self._used = 0  # number of clips used for training
        self._skipped: Counter[str] = Counter()  # by kind
        self._refused: Counter[str] = Counter()  # of these, the clips of whole shards, which every start counts again
        self._before: dict[str, int] = {}  # on rank 0: totals of all ranks before this start, as in _totals
        self._logged: tuple[int, dict[str, float]] = (-1, {})  # step and values of the last logged row
        self._latest: Skipped | None = None
        self._named: set[Skipped] = set()
        self._sent_bytes = 0

    @property
    def num_read(self) -> int:
        """The number of clips that this rank has read, including unusable ones."""
        return sum(self._read.values())

    @property
    def num_skipped(self) -> int:
        """The number of clips that this rank could not use."""
        return sum(self._skipped.values())

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.path.is_file():  # the run is resumed
            with open(self.path, newline="", encoding="utf-8") as f:
                self._named.update(Skipped(*row) for row in csv.reader(f) if len(row) == len(Skipped._fields))
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        refused: list[Skipped] = data.refused()
        if refused and trainer.is_global_zero:
            self._name(refused)
            self._refused.update(skip.kind for skip in refused)
            self._skipped.update(self._refused)
            self._read[-1] += len(refused)
        if len(refused) > self.max_fraction * (len(refused) + data.num_clips()):
            self._stop(len(refused), len(refused) + data.num_clips(), refused[-1])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._logged = (trainer.global_step, {})  # this step was logged before the restart

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stores the counts of all ranks, without those that every start of the run counts again."""
        totals = self._totals(trainer)
        for kind, count in self._refused.items():
            totals[kind] -= count
        totals[_HELD_OUT] -= self._refused.total()
        checkpoint["skipped"] = totals

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        before = dict(checkpoint.get("skipped") or {})
        if before:
            before.setdefault(_USED, 1)  # older checkpoints lack this count
        self._before = before if trainer.is_global_zero else {}

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: AudioBatch,
        batch_idx: int,
    ) -> None:
        sources = [source for source in batch.sources if source >= 0]
        self._read.update(sources)
        self._used += len(sources) - len(batch.skipped)
        self._note(batch)
        at_once = trainer.world_size == 1 and batch.skipped
        step = trainer.global_step
        due = step % trainer.log_every_n_steps == 0 and step != self._logged[0]  # type: ignore[attr-defined]
        if at_once or due:
            self._report(trainer)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: AudioBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._read[-1] += sum(source >= 0 for source in batch.sources)
        self._note(batch)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report(trainer)
        self._send_names(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not is_stopping(trainer):  # an interrupted run is resumed later
            self._expect_some(self._totals(trainer))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._send_names(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._send_names(trainer)

    def _note(self, batch: AudioBatch) -> None:
        self._skipped.update(skip.kind for skip in batch.skipped)
        self._latest = batch.skipped[-1] if batch.skipped else self._latest
        self._name(batch.skipped)

    def _totals(self, trainer: L.Trainer) -> dict[str, int]:
        """Returns counts over all ranks and restarts: clips read from each data set and from the held-out one, skipped
        clips by kind, and clips used."""
        names = [_SOURCE + name for name in trainer.datamodule.train]  # type: ignore[attr-defined]
        counts = [self._read[i] for i in range(-1, len(names))] + [self._skipped[kind] for kind in KINDS]
        keys, counts = [_HELD_OUT, *names, *KINDS, _USED], [*counts, self._used]
        mine = [count + self._before.get(key, 0) for key, count in zip(keys, counts, strict=True)]
        total = torch.tensor(mine, device=trainer.strategy.root_device)
        if trainer.world_size > 1:
            total = trainer.strategy.reduce(total, reduce_op="sum")
        return {key: int(count) for key, count in zip(keys, total.tolist(), strict=True)}

    def _report(self, trainer: L.Trainer) -> None:
        """Sums the counts over ranks, logs them if they changed, and stops the run if too many clips are unusable."""
        totals = self._totals(trainer)
        by_source = {key.removeprefix(_SOURCE): n for key, n in totals.items() if key.startswith(_SOURCE)}
        by_kind = {kind: totals[kind] for kind in KINDS}
        metrics: dict[str, float] = {
            "data/clips": sum(by_source.values()), "data/skipped_clips": sum(by_kind.values())
        }  # fmt: skip
        if len(by_source) > 1:
            metrics |= {f"data/clips/{name}": count for name, count in by_source.items()}
        metrics |= {f"data/skipped_clips/{kind}": count for kind, count in by_kind.items() if count}
        if self._logged != (trainer.global_step, metrics):
            self._logged = (trainer.global_step, metrics)
            log_metrics(trainer, metrics)
        num_read = totals[_HELD_OUT] + sum(by_source.values())
        lost = sum(n for kind, n in by_kind.items() if kind not in BY_RULE)
        if num_read >= self.min_clips and lost > self.max_fraction * num_read:
            self._stop(lost, num_read, self._latest)
        if sum(by_source.values()) >= min(self.min_clips, _ENOUGH):
            self._expect_some(totals)

    def _expect_some(self, totals: dict[str, int]) -> None:
        """Stops a run that has read clips but could use none of them.

        Raises:
            ValueError: on all ranks.
        """
        num_read = sum(count for key, count in totals.items() if key.startswith(_SOURCE))
        if totals[_USED] or not num_read or self.max_fraction == 1:
            return
        kinds = "; ".join(f"{totals[kind]} × {KINDS[kind]}" for kind in KINDS if totals[kind])
        latest = f"The latest: {self._latest}. " if self._latest else ""
        raise ValueError(
            f"data: none of the {num_read} clips read so far can be trained on ({kinds}). {latest}All are listed in "
            f"{self.path}. Repair the data, remove the condition that they lack (model.conditions.NAME=null or another "
            "condition=NAME), or accept more clips (data.reading.pad=true data.reading.convert=true)"
        )

    def _send_names(self, trainer: L.Trainer) -> None:
        """Sends the rows of ``skipped.csv``, from all ranks, as a table if there are new ones."""
        if not trainer.is_global_zero or not self.path.is_file() or self.path.stat().st_size == self._sent_bytes:
            return
        self._sent_bytes = self.path.stat().st_size
        with open(self.path, newline="", encoding="utf-8") as f:
            columns, *rows = csv.reader(f)
        log_table(trainer, "data/skipped", columns, rows[-_TABLE_ROWS:])

    def _stop(self, lost: int, num_read: int, latest: Skipped | None) -> None:
        raise ValueError(
            f"data: {lost} of {num_read} clips read could not be used, more than "
            f"callbacks.skipped.max_fraction = {self.max_fraction:g} allows. The latest: {latest}. "
            f"All are listed in {self.path}; repair or remove them, or raise the limit"
        )

    def _name(self, skipped: Sequence[Skipped]) -> None:
        new = [skip for skip in (Skipped(*redacted(skip)) for skip in skipped) if skip not in self._named]
        self._named.update(new)
        if not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", newline="", encoding="utf-8", errors="backslashreplace") as f:
            csv.writer(f).writerows(new if f.tell() else [Skipped._fields, *new])
        for skip in new[:3]:
            rank_zero_warn(f"skipped clip {skip.key} of {skip.shard}: {skip.reason} (see {self.path})")
