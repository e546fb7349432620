"""Callback that periodically generates audio samples from the EMA weights."""

import csv
import gc
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from tqdm import tqdm

from audio_diffusion.callbacks.cluster.preemption import Interrupted, beat_or_stop, is_stopping
from audio_diffusion.callbacks.failures import FailureTolerance
from audio_diffusion.callbacks.loggers import log_metrics, log_samples
from audio_diffusion.callbacks.media import Sounds
from audio_diffusion.callbacks.page.metrics_log import MetricsLog
from audio_diffusion.callbacks.page.page import write_page
from audio_diffusion.data.audio.reading import file_name, write_audio
from audio_diffusion.data.batch import AudioBatch
from audio_diffusion.data.datamodule import AudioDataModule
from audio_diffusion.data.training_data import CropFormat
from audio_diffusion.data.wording import counted
from audio_diffusion.diffusion.checks import check_at_least_one
from audio_diffusion.diffusion.generation import Sampler, evenly
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.seeding import seed_of
from audio_diffusion.inference.generating import generate_audio
from audio_diffusion.inference.levels import limited, limited_name, summary, trouble
from audio_diffusion.metrics import pictures
from audio_diffusion.training.module import DiffusionModule


def level_row(clip: Tensor) -> dict[str, float]:
    """Returns levels of a clip ``[C, T]``: peak, RMS (full scale 1), % of samples clipped (over 1), silent (below -60
    dB)."""
    magnitude = clip.abs()
    return {
        "peak": round(magnitude.max().item(), 4),
        "rms": round(clip.square().mean().sqrt().item(), 5),
        "clipped_percent": round(100 * (magnitude > 1).float().mean().item(), 3),
        "silence_percent": round(100 * (magnitude < 1e-3).float().mean().item(), 2),
    }


@dataclass
class _Made:
    """The samples that one rank generates in a round."""

    audio: Tensor  # [slots, C, T]
    words: list[str]  # the name of each slot on all ranks
    points: list[tuple[float, Tensor]]  # (t, x0 estimate of the first slot) of every step
    scale: float  # guidance scale


def progress(trainer: L.Trainer, count: int) -> tqdm:
    """Creates the progress bar of a round of ``count`` sounds, which counts network calls.

    It is shown on rank 0 if the run has a progress bar, after two seconds; in a log file it prints a line every ten
    seconds.
    """
    is_terminal = sys.stdout.isatty()
    return tqdm(
        desc=f"sampling at step {trainer.global_step}: {counted(count, 'sound')}",
        unit=" network calls",
        bar_format="{desc}, {n_fmt}{unit} [{elapsed}]",
        file=sys.stdout,
        leave=not is_terminal,
        mininterval=0.1 if is_terminal else 10,
        miniters=0,
        delay=2,
        disable=not trainer.is_global_zero or trainer.progress_bar_callback is None,
    )


class SampleAudio(L.Callback):
    """Generates the same slots every ``every_n_steps`` steps and at the end of training, and writes and logs them.

    A slot keeps its conditions and its noise for the whole run, so that its sounds can be compared. If the label
    is the network's only condition, each slot takes the next class; otherwise it takes all conditions of the next
    held-out clip. Sampling does not affect training, as all its randomness comes from the slots' own generators. Slots
    are distributed over the ranks and gathered. A failed round is a warning, counted in ``sampling/failures``; if
    memory runs out, the slots are generated one by one.

    Args:
        sampler: one of ``diffusion.solvers``, with its options bound.
        crop: format of the audio.
        classes: class names, in the order of the network's labels.
        folder: ``step_<step>/`` with .wav files, pictures and samples.csv are written below it.
        every_n_steps: optimizer steps between rounds.
        num_samples: number of slots.
        guidance: options of guidance, and the bound of x0; None for neither. Unconditional models are not guided.
        seed: seed of the slots' noise.
        num_process_points: number of x0 estimates shown of the first slot's reverse process; 0 for none.
        page: page to listen on, in the run's folder, written after each round on rank 0; None for none. A failure is a
            warning, counted in ``page/failures``.

    Raises:
        ValueError: if ``every_n_steps`` or ``num_samples`` is below 1.
    """

    def __init__(
        self,
        sampler: Sampler,
        crop: CropFormat,
        classes: Sequence[str],
        folder: str,
        every_n_steps: int = 1000,
        num_samples: int = 8,
        guidance: Guidance | None = None,
        seed: int = 0,
        num_process_points: int = 6,
        page: str | None = None,
    ):
        check_at_least_one(every_n_steps=every_n_steps, num_samples=num_samples)
        self.sampler, self.crop = sampler, crop
        self.classes, self.folder, self.every_n_steps = list(classes), Path(folder), every_n_steps
        self.guidance, self.num_process_points = guidance or Guidance(), num_process_points
        self.context: AudioBatch | None = None  # the held-out clips whose conditions the slots take, once they are read
        self.seeds = [seed_of(seed, "slot", i) for i in range(num_samples)]
        self.page, self._page_failures = Path(page) if page else None, 0
        self._log = MetricsLog(self.page.with_name("metrics.jsonl")) if self.page else None
        self._sampled_at, self._tolerance = -1, FailureTolerance("sampling")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._sample_once(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not is_stopping(trainer):  # a run that was asked to stop should exit soon
            self._sample_once(trainer, pl_module)
            self._write_page(trainer)  # again, with the results of the last validation

    def _write_page(self, trainer: L.Trainer) -> None:
        """Writes the page with the sounds and curves so far."""
        if self.page is None or not trainer.is_global_zero or trainer.global_step == 0:
            return
        try:
            write_page([self.page.parent], self.page, [self._log])
        except Exception as error:
            self._page_failures += 1
            if self._page_failures == 1:
                warnings.warn(f"{self.page} cannot be written; training continues without it: {error}", stacklevel=2)
            log_metrics(trainer, {"page/failures": self._page_failures})

    def _sample_once(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self._sampled_at and trainer.global_step > 0 and not trainer.sanity_checking:
            self._sampled_at = trainer.global_step
            try:
                self.sample(trainer, pl_module)
                self._write_page(trainer)
            except Interrupted:
                rank_zero_info(f"the samples of step {trainer.global_step} are skipped, as the run was asked to stop")

    def sample(self, trainer: L.Trainer, module: L.LightningModule) -> Tensor | None:
        """Runs one round on all ranks; returns the audio of every slot, ``[num_slots, C, T]``, at its original level;
        None if it failed on any rank.

        Raises:
            Interrupted: on all ranks, if the run is asked to stop during the round.
        """
        assert isinstance(module, DiffusionModule)
        rank, ranks, count = trainer.global_rank, trainer.world_size, len(self.seeds)
        share = -(-count // ranks)
        # every rank generates the same number of slots, which sharded networks require; surplus ones are repeated
        mine = [slot % count for slot in range(rank * share, (rank + 1) * share)]
        made = self._tolerance.on_all_ranks(trainer, lambda: self._generate_or_one_by_one(trainer, module, mine))
        if made is None:
            return None
        gathered = torch.as_tensor(module.all_gather(made.audio)) if ranks > 1 else made.audio
        audio = gathered.reshape(-1, *self.crop.shape)[:count].cpu()
        if trainer.is_global_zero:
            self._tolerance.on_this_rank(lambda: self._write(trainer, module, made, audio))
        return audio

    def _generate_or_one_by_one(self, trainer: L.Trainer, module: DiffusionModule, slots: list[int]) -> "_Made":
        """Generates all slots in one batch or, if memory runs out, one by one."""
        try:
            return self._generate(trainer, module, slots)
        except (torch.OutOfMemoryError, MemoryError) as error:
            warnings.warn(f"sampling: out of memory, trying again one by one: {error}", stacklevel=2)
        gc.collect()  # frees the tensors of the failed attempt
        torch.cuda.empty_cache()
        first, *rest = [self._generate(trainer, module, [slot]) for slot in slots]
        return replace(first, audio=torch.cat([first.audio, *(made.audio for made in rest)]))

    def _generate(self, trainer: L.Trainer, module: DiffusionModule, slots: list[int]) -> "_Made":
        cond, words = self._conditions(trainer, module)
        points: list[tuple[float, Tensor]] = []
        bar = progress(trainer, len(slots))

        def on_step(t: float, estimate: Tensor) -> None:
            points.append((t, estimate[:1].clone()))
            bar.update()
            beat_or_stop(trainer, f"sampling at step {trainer.global_step}", may_stop=module.device_mesh is None)

        with bar:
            audio = generate_audio(
                module.ema.net,
                module.process,
                self.sampler,
                module.representation,
                self.crop.shape,
                [self.seeds[slot] for slot in slots],
                {name: value[slots] for name, value in cond.items()},
                self.guidance,
                module.device,
                on_step=on_step,
            )
        return _Made(audio, words, points, self.guidance.scale if cond else 1.0)

    def _conditions(self, trainer: L.Trainer, module: DiffusionModule) -> tuple[Mapping[str, Tensor], list[str]]:
        """Returns the conditions of all slots, and the name of each."""
        count, names = len(self.seeds), set(module.conditions.by_name)
        if not names:
            return {}, ["sample"] * count
        if names == {"label"}:
            label = torch.arange(count) % len(self.classes)
            return {"label": label.to(module.device)}, [self.classes[i] for i in label.tolist()]
        if self.context is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            assert isinstance(data, AudioDataModule)
            self.context = data.held_out(count)
        return module.cond_of(self.context.to(module.device)), self._words(module, self.context)

    def _words(self, module: DiffusionModule, context: AudioBatch) -> list[str]:
        """Returns the name of each slot: its text condition, else its class."""
        for name, condition in module.conditions.by_name.items():
            words = context.cond.get(condition.field or name)
            if isinstance(words, tuple):
                return list(words)
        if context.label is None:
            return ["sample"] * len(context)
        return [self.classes[i] if i >= 0 else "sample" for i in context.label.tolist()]

    def _write(self, trainer: L.Trainer, module: DiffusionModule, made: "_Made", audio: Tensor) -> None:
        words, points, scale = made.words, made.points, made.scale
        shown = evenly(points, self.num_process_points)
        process = [(t, module.representation.decode(x)[0].cpu()) for t, x in shown]
        nfe = len(points) * (1 if scale == 1 else 2)
        folder = self.folder / f"step_{trainer.global_step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"{i:03d}_{file_name(word)}" for i, word in enumerate(words)]
        name = getattr(getattr(self.sampler, "func", self.sampler), "__name__", str(self.sampler))
        table = []
        for clip, label, seed, file in zip(audio, words, self.seeds, names, strict=True):
            write_audio(folder / f"{file}.wav", limited(clip), self.crop.sample_rate)
            row = {"step": trainer.global_step, "label": label, "seed": seed, "sampler": name, "nfe": nfe}
            table.append({**row, "guidance": scale, **level_row(clip)})
        with open(folder / "samples.csv", "w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
        if troubles := {file: wrong for clip, file in zip(audio, names, strict=True) if (wrong := trouble(clip))}:
            warnings.warn(f"samples of step {trainer.global_step}: {summary(troubles, len(names))}", stacklevel=2)
        heard = [limited(clip) for clip in audio]  # their own levels are in the table, picture and captions
        captions = [limited_name(file, clip) for file, clip in zip(names, audio, strict=True)]
        grid = pictures.sample_grid([pictures.Row("generated", list(audio[:12]), names[:12])], self.crop.sample_rate)
        files = {"spectrograms": pictures.save(grid, folder / "spectrograms.png")}
        if process:
            figure = pictures.reverse_process(process, self.crop.sample_rate)
            files["reverse_process"] = pictures.save(figure, folder / "reverse_process.png")
        log_samples(trainer, Sounds(heard, names, captions, self.crop.sample_rate, files, table))
