"""Completes the configuration of train.py, checks its groups, and builds the parts of a training."""

import sys

import lightning as L
import torch
from lightning.pytorch.plugins.environments import ClusterEnvironment
from omegaconf import DictConfig, OmegaConf

from audio_diffusion.callbacks.jsonl import JsonlLogger
from audio_diffusion.callbacks.loggers import GuardedLogger
from audio_diffusion.callbacks.progress_bar import ProgressBar
from audio_diffusion.cli import config
from audio_diffusion.cli.config import ConfigError, build
from audio_diffusion.cli.statistics import with_statistics
from audio_diffusion.cli.train_options import TrainOptions
from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.data.shards.find import by_name, read_classes
from audio_diffusion.diffusion.levels import describe_levels
from audio_diffusion.diffusion.report import describe
from audio_diffusion.training.checkpoint_io import AtomicCheckpointIO
from audio_diffusion.training.module import DiffusionModule
from audio_diffusion.training.precision import make_precision


def datasets(cfg: DictConfig) -> dict[str, str]:
    """Returns the patterns of the training shards by name."""
    train = OmegaConf.to_container(cfg.data.train) if isinstance(cfg.data.train, DictConfig) else cfg.data.train
    if not train:
        raise ConfigError("expected a folder of shards, a pattern, a URL, or several by name; got nothing")
    return by_name(train)  # type: ignore[arg-type]


def make_store(cfg: DictConfig) -> RemoteStore:
    """Creates the store that reads remote shards."""
    return build(config.to_plain(cfg.data)["store"], "data.store")


def device_type(accelerator: str) -> str:
    """Returns the type of device that ``trainer.accelerator`` selects: cuda, mps (Apple silicon) or cpu."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    return "mps" if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available() else "cpu"


def resolve(cfg: DictConfig) -> TrainOptions:
    """Fills in options that depend on the data and the machine, and checks everything."""
    if cfg.init and cfg.ckpt not in ("auto", "last", "none", "overwrite"):
        raise ConfigError(
            "init, ckpt: give only one: ckpt continues with optimizer and step, init starts from the weights alone"
        )
    if cfg.check and cfg.classes is None:
        cfg.classes = []  # only the schedule and the sampler are checked, which needs no data
    if cfg.classes is None:
        try:
            cfg.classes = read_classes(list(datasets(cfg).values()), make_store(cfg))
        except ValueError as error:
            raise ConfigError(f"data.train: {error}") from error
    accelerator = cfg.trainer.get("accelerator")
    if accelerator in ("gpu", "cuda", "mps") and not cfg.check and device_type(accelerator) == "cpu":
        raise ConfigError(f"trainer.accelerator={accelerator}: no GPU was found: use trainer=cpu or trainer=auto")
    if cfg.trainer.get("precision") == "auto":
        bf16 = device_type(cfg.trainer.accelerator) == "cuda" and torch.cuda.is_bf16_supported()
        cfg.trainer.precision = "bf16-mixed" if bf16 else "32-true"
    options = TrainOptions.of(cfg)
    check_targets(options)
    if cfg.check:
        return options
    return with_statistics(options, list(datasets(cfg).values()), make_store(cfg))


def check_targets(options: TrainOptions) -> None:
    """Checks the targets and arguments of all groups (door 3 of ``cli.config``).

    Raises:
        ConfigError: with all problems at once.
    """
    nodes = {
        "data": options.data, "model": options.model, "representation": options.representation,
        "diffusion": options.diffusion, "sampler": options.sampler, "training": options.training,
        "trainer": options.trainer, "logger": options.logger or {},
        **{f"callbacks.{name}": node for name, node in options.callbacks.items()},
    }  # fmt: skip
    given = {"training": ("net", "process", "representation")}
    found = [config.target_problems(node, path, given.get(path, ())) for path, node in nodes.items()]
    if problems := [problem for of_node in found for problem in of_node]:
        raise ConfigError("\n       ".join(problems))


def check_crop(module: DiffusionModule, num_samples: int) -> None:
    """Checks that the representation and the network accept the length of a crop.

    Raises:
        ConfigError: if not; the message has the number of samples that the length must be a multiple of.
    """
    hop, multiple = module.representation.hop, int(module.net.multiple)  # type: ignore[arg-type]
    if num_samples % (hop * multiple):
        raise ConfigError(
            f"audio.num_samples: expected a multiple of {hop * multiple}, as the network takes, got {num_samples}"
        )


def report(options: TrainOptions) -> list[str]:
    """Returns warnings about the schedule and the sampler used during training, or a line that both are suitable; with
    ``check`` the full description. It also warns if a run is too short for a row of the log.

    Raises:
        ConfigError: if the sampler has more steps than the schedule.
    """
    process, sampler = build(options.diffusion, "diffusion"), build(options.sampler, "sampler")
    try:
        lines, known = [], getattr(sampler, "keywords", {})
        if "grid" in known and "num_steps" in known:  # a user's own sampler may lack both
            lines += describe(process, known["grid"], known["num_steps"])
        lines += describe_levels(process, sampler)
    except ValueError as error:
        raise ConfigError(f"sampler.{error}") from error
    every, steps = options.log_every_steps, options.max_steps
    seldom = [f"no training loss is logged: log_every_steps={every} is more than max_steps={steps}"]
    if not options.check:
        lines = [line for line in lines if line.startswith("warning: ")] or lines[-1:]
    return lines + (seldom if every > steps else [])


def make_module(options: TrainOptions) -> DiffusionModule:
    """Builds the LightningModule with its network, diffusion and representation.

    Raises:
        ConfigError: if a part rejects its options, or the length of a crop does not fit.
    """
    module = build(
        options.training,
        "training",
        net=build(options.model, "model"),
        process=build(options.diffusion, "diffusion"),
        representation=build(options.representation, "representation"),
    )
    check_crop(module, options.audio.num_samples)
    for condition in module.conditions.by_name.values():
        condition.check()  # for example whether a text encoder can be loaded
    return module


def make_callbacks(options: TrainOptions) -> list[L.Callback]:
    """Builds the callbacks, and the progress bar if there is one."""
    callbacks = [build(node, f"callbacks.{name}") for name, node in options.callbacks.items() if node]
    if options.trainer["enable_progress_bar"]:
        callbacks.append(ProgressBar(1, 5) if sys.stdout.isatty() else ProgressBar(60))  # few lines in a log file
    return callbacks


def make_loggers(options: TrainOptions) -> list[GuardedLogger]:
    """Builds the loggers, whose failures do not end the run: metrics.jsonl, and the one of the group ``logger``."""
    loggers = [JsonlLogger(options.run_dir), *([build(options.logger, "logger")] if options.logger else [])]
    return [logger if isinstance(logger, GuardedLogger) else GuardedLogger(logger) for logger in loggers]


def make_trainer(
    options: TrainOptions,
    callbacks: list[L.Callback],
    loggers: list[GuardedLogger],
    cluster: ClusterEnvironment | None,
) -> L.Trainer:
    """Builds the Trainer."""
    trainer, steps = options.trainer, options.last_step
    precision = make_precision(trainer["precision"], device_type(trainer["accelerator"]))
    return build(
        trainer,
        "trainer",
        precision=None,  # set by the plugin
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO(), precision, *([cluster] if cluster else [])],
        default_root_dir=options.run_dir,
        val_check_interval=min(options.val_every_steps or steps, steps)
        * options.accumulate,  # Lightning counts batches
        **({"limit_val_batches": 0} if options.val_every_steps is None else {}),
        check_val_every_n_epoch=None,  # validation is scheduled in steps: the stream is endless
        log_every_n_steps=options.log_every_steps,
        use_distributed_sampler=False,  # the stream is already split by rank
        enable_model_summary=False,
        enable_checkpointing=False,  # callbacks.checkpoint saves checkpoints
    )
