"""The folder of a run: can it be written to, whose is it, and which checkpoint does the run go on from?"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities import rank_zero_info

from audio_diffusion.checkpoint import find, newest_in
from audio_diffusion.config import ConfigError
from audio_diffusion.redaction import redacted
from audio_diffusion.saving.folder import all_in, manifest_of, recover, step_of
from audio_diffusion.saving.lock import RunLock
from audio_diffusion.saving.manifest import Manifest, differences
from audio_diffusion.saving.rows import rewind

RESUME_FROM = "AUDIO_DIFFUSION_RESUME_FROM"
_PROBE_BYTES = 4 * 2**20  # written to see whether there is room at all

#: what a checkpoint's weights mean, what is said where it changed between lives, and what of that does not matter
FIXED = ("model.", "representation.", "classes.", "audio.channels.")
WATCHED = ("seed.", "batch_size.", "audio.", "data.", "diffusion.", "training.")
FREE = ("data.num_workers.", "data.worker_start.", "data.store.", "data.max_steps.", "data.batch_size.", "data.seed.")


def check_writable(plain: dict[str, Any]) -> None:
    """Writes to each folder of the run, once on every node, before anything is begun.

    Raises:
        ConfigError: if one cannot be written to, or has no room.
    """
    if (os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0") != "0":
        return
    run_dir = Path(plain["run_dir"])
    folders = [node["folder"] for node in plain["callbacks"].values() if node and "folder" in node]
    for folder in {run_dir, run_dir / "checkpoints", *map(Path, folders)}:
        if folder != run_dir and not folder.exists():
            continue  # made later, below one that is checked
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
                "place (run_dir=FOLDER), make room there, or mend its owner and permissions (ls -ld, df -h, quota)"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()


@contextlib.contextmanager
def own(run_dir: Path) -> Iterator[None]:
    """Keeps other jobs out of the run's folder."""
    with RunLock(run_dir) as lock:
        if lock.taken_over:
            rank_zero_info(f"{run_dir}: taken over from {lock.taken_over}")
        yield


def _find_checkpoint(ckpt: str, run_dir: Path) -> Path | None:
    """The checkpoint to go on from, by the rules of ``ckpt`` in configs/train.yaml; None starts anew."""
    if ckpt in ("auto", "last"):
        newest = newest_in(run_dir)
        if newest is None and ckpt == "last":
            raise ConfigError(f"ckpt=last: {run_dir}/checkpoints holds no step_*.ckpt to resume from; leave ckpt out")
        return newest
    there = all_in(run_dir / "checkpoints")
    if ckpt == "none":
        if there:
            raise ConfigError(
                f"ckpt=none: {run_dir} already holds {there[-1].name}; choose another name=, or remove it"
            )
        return None
    if not Path(ckpt).exists():
        raise ConfigError(f"ckpt: expected auto, last, none, a checkpoint file or a run folder, got {ckpt!r}")
    if not there:
        return find(ckpt)
    if run_dir.resolve() not in Path(ckpt).resolve().parents:
        rank_zero_info(f"{run_dir} has begun already: it goes on from its own checkpoint, not from {ckpt} again")
        return newest_in(run_dir)
    if Path(ckpt).name != there[-1].name:
        raise ConfigError(
            f"ckpt: {run_dir} also holds {there[-1].name}, which a restart of this run would go on from, not from "
            f"{ckpt}; choose another name=, or remove what came later"
        )
    return find(ckpt)


def _check_changes(ckpt: Path, plain: dict[str, Any]) -> None:
    """Refuses a checkpoint of another network, and says what else has changed that training depends on."""
    if not manifest_of(ckpt).is_file():
        return
    changed = dict(differences(Manifest.read(manifest_of(ckpt)).config, redacted(plain)))
    other = [text for key, text in changed.items() if f"{key}.".startswith(FIXED)]
    if other:
        listed = "\n       ".join(other)
        raise ConfigError(
            f"ckpt: {ckpt} is of another network; set these back, or choose another name=\n       {listed}"
        )
    for key, text in changed.items():
        if f"{key}.".startswith(WATCHED) and not f"{key}.".startswith(FREE):
            rank_zero_info(f"changed since {ckpt.name}: {text}")


def _prepare(plain: dict[str, Any]) -> tuple[Path | None, str]:
    """On rank 0, which owns the folder: clears up after a kill and finds the checkpoint; also what is wrong, if any."""
    run_dir = Path(plain["run_dir"])
    for line in recover(run_dir / "checkpoints"):
        rank_zero_info(line)
    try:
        found = _find_checkpoint(plain["ckpt"], run_dir)
        if found is not None:
            _check_changes(found, plain)
    except ConfigError as error:
        return None, str(error)
    cut = rewind(run_dir / "metrics.jsonl", max(step_of(found), 0) if found else 0)
    if cut:
        rank_zero_info(f"metrics.jsonl: {cut} rows of steps that are trained again were cut")
    return found, ""


def checkpoint_to_go_on_from(trainer: L.Trainer, plain: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from as rank 0 sees it, on all ranks; it is read, to be verified, once.

    Ranks that this process starts are told by its environment, those of torchrun or srun over the process group. Where
    nodes are started by hand, the first rank of each looks for itself.
    """
    if RESUME_FROM in os.environ:
        return Path(os.environ[RESUME_FROM]) if os.environ[RESUME_FROM] else None
    strategy = trainer.strategy
    environment = strategy.cluster_environment if isinstance(strategy, ParallelStrategy) else None
    told = environment is not None and environment.creates_processes_externally
    found, problem = None, ""
    if trainer.is_global_zero:
        found, problem = _prepare(plain)
    elif not told:
        found = _find_checkpoint(plain["ckpt"], Path(plain["run_dir"]))
    if told:
        strategy.setup_environment()
        found, problem = strategy.broadcast((found, problem))
    if problem:
        raise ConfigError(problem)
    if not told and trainer.world_size > 1:
        os.environ[RESUME_FROM] = str(found or "")
    return found
