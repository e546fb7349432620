"""Trains a diffusion model on shards of audio.

python train.py                                   # configs/train.yaml: the contents page of all options
python train.py experiment=speech data.train=SHARDS name=my_run
python train.py name=my_run                       # again: resumes it
python train.py diffusion=v_cosine check=true     # what its schedule can do at best; nothing is begun
"""

import os

from audio_diffusion import signals

if __name__ == "__main__":
    signals.listen()  # before imports that take ten seconds: a signal is never too early
# before torch: threads that spin long while they wait make steps ten times slower where other programs run as well
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ["WDS_SECURE"] = "1"  # WebDataset then neither unpickles nor runs commands; nothing here asks it to

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from omegaconf import DictConfig, OmegaConf

from audio_diffusion import config
from audio_diffusion.callbacks.checkpoint import AtomicCheckpointIO
from audio_diffusion.callbacks.cluster import slurm
from audio_diffusion.callbacks.cluster.preemption import StopWhenAsked
from audio_diffusion.callbacks.loggers import JsonlLogger
from audio_diffusion.checkpoint import in_run
from audio_diffusion.config import ConfigError, build
from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.data.shards import by_name, describe_manifests, read_classes
from audio_diffusion.diffusion.report import describe


def find_checkpoint(ckpt: str, run_dir: Path) -> Path | None:
    """The checkpoint to go on from, by the rules of ``ckpt`` in configs/train.yaml; None starts anew."""
    found = in_run(run_dir)
    if ckpt == "auto":
        return found[-1] if found else None
    if ckpt == "last":
        if not found:
            raise ConfigError(f"ckpt=last: {run_dir}/checkpoints holds no step_*.ckpt to resume from; leave ckpt out")
        return found[-1]
    if ckpt == "none":
        if found:
            raise ConfigError(
                f"ckpt=none: {run_dir} already holds {found[-1].name}; choose another name=, or remove it"
            )
        return None
    folder = in_run(ckpt) if Path(ckpt).is_dir() else [Path(ckpt)]
    if not folder or not folder[-1].is_file():
        raise ConfigError(f"ckpt: expected auto, last, none, a checkpoint file or a run folder, got {ckpt!r}")
    return folder[-1]


def datasets(cfg: DictConfig) -> dict[str, str]:
    """The patterns of the training shards by name."""
    train = OmegaConf.to_container(cfg.data.train) if isinstance(cfg.data.train, DictConfig) else cfg.data.train
    return by_name(train)  # type: ignore[arg-type]


def make_store(cfg: DictConfig) -> RemoteStore:
    """What reads shards that are URLs."""
    return build(config.to_plain(cfg.data)["store"], "data.store")


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Fills in what the data and the machine decide, checks everything, and returns plain data."""
    config.check_root(cfg)
    if cfg.classes is None:
        try:
            cfg.classes = read_classes(list(datasets(cfg).values()), make_store(cfg))
        except ValueError as error:
            raise ConfigError(f"data.train: {error}") from error
    if cfg.trainer.get("precision") == "auto":
        on_gpu = cfg.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        cfg.trainer.precision = "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
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
    """The commit of the code, with "-dirty" where it was changed since; "unknown" outside a git checkout."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


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
    ckpt = find_checkpoint(plain["ckpt"], run_dir)
    cluster = slurm.environment(plain["trainer"]["devices"], plain["trainer"]["num_nodes"])

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
    steps, accumulate = plain["trainer"]["max_steps"], plain["trainer"]["accumulate_grad_batches"]
    trainer = build(
        plain["trainer"],
        "trainer",
        callbacks=callbacks,
        logger=[JsonlLogger(str(run_dir)), *logger],
        plugins=[AtomicCheckpointIO(), *([cluster] if cluster else [])],
        default_root_dir=str(run_dir),
        val_check_interval=min(plain["val_every_steps"], steps) * accumulate,  # it counts batches
        check_val_every_n_epoch=None,  # validation goes by steps: the stream has no end
        log_every_n_steps=plain["log_every_steps"],
        use_distributed_sampler=False,  # the stream is split by rank already
        enable_model_summary=False,
        enable_checkpointing=False,  # callbacks.checkpoint does that
    )
    details = {"git_commit": git_commit(), "data": describe_manifests(data.train, data.store)}
    record(plain, run_dir, details)
    with signals.shielded():  # W&B starts a process here, which is in a session of its own only after a moment
        trainer.loggers[-1].log_hyperparams({**plain, **details})

    parameters = sum(p.numel() for p in module.net.parameters())
    rank_zero_info(f"{plain['name']}: {parameters / 1e6:.2f} M parameters, to step {plain['max_steps']}, in {run_dir}/")
    rank_zero_info(f"resuming from {ckpt} (ckpt=none would refuse to)" if ckpt else "starting anew")
    trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True)
    for callback in callbacks:
        if isinstance(callback, StopWhenAsked) and callback.status:
            raise SystemExit(callback.status)


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    main()
