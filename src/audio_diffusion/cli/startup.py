"""What a program does first, before imports that take many seconds."""

import os
import sys
import warnings
from io import TextIOWrapper
from typing import TextIO

from audio_diffusion.checkpoints import signals
from audio_diffusion.cli.interruption import leave_at_once


def begin(program: str) -> None:
    """Sets up signals, the environment and the console for a program; nothing of it can wait for torch."""
    if program == "train":
        signals.listen()  # a signal is never too early
        os.environ.pop("WANDB_SERVICE", None)  # of whoever started this, as the notebook that called sbatch
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    elif program in ("sample", "evaluate"):
        leave_at_once()
    os.environ["WDS_SECURE"] = "1"  # WebDataset then neither unpickles nor runs commands; nothing here asks it to
    warnings.formatwarning = lambda message, *args, **kwargs: f"warning: {message}\n"  # without lines of code
    for stream in (sys.stdout, sys.stderr):
        make_printable(stream)


def say_loading() -> None:
    """Says that the program is loading, once where there are several ranks."""
    if (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or "0") == "0":
        print("audio_diffusion: loading ..", file=sys.stderr, flush=True)


def make_printable(stream: TextIO | None) -> None:
    """From here on a character that the console does not have (× or ε where it is cp1252 or ASCII) is printed as "?".

    Without this, printing it raises UnicodeEncodeError, which would end a run over a message.
    """
    if isinstance(stream, TextIOWrapper):  # a notebook's stream has no encoding; without a console there is none
        stream.reconfigure(errors="replace")
