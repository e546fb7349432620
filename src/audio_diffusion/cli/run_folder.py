"""Checks and locks a run's folder, and finds the checkpoint that the run resumes from."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities import rank_zero_info

from audio_diffusion.callbacks.early_stopping import finished_early
from audio_diffusion.callbacks.wandb_run import note_on_resume
from audio_diffusion.checkpoints.files import remove
from audio_diffusion.checkpoints.folder import WEIGHTS, all_in, manifest_of, recover, step_of
from audio_diffusion.checkpoints.lock import RunLock
from audio_diffusion.checkpoints.manifest import Manifest, differences
from audio_diffusion.checkpoints.redaction import may_be, redacted_config
from audio_diffusion.checkpoints.rows import last_step, rewind
from audio_diffusion.cli.command_line import command
from audio_diffusion.cli.config import ConfigError, build
from audio_diffusion.cli.train_options import TrainOptions
from audio_diffusion.data.wording import counted
from audio_diffusion.inference.checkpoint_reader import find, newest_in, read
from audio_diffusion.inference.loading import read_weights
from audio_diffusion.inference.targets import with_moved
from audio_diffusion.training.optim import state_names

RESUME_FROM = "AUDIO_DIFFUSION_RESUME_FROM"
_PROBE_BYTES = 4 * 2**20  # size of a test file, to find out whether the disk is full

#: Prefixes of configuration keys. FIXED: a checkpoint's weights depend on them, so they must not change. WATCHED: a
#: change on resume is reported. FREE: exceptions from WATCHED, without effect on training or reported by another key.
FIXED = ("model.", "representation.", "classes.", "audio.channels.")
WATCHED = (
    "seed.", "batch_size.", "audio.", "data.", "diffusion.", "training.", "trainer.precision.",
    "trainer.accumulate_grad_batches.", "trainer.gradient_clip_val.", "trainer.gradient_clip_algorithm.",
    "trainer.strategy.", "trainer.deterministic.",
)  # fmt: skip
FREE = (
    "data.num_workers.", "data.worker_start.", "data.store.", "data.max_steps.", "data.batch_size.", "data.crop.",
    "data.order.seed.", "data.reading.classes.", "training.loss.seed.",
)  # fmt: skip


def check_writable(options: TrainOptions) -> None:
    """Writes a test file to each folder of the run, once on every node, before training starts.

    Raises:
        ConfigError: if a folder cannot be written to, or its disk is full.
    """
    if (os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0") != "0":
        return
    run_dir = Path(options.run_dir)
    folders = [node["folder"] for node in options.callbacks.values() if node and "folder" in node]
    for folder in {run_dir, run_dir / "checkpoints", *map(Path, folders)}:
        if folder != run_dir and not folder.exists():
            continue  # created later, inside a folder that is checked
        probe = folder / f".probe-{socket.gethostname()}-{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(probe, "wb") as f:
                f.write(bytes(_PROBE_BYTES))
                f.flush()
                os.fsync(f.fileno())
        except OSError as error:
            raise ConfigError(
                f"run_dir: {folder} cannot be written to on {socket.gethostname()}: {error.strerror}. Choose another "
                "folder (run_dir=FOLDER), free disk space, or correct owner and permissions (ls -ld, df -h, quota)"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()


@contextlib.contextmanager
def own(run_dir: Path) -> Iterator[None]:
    """Locks the run's folder against other jobs."""
    with RunLock(run_dir) as lock:
        if lock.taken_over:
            rank_zero_info(f"{run_dir}: taken over from {lock.taken_over}")
        yield


def _find_checkpoint(ckpt: str, run_dir: Path) -> Path | None:
    """Finds the checkpoint to resume from, by the rules of ``ckpt`` in configs/train.yaml; None starts from scratch."""
    if ckpt in ("auto", "last"):
        newest = newest_in(run_dir)
        if newest is None and ckpt == "last":
            raise ConfigError(f"ckpt=last: {run_dir}/checkpoints has no step_*.ckpt to resume from; leave ckpt out")
        return newest
    there = all_in(run_dir / "checkpoints")
    if ckpt == "none":
        if there:
            raise ConfigError(
                f"ckpt=none: {run_dir} already contains {there[-1].name}; choose another name=, or remove it"
            )
        return None
    if ckpt == "overwrite":
        return None
    if not Path(ckpt).exists():
        raise ConfigError(
            f"ckpt: expected auto, last, none, overwrite, a checkpoint file or a run folder, got {ckpt!r}"
        )
    if not there:
        return find(ckpt)
    is_folder = Path(ckpt).is_dir() and not manifest_of(Path(ckpt)).is_file()
    if is_folder or run_dir.resolve() not in Path(ckpt).resolve().parents:
        if run_dir.resolve() not in (Path(ckpt).resolve(), Path(ckpt).resolve().parent):
            rank_zero_info(f"{run_dir} has begun already: it resumes from its own checkpoint, not from {ckpt}")
        return newest_in(run_dir)
    if Path(ckpt).name != there[-1].name:
        raise ConfigError(
            f"ckpt: {run_dir} also contains {there[-1].name}, and a restart of this run would resume from it, not from "
            f"{ckpt}; choose another name=, or remove the later checkpoints"
        )
    return find(ckpt)


def _stored(ckpt: Path) -> tuple[int, dict[str, Any]]:
    """Reads step and configuration of a checkpoint from its manifest, or else from the checkpoint itself.

    Raises:
        ConfigError: if it is not a checkpoint of this project's training.
    """
    if manifest_of(ckpt).is_file():
        manifest = Manifest.read(manifest_of(ckpt))
        if isinstance(manifest.config, dict):
            return manifest.step, with_moved(manifest.config)
    content = read(ckpt)
    return content["global_step"], content["config"]


def stored_config(run_dir: Path, ckpt: str, init: str | None) -> dict[str, Any] | None:
    """Returns the configuration of the checkpoint that a run resumes from (its own newest one, else ``ckpt``) or whose
    weights it starts with (``init``); None for a run that starts from scratch."""
    own = None if ckpt == "overwrite" else newest_in(run_dir)
    if own or Path(ckpt).exists():
        return _stored(own or find(ckpt))[1]
    return read_weights(init, "ema").config if init else None


def _check_changes(ckpt: Path, before: dict[str, Any], options: TrainOptions) -> None:
    """Rejects a checkpoint of another network or optimizer, and reports other changes that affect training."""

    def same(before: Any, now: Any) -> bool:
        return before == now or may_be(before, now)

    changed = dict(differences(before, redacted_config(options.record()), same=same))
    other = [text for key, text in changed.items() if f"{key}.".startswith(FIXED)]
    if other:
        listed = "\n       ".join(other)
        raise ConfigError(
            f"ckpt: {ckpt} has another network; restore these options, or choose another name=\n       {listed}"
        )
    if any(f"{key}.".startswith("training.optimizer.") for key in changed):
        _check_optimizer(ckpt, before, options.training["optimizer"])
    for key, text in changed.items():
        if f"{key}.".startswith(WATCHED) and not f"{key}.".startswith(FREE):
            rank_zero_info(f"changed since {ckpt.name}: {text}")


def _check_optimizer(ckpt: Path, before: dict[str, Any], optimizer: dict[str, Any]) -> None:
    """Rejects a checkpoint whose optimizer state lacks entries that the present optimizer needs."""
    states = (values for o in read(ckpt).get("optimizer_states", []) for values in o["state"].values())
    kept = {name for values in states for name in values}
    missing = state_names(build(optimizer, "training.optimizer")) - kept
    if missing and kept:
        was = (before.get("training", {}).get("optimizer") or {}).get("_target_", "its optimizer")
        raise ConfigError(
            f"ckpt: {ckpt} holds the state of {was} ({', '.join(sorted(kept))}); {optimizer['_target_']}, as it is "
            f"configured now, also needs {', '.join(sorted(missing))}. Set training.optimizer back, or start a new run "
            f"from the weights alone: init={ckpt} name=ANOTHER"
        )


def _check_steps(ckpt: Path, step: int, options: TrainOptions) -> None:
    """Rejects a checkpoint of another run that leaves no step to train; for one of this run, the run is finished."""
    max_steps, own = options.last_step, Path(options.run_dir).resolve() in ckpt.resolve().parents
    if step >= max_steps and not own:
        raise ConfigError(
            f"ckpt: {ckpt} is at step {step}, and steps are counted on from there: max_steps={max_steps} leaves none. "
            f"Write max_steps={step + max_steps}; or init={ckpt} in place of ckpt: the weights alone, from step 0"
        )


def finished(ckpt: Path | None, options: TrainOptions) -> str | None:
    """Returns the message for a run whose checkpoint is at the last step, or that early stopping has finished; None if
    there are steps left to train."""
    max_steps = options.last_step
    if ckpt is None:
        return None
    if step_of(ckpt) < max_steps:
        early = options.callbacks.get("early_stopping") or {}
        reason = finished_early(Path(options.run_dir), step_of(ckpt), early)
        return reason and f"{reason}; to listen: {command('sample')} ckpt={options.run_dir}"
    more = max(2 * max_steps, step_of(ckpt) + max_steps)
    return (
        f"{options.run_dir} is finished: {ckpt.name} is at step {step_of(ckpt)}, max_steps={max_steps}. To continue: "
        f"max_steps={more}; to start again: another name=; to listen: {command('sample')} ckpt={options.run_dir}"
    )


def _say_commit(ckpt: Path, git_commit: str) -> None:
    """Reports whether the code's commit has changed since the run was last started."""
    try:
        before = json.loads((ckpt.parents[1] / "details.json").read_text(encoding="utf-8"))["git_commit"]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return
    if before != git_commit:
        rank_zero_info(f"changed since the run was last started: git_commit: {before!r} before, {git_commit!r} now")


def _prepare(options: TrainOptions, git_commit: str) -> tuple[Path | None, str]:
    """Cleans up after a killed run and finds the checkpoint, on rank 0, which owns the folder.

    Returns the checkpoint and an error message, which is empty if there is no error.
    """
    run_dir = Path(options.run_dir)
    for line in recover(run_dir / "checkpoints"):
        rank_zero_info(line)
    try:
        if options.ckpt == "overwrite":
            _remove_checkpoints(run_dir, options.last_step)
        found = _find_checkpoint(options.ckpt, run_dir)
        if found is not None:
            step, before = _stored(found)
            _check_changes(found, before, options)
            _check_steps(found, step, options)
            _say_commit(found, git_commit)
    except ConfigError as error:
        return None, str(error)
    log, step = run_dir / "metrics.jsonl", max(step_of(found), 0) if found else 0
    last = last_step(log)
    cut = rewind(log, step)
    if cut and (options.logger or {}).get("_target_", "").endswith(".wandb_logger") and last > step:
        with contextlib.suppress(OSError):  # the run was logged elsewhere before
            rank_zero_info(note_on_resume(run_dir, step, last))
    if cut:
        rank_zero_info(f"metrics.jsonl: {cut} rows of steps that are trained again were removed")
    return found, ""


def _remove_checkpoints(run_dir: Path, max_steps: int) -> None:
    """Removes the checkpoints and averages of an earlier attempt, for ``ckpt=overwrite``.

    Raises:
        ConfigError: if a checkpoint is beyond ``max_steps``: then it is not an attempt at the same run.
    """
    there = all_in(run_dir / "checkpoints")
    if there and step_of(there[-1]) > max_steps:
        raise ConfigError(
            f"ckpt=overwrite: {run_dir} contains {there[-1].name}, which is beyond the {max_steps} steps of this run; "
            "choose another name="
        )
    for folder in WEIGHTS:
        found = all_in(run_dir / folder)
        for checkpoint in found:
            manifest_of(checkpoint).unlink(missing_ok=True)
            remove(checkpoint)
        if found:
            rank_zero_info(f"ckpt=overwrite: {counted(len(found), 'file')} of an earlier attempt removed: {folder}/")


def checkpoint_to_resume(trainer: L.Trainer, options: TrainOptions, git_commit: str = "unknown") -> Path | None:
    """Returns, on all ranks, the checkpoint that rank 0 resumes from; it is read, for verification, only once.

    Ranks that this process starts get it from the environment, those of torchrun or srun over the process group. If
    nodes are started by hand, the first rank of each node looks for it itself.
    """
    if RESUME_FROM in os.environ:
        return Path(os.environ[RESUME_FROM]) if os.environ[RESUME_FROM] else None
    strategy = trainer.strategy
    environment = strategy.cluster_environment if isinstance(strategy, ParallelStrategy) else None
    is_external = environment is not None and environment.creates_processes_externally
    found, problem = None, ""
    if trainer.is_global_zero:
        found, problem = _prepare(options, git_commit)
    elif not is_external:
        found = _find_checkpoint(options.ckpt, Path(options.run_dir))
    if is_external:
        strategy.setup_environment()
        found, problem = strategy.broadcast((found, problem))
    if problem:
        raise ConfigError(problem)
    if not is_external and trainer.world_size > 1:
        os.environ[RESUME_FROM] = str(found or "")
    return found
