"""Trains a diffusion model on shards of audio.

python train.py                                   # configs/train.yaml: the contents page of all options
python train.py experiment=speech data.train=SHARDS name=my_run
python train.py name=my_run                       # again: resumes it
python train.py diffusion=v_cosine check=true     # checks the schedule and the sampler without training
"""

import json
import logging
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from omegaconf import DictConfig, OmegaConf

from audio_diffusion import __version__
from audio_diffusion.callbacks.checkpoint import SaveError
from audio_diffusion.callbacks.cluster import slurm
from audio_diffusion.callbacks.cluster.preemption import StopWhenAsked
from audio_diffusion.callbacks.early_stopping import early_stop_of, record_early_stop
from audio_diffusion.callbacks.page.records import lowest, read_run
from audio_diffusion.callbacks.stored_config import StoreConfig
from audio_diffusion.checkpoints import signals
from audio_diffusion.checkpoints.manifest import differences
from audio_diffusion.checkpoints.redaction import redacted, redacted_config
from audio_diffusion.cli import config
from audio_diffusion.cli.command_line import command
from audio_diffusion.cli.config import ConfigError, build
from audio_diffusion.cli.run_folder import (
    check_writable,
    checkpoint_to_resume,
    finished,
    own,
)
from audio_diffusion.cli.train_options import TrainOptions
from audio_diffusion.cli.train_parts import make_callbacks, make_loggers, make_module, make_trainer, report, resolve
from audio_diffusion.data import workers
from audio_diffusion.data.batch_split import BatchSplit
from audio_diffusion.data.datamodule import AudioDataModule
from audio_diffusion.data.shards.find import describe_manifests
from audio_diffusion.inference.loading import read_weights
from audio_diffusion.training.initial import start_from
from audio_diffusion.training.module import DiffusionModule


def git_commit() -> str:
    """Returns the commit of the checkout, with "-dirty" if it has uncommitted changes; the version if installed.

    Without git: AUDIO_DIFFUSION_COMMIT, else the content of COMMIT in the container image, else "unknown".
    """
    if config.INSTALLED:
        return f"version {__version__}"
    folder = config.CHECKOUT
    describe_head = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(describe_head, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        of_image = folder / "COMMIT"
        said = os.environ.get("AUDIO_DIFFUSION_COMMIT") or (
            of_image.read_text(encoding="utf-8") if of_image.exists() else "unknown"
        )
        return said.strip()


@rank_zero_only
def record(config: Mapping[str, Any], run_dir: Path, details: Mapping[str, Any]) -> None:
    """Writes the resolved configuration, the commit and the data into the run's folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(dict(config))), encoding="utf-8")
    (run_dir / "details.json").write_text(json.dumps(details, indent=1), encoding="utf-8")


def quiet() -> None:
    """Suppresses messages of libraries about intended behaviour: advertising, devices, the length of the stream."""
    logging.getLogger("lightning").handlers.clear()  # its lines go to the root logger as well, which prints them
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda r: not any(word in r.getMessage() for word in ("litlogger", "TPU available", "GPU available"))
    )
    logging.getLogger("gcsfs").setLevel(logging.WARNING)  # notes on experimental features, even if no bucket is used
    for message in (
        ".*IterableDataset. has .__len__. defined.*",
        ".*module.s. in eval mode at the start of training.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*does not have many workers.*",
        ".*Total length of `list` across ranks is zero.*",  # no validation data; the data's summary reports that
        ".*sync_dist=True.*",  # logged values are already summed over the ranks
        ".*`srun` command is available.*",  # callbacks.cluster.slurm reports it where it matters
        ".*is smaller than the logging interval.*",  # reported in clearer words at the start
        ".*dataloader is not resumable.*",  # the stream resumes from the position in the checkpoint
    ):
        warnings.filterwarnings("ignore", message=message)


#: parts of the configuration, other than sizes, with which the weights must be used
_MEANING = ("model.", "representation.", "diffusion.", "audio.sample_rate.")


def begin(module: DiffusionModule, options: TrainOptions, ckpt: Path | None) -> list[str]:
    """Loads the weights of ``init`` if the run does not resume; returns lines for the user."""
    if not options.init:
        return []
    if ckpt is not None:
        return [f"init={options.init} is ignored, as this run has begun; it resumes from its own {ckpt.name}"]
    if options.init_weights not in ("ema", "raw"):
        raise ConfigError(f"init_weights: expected ema or raw, got {options.init_weights!r}")
    try:
        other = read_weights(options.init, options.init_weights)
        lines = start_from(module, other, options.classes or [])
    except ValueError as error:
        raise ConfigError(f"init: {str(error).removeprefix('ckpt: ')}") from error
    now = options.record()
    changed = differences(other.config, {name: now.get(name) for name in other.config})
    return lines + [f"init: {text}" for key, text in changed if f"{key}.".startswith(_MEANING)]


def figures(run_dir: Path) -> list[str]:
    """Returns lines with the lowest and the last value of the curves that measure the model's quality."""
    try:
        return [str(found) for found in lowest(read_run(run_dir).curves)]
    except (OSError, ValueError):
        return []  # the run has no records because its disk is full


def what_next(options: TrainOptions) -> str:
    """Returns the line printed after a finished run: the location of its results, and the next command."""
    run_dir, callbacks = options.run_dir, options.callbacks
    saved = f"saved in {run_dir}/checkpoints/, " if callbacks.get("checkpoint") else "checkpoints are off, "
    sampling = callbacks.get("sampling")
    listen = f"listen in {sampling.get('page') or sampling['folder'] + '/'}, " if sampling else ""
    last = f"curves in {run_dir}/metrics.jsonl"
    if callbacks.get("checkpoint"):
        last = f"next: {command('sample')} ckpt={shlex.quote(str(run_dir))}"
    return f"finished: {saved}{listen}{last}"


def fit(trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
    """Calls ``trainer.fit``; if a checkpoint cannot be saved, exits with a one-line message and status 1.

    Raises:
        ConfigError: if the weights of the checkpoint do not fit the network.
    """
    try:
        trainer.fit(*args, **kwargs)
    except SaveError as error:
        if trainer.is_global_zero:
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except RuntimeError as error:  # torch lists every weight that does not fit
        first, *others = str(error).splitlines()
        if "loading state_dict" not in first:
            raise
        others = [line.strip().rstrip(".") for line in others] or [first]
        more = f", and {len(others) - 1} more" if len(others) > 1 else ""
        raise ConfigError(
            f"ckpt: its weights do not fit the network that its configuration describes: {others[0]}{more}. Choose "
            "another checkpoint"
        ) from error


def introduction(
    options: TrainOptions,
    trainer: L.Trainer,
    module: DiffusionModule,
    data: AudioDataModule,
    split: BatchSplit,
    ckpt: Path | None,
) -> Iterator[str]:
    """Yields the lines that are printed before the first step: the network, the batches, the data, the checkpoint."""
    parameters, device = sum(p.numel() for p in module.net.parameters()) / 1e6, trainer.strategy.root_device.type
    run_dir, last_step = options.run_dir, options.last_step
    yield f"{options.name}: {parameters:.2f} M parameters, on {device}, to step {last_step}, in {run_dir}/"
    yield str(split)
    half_life = module.ema.half_life
    clips = f"{half_life * split.batch_size:,.0f} clips"
    yield f"EMA: decay {module.ema.decay:g}, a half-life of {half_life:,.0f} steps ({clips})"
    yield from data.summary(options.val_every_steps is not None)
    if not options.callbacks.get("checkpoint"):
        yield "callbacks.checkpoint=null: no checkpoint is written, so the run cannot be resumed or sampled from"
    yield f"resuming from {ckpt} (ckpt=none prevents this)" if ckpt else "starting a new run"


def conclusion(options: TrainOptions, trainer: L.Trainer, early_stop: str) -> Iterator[str]:
    """Yields the lines that are printed after training.

    Args:
        options: the root options.
        trainer: after training.
        early_stop: why early stopping has ended the run; empty if it has not.
    """
    run_dir = Path(options.run_dir)
    if early_stop:
        yield f"stopped early at step {trainer.global_step:,}: {early_stop}"
    if trainer.global_step >= options.last_step or early_stop:
        yield from figures(run_dir) if trainer.is_global_zero else ()
        yield what_next(options)
    elif options.callbacks.get("checkpoint"):
        yield f"stopped at step {trainer.global_step}, saved in {run_dir}/checkpoints/: repeat the command to resume"


def main(cfg: DictConfig) -> None:
    """Loads and checks the configuration, builds the parts, and trains."""
    quiet()
    options = resolve(cfg)
    for line in report(options):
        rank_zero_info(line)
    if options.check:
        return
    run_dir = Path(options.run_dir)
    cluster = slurm.environment(options.trainer["devices"], options.trainer["num_nodes"])
    check_writable(options)
    if options.data["num_workers"]:
        workers.prepare(options.data.get("worker_start"))  # its imports run while the network is built

    L.seed_everything(options.seed, verbose=False)
    data = build(options.data, "data")
    recipe = redacted_config(options.record())
    module = make_module(options)
    callbacks, loggers = [*make_callbacks(options), StoreConfig(recipe)], make_loggers(options)
    trainer = make_trainer(options, callbacks, loggers, cluster)
    accumulate = options.trainer["accumulate_grad_batches"]
    split = BatchSplit(options.batch_size, trainer.num_nodes, trainer.world_size // trainer.num_nodes, accumulate)
    with own(run_dir) if trainer.is_global_zero else nullcontext():
        commit = git_commit()
        ckpt = checkpoint_to_resume(trainer, options, commit)
        if done := finished(ckpt, options):
            rank_zero_info(done)
            return
        for line in begin(module, options, ckpt):
            rank_zero_info(line)
        half_life = {"steps": round(module.ema.half_life), "clips": round(module.ema.half_life * options.batch_size)}
        details = {
            "git_commit": commit,
            "data": redacted(describe_manifests(data.train, data.store)),
            "ema_half_life": half_life,
        }
        record(recipe, run_dir, details)
        with signals.shielded():  # W&B starts a process here, which is not immediately in its own session
            for logger in loggers:
                logger.start()
                logger.log_hyperparams(
                    {**recipe, "git_commit": commit, "dataset": details["data"], "ema_half_life": half_life}
                )

        if trainer.is_global_zero:
            for line in introduction(options, trainer, module, data, split, ckpt):
                rank_zero_info(line)
        fit(trainer, module, datamodule=data, ckpt_path=ckpt, weights_only=True)
        record_early_stop(trainer, run_dir)
        for line in conclusion(options, trainer, early_stop_of(trainer)):
            rank_zero_info(line)
    for callback in callbacks:
        if isinstance(callback, StopWhenAsked) and callback.status:
            raise SystemExit(callback.status)
