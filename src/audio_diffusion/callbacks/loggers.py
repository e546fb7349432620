"""Loggers of a run: W&B, protection from failures of loggers, and functions with which callbacks log."""

import errno
import netrc
import os
import re
import shutil
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import lightning as L
import wandb
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from audio_diffusion.callbacks.media import Sounds, media_of
from audio_diffusion.callbacks.wandb_run import WandbRun
from audio_diffusion.checkpoints.redaction import redacted_argument

_ROOM_BYTES = 2**20  # minimum free space for a logger, bytes


def has_wandb_credentials() -> bool:
    """Whether there is a key for W&B, in WANDB_API_KEY or in the netrc file that ``wandb login`` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_logger(
    run_dir: str, name: str, project: str = "audio_diffusion", mode: str = "auto", timeout_s: float = 60.0
) -> "GuardedLogger":
    """Creates a W&B logger that never prompts: online with credentials, else offline.

    A resumed run continues the same W&B run. If the server cannot be reached at the start, the run is offline. If it
    cannot be reached later, W&B stores the data in the run's folder and retries; at the end of the run it waits up to
    ``timeout_s`` again.

    Args:
        run_dir: the run's folder; its W&B id is kept there in ``wandb_id``.
        name: shown in W&B.
        project: W&B project.
        mode: "auto", "online", "offline" or "disabled"; the environment variable WANDB_MODE overrides "auto".
        timeout_s: time to wait for the server, in seconds.

    Raises:
        ValueError: for another mode, or a ``timeout_s`` that is not positive.
    """
    if mode not in ("auto", "online", "offline", "disabled"):
        raise ValueError(f'mode: expected "auto", "online", "offline" or "disabled", got {mode!r}')
    if not timeout_s > 0:
        raise ValueError(f"timeout_s: expected more than 0, got {timeout_s}")
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_credentials() else "offline")
    id_file = Path(run_dir, "wandb_id")
    if getattr(rank_zero_only, "rank", 0) == 0 and not id_file.exists():
        id_file.parent.mkdir(parents=True, exist_ok=True)
        id_file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    os.environ.setdefault("WANDB_SILENT", "true")

    def make(mode: str) -> WandbRun:
        if mode == "offline":
            rank_zero_info(
                "W&B: offline, as the server cannot be reached, there are no credentials, or offline was requested. "
                f"To see the run there, later:\n    wandb login && wandb sync {run_dir}/wandb/offline-run-*"
            )
        logger = WandbRun(
            name=name,
            project=project,
            save_dir=run_dir,
            id=id_file.read_text(encoding="utf-8").strip() if id_file.exists() else None,
            offline=mode == "offline",
            mode=mode,
            settings=wandb.Settings(init_timeout=timeout_s, finish_timeout=timeout_s, finish_timeout_raises=True),
        )
        logger._wandb_init.pop("anonymous", None)  # W&B warns about it, but Lightning sets it
        return logger

    def make_offline() -> WandbRun:
        wandb.teardown()  # W&B's service still has the run that could not be started
        return make("offline")

    return GuardedLogger(make(mode), otherwise=make_offline if mode == "online" else None)


class GuardedLogger(Logger):
    """Wraps another logger so that its failures do not affect training: each kind is reported once, and all are
    counted.

    Args:
        inner: the logger.
        otherwise: creates the replacement if ``inner`` cannot be started.
    """

    def __init__(self, inner: Logger, otherwise: Callable[[], Logger] | None = None):
        super().__init__()
        self.inner, self._otherwise = inner, otherwise
        self.failures: Counter[str] = Counter()  # by kind

    @property
    def name(self) -> str | None:
        return self.inner.name

    @property
    def version(self) -> int | str | None:
        return self.inner.version

    def attempt(self, work: Callable[[Logger], Any]) -> None:
        """Calls ``work``, which uses the logger; a failure becomes a warning."""
        try:
            work(self.inner)
        except Exception as error:
            kind = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            kind = re.sub(r"\d+", "N", kind)  # errors that differ only in numbers are one kind
            self.failures[kind] += 1
            if self.failures[kind] == 1:
                rank_zero_warn(
                    f"{type(self.inner).__name__}: {type(error).__name__}: {error}. Training continues; this is "
                    "reported once, and metrics.jsonl has every row"
                )

    def start(self) -> None:
        """Starts the run in the logger's service or, if that fails, in the replacement."""
        with _secrets_not_in_argv():
            self.attempt(_begin)
            if self.failures and self._otherwise is not None:
                self.inner = self._otherwise()
                self.attempt(_begin)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.attempt(_expect_room)
        self.attempt(lambda logger: logger.log_metrics(metrics, step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.attempt(lambda logger: logger.log_hyperparams(params))

    def save(self) -> None:
        self.attempt(lambda logger: logger.save())

    def finalize(self, status: str) -> None:
        self.attempt(lambda logger: logger.finalize(status))
        self.attempt(lambda logger: _finish(logger, status))
        if self.failures:
            counts = "; ".join(f"{count} × {kind}" for kind, count in self.failures.items())
            rank_zero_warn(f"{type(self.inner).__name__} failed {self.failures.total()} times: {counts}")


def _begin(logger: Logger) -> None:
    """Creates what a logger creates at its first use."""
    _ = getattr(logger, "experiment", None)


@rank_zero_only
def _expect_room(logger: Logger) -> None:
    """Warns if the disk is full, which W&B does not report."""
    folder = logger.save_dir
    if folder is not None and Path(folder).is_dir() and shutil.disk_usage(folder).free < _ROOM_BYTES:
        raise OSError(errno.ENOSPC, "data logged from now on may be missing there", str(folder))


@rank_zero_only
def _finish(logger: Logger, status: str) -> None:
    """Ends the run in the logger's service."""
    media_of(logger).finish(status)


@contextmanager
def _secrets_not_in_argv() -> Iterator[None]:
    """Hides secrets in the command line while W&B starts, as W&B stores it."""
    arguments = sys.argv
    sys.argv = [arguments[0], *map(redacted_argument, arguments[1:])]
    try:
        yield
    finally:
        sys.argv = arguments


def _each(trainer: L.Trainer, work: Callable[[Logger], Any]) -> None:
    """Calls ``work`` with every logger."""
    for logger in trainer.loggers:
        if isinstance(logger, GuardedLogger):
            logger.attempt(work)
        else:
            work(logger)


_latest: WeakKeyDictionary[L.Trainer, dict[str, tuple[int, float]]] = WeakKeyDictionary()


def latest_metrics(trainer: L.Trainer) -> Mapping[str, tuple[int, float]]:
    """The newest (step, value) of each metric that was logged on this rank."""
    return _latest.get(trainer, {})


def log_metrics(trainer: L.Trainer, metrics: Mapping[str, float]) -> None:
    """Writes one row of metrics, at the current optimizer step, to all loggers."""
    _latest.setdefault(trainer, {}).update({name: (trainer.global_step, float(v)) for name, v in metrics.items()})
    _each(trainer, lambda logger: logger.log_metrics(dict(metrics), step=trainer.global_step))


def send_alert(trainer: L.Trainer, title: str, text: str) -> None:
    """Prints a warning, and sends it as an alert to W&B."""
    rank_zero_warn(text)
    if trainer.is_global_zero:
        _each(trainer, lambda logger: media_of(logger).alert(title, text))


def log_table(trainer: L.Trainer, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Sends a table of text to W&B and TensorBoard."""
    _each(trainer, lambda logger: media_of(logger).table(name, columns, rows, trainer.global_step))


def log_pictures(trainer: L.Trainer, pictures: Mapping[str, Path]) -> None:
    """Sends pictures (PNG files by name) to W&B and TensorBoard."""
    _each(trainer, lambda logger: media_of(logger).pictures(pictures, trainer.global_step))


def log_samples(trainer: L.Trainer, sounds: Sounds) -> None:
    """Sends generated clips, their pictures and one table row per clip to W&B and TensorBoard."""
    _each(trainer, lambda logger: media_of(logger).sounds(sounds, trainer.global_step))
