"""Trains a diffusion model on shards of audio.

python train.py                                   # configs/train.yaml: the contents page of all options
python train.py experiment=speech data.train=SHARDS name=my_run
python train.py name=my_run                       # again: resumes it
python train.py diffusion=v_cosine check=true     # what its schedule can do at best; nothing is begun
"""

import os

# before torch: threads that spin long while they wait make steps ten times slower where other programs run as well
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ["WDS_SECURE"] = "1"  # WebDataset then neither unpickles nor runs commands; nothing here asks it to

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from omegaconf import DictConfig, OmegaConf

from audio_diffusion import config
from audio_diffusion.callbacks.checkpoint import AtomicCheckpointIO
from audio_diffusion.callbacks.loggers import JsonlLogger
from audio_diffusion.checkpoint import find, newest_in
from audio_diffusion.config import ConfigError, build
from audio_diffusion.data.batch import BatchSplit
from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.data.shards import by_name, describe_manifests, read_classes
from audio_diffusion.diffusion.report import describe
from audio_diffusion.saving.folder import all_in, manifest_of, recover, step_of
from audio_diffusion.saving.lock import RunLock
from audio_diffusion.saving.manifest import Manifest, differences
from audio_diffusion.saving.rows import rewind
from audio_diffusion.training.precision import make_precision

RESUME_FROM = "AUDIO_DIFFUSION_RESUME_FROM"

#: what a checkpoint's weights mean, what is said where it changed between lives, and what of that does not matter
FIXED = ("model.", "representation.", "classes.", "audio.channels.")
WATCHED = ("seed.", "batch_size.", "audio.", "data.", "diffusion.", "training.")
FREE = ("data.num_workers.", "data.worker_start.", "data.store.", "data.max_steps.", "data.batch_size.", "data.seed.")


def find_checkpoint(ckpt: str, run_dir: Path) -> Path | None:
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


def check_changes(ckpt: Path, plain: dict[str, Any]) -> None:
    """Refuses a checkpoint of another network, and says what else has changed that training depends on."""
    if not manifest_of(ckpt).is_file():
        return
    changed = dict(differences(Manifest.read(manifest_of(ckpt)).config, plain))
    other = [text for key, text in changed.items() if f"{key}.".startswith(FIXED)]
    if other:
        listed = "\n       ".join(other)
        raise ConfigError(
            f"ckpt: {ckpt} is of another network; set these back, or choose another name=\n       {listed}"
        )
    for key, text in changed.items():
        if f"{key}.".startswith(WATCHED) and not f"{key}.".startswith(FREE):
            rank_zero_info(f"changed since {ckpt.name}: {text}")


def prepare(plain: dict[str, Any]) -> tuple[Path | None, str]:
    """On rank 0, which owns the folder: clears up after a kill and finds the checkpoint; also what is wrong, if any."""
    run_dir = Path(plain["run_dir"])
    for line in recover(run_dir / "checkpoints"):
        rank_zero_info(line)
    try:
        found = find_checkpoint(plain["ckpt"], run_dir)
        if found is not None:
            check_changes(found, plain)
    except ConfigError as error:
        return None, str(error)
    cut = rewind(run_dir / "metrics.jsonl", max(step_of(found), 0) if found else 0)
    if cut:
        rank_zero_info(f"metrics.jsonl: {cut} rows of steps that are trained again were cut")
    return found, ""


def agree(trainer: L.Trainer, plain: dict[str, Any]) -> Path | None:
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
        found, problem = prepare(plain)
    elif not told:
        found = find_checkpoint(plain["ckpt"], Path(plain["run_dir"]))
    if told:
        strategy.setup_environment()
        found, problem = strategy.broadcast((found, problem))
    if problem:
        raise ConfigError(problem)
    if not told and trainer.world_size > 1:
        os.environ[RESUME_FROM] = str(found or "")
    return found


def datasets(cfg: DictConfig) -> dict[str, str]:
    """The patterns of the training shards by name."""
    train = OmegaConf.to_container(cfg.data.train) if isinstance(cfg.data.train, DictConfig) else cfg.data.train
    return by_name(train)  # type: ignore[arg-type]


def make_store(cfg: DictConfig) -> RemoteStore:
    """What reads shards that are URLs."""
    return build(config.to_plain(cfg.data)["store"], "data.store")


def device_type(accelerator: str) -> str:
    """What ``trainer.accelerator`` trains on."""
    return "cuda" if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Fills in what the data and the machine decide, checks everything, and returns plain data."""
    config.check_root(cfg)
    if cfg.classes is None:
        try:
            cfg.classes = read_classes(list(datasets(cfg).values()), make_store(cfg))
        except ValueError as error:
            raise ConfigError(f"data.train: {error}") from error
    if cfg.trainer.get("precision") == "auto":
        bf16 = device_type(cfg.trainer.accelerator) == "cuda" and torch.cuda.is_bf16_supported()
        cfg.trainer.precision = "bf16-mixed" if bf16 else "32-true"
    plain = config.to_plain(cfg)
    given = {"training": ("net", "process", "representation", "recipe")}
    problems = [
        problem
        for group in (
            "data",
            "model",
            "representation",
            "diffusion",
            "sampler",
            "training",
            "trainer",
            "logger",
        )
        if plain[group]
        for problem in config.target_problems(plain[group], group, given.get(group, ()))
    ]
    problems += [p for k, node in plain["callbacks"].items() for p in config.target_problems(node, f"callbacks.{k}")]
    if problems:
        raise ConfigError("\n       ".join(problems))
    return plain


def git_commit() -> str:
    """The commit of the code, with "-dirty" where it was changed since. Where there is no git: AUDIO_DIFFUSION_COMMIT,
    else what the container image has in COMMIT beside this file, else "unknown"."""
    folder = Path(__file__).parent
    command = [
        "git",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        of_image = folder / "COMMIT"
        said = os.environ.get("AUDIO_DIFFUSION_COMMIT") or (of_image.read_text() if of_image.exists() else "unknown")
        return said.strip()


@rank_zero_only
def record(plain: dict[str, Any], run_dir: Path, details: dict[str, Any]) -> None:
    """Writes the resolved configuration, the commit and the data into the run's folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain)))
    (run_dir / "details.json").write_text(json.dumps(details, indent=1))


def quiet() -> None:
    """Leaves out what Lightning says of things that are meant: advertising, the stream's length, EMA in eval mode."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "litlogger" not in r.getMessage())
    for message in (
        ".*IterableDataset. has .__len__. defined.*",
        ".*module.s. in eval mode at the start of training.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*does not have many workers.*",
        ".*sync_dist=True.*",  # what is logged was summed over the ranks already
        ".*dataloader is not resumable.*",  # the stream goes on from the position in the checkpoint
    ):
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def own(run_dir: Path) -> Iterator[None]:
    """Keeps other jobs out of the run's folder."""
    with RunLock(run_dir) as lock:
        if lock.taken_over:
            rank_zero_info(f"{run_dir}: taken over from {lock.taken_over}")
        yield


def report(plain: dict[str, Any]) -> list[str]:
    """What the schedule can do at best, and with the sampler that is listened to while training."""
    sampler = build(plain["sampler"], "sampler").keywords
    return describe(build(plain["diffusion"], "diffusion"), sampler["grid"], sampler["num_steps"])


@config.entry("train")
def main(cfg: DictConfig) -> None:
    """Load and check the configuration, build the parts, fit."""
    quiet()
    plain = resolve(cfg)
    for line in report(plain):
        rank_zero_info(line)
    if plain["check"]:
        return
    run_dir = Path(plain["run_dir"])

    L.seed_everything(plain["seed"], verbose=False)
    data = build(plain["data"], "data")
    module = build(
        plain["training"],
        "training",
        net=build(plain["model"], "model"),
        process=build(plain["diffusion"], "diffusion"),
        representation=build(plain["representation"], "representation"),
        recipe=plain,
    )
    callbacks = [build(node, f"callbacks.{name}") for name, node in plain["callbacks"].items()]
    if plain["trainer"]["enable_progress_bar"]:
        callbacks.append(TQDMProgressBar(refresh_rate=5 if sys.stderr.isatty() else 100))  # a log file wants few lines
    logger = [build(plain["logger"], "logger")] if plain["logger"] else []
    options = plain["trainer"]
    steps, accumulate = options["max_steps"], options["accumulate_grad_batches"]
    precision = make_precision(options["precision"], device_type(options["accelerator"]))
    # slurm/train.sh does the requeueing: Lightning's own saves inside a signal handler, which can hang ranks
    cluster = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    trainer = build(
        options,
        "trainer",
        precision=None,  # the plugin's
        callbacks=callbacks,
        logger=[JsonlLogger(str(run_dir)), *logger],
        plugins=[AtomicCheckpointIO(), precision, *cluster],
        default_root_dir=str(run_dir),
        val_check_interval=min(plain["val_every_steps"], steps) * accumulate,  # it counts batches
        check_val_every_n_epoch=None,  # validation goes by steps: the stream has no end
        log_every_n_steps=plain["log_every_steps"],
        use_distributed_sampler=False,  # the stream is split by rank already
        enable_model_summary=False,
        enable_checkpointing=False,  # callbacks.checkpoint does that
    )
    split = BatchSplit(plain["batch_size"], trainer.num_nodes, trainer.world_size // trainer.num_nodes, accumulate)
    with own(run_dir) if trainer.is_global_zero else nullcontext():
        ckpt = agree(trainer, plain)
        details = {"git_commit": git_commit(), "data": describe_manifests(data.train, data.store)}
        record(plain, run_dir, details)
        trainer.loggers[-1].log_hyperparams({**plain, **details})

        parameters = sum(p.numel() for p in module.net.parameters()) / 1e6
        rank_zero_info(f"{plain['name']}: {parameters:.2f} M parameters, to step {plain['max_steps']}, in {run_dir}/")
        rank_zero_info(str(split))
        rank_zero_info(f"resuming from {ckpt} (ckpt=none would refuse to)" if ckpt else "starting anew")
        trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    main()
