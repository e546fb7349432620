"""The first steps of a program, before imports that take many seconds."""

import os
import sys
import warnings
from io import TextIOWrapper
from typing import TextIO

from audio_diffusion.checkpoints import signals
from audio_diffusion.cli.interruption import leave_at_once


def begin(program: str) -> None:
    """Sets up signals, the environment and the console for a program, which must happen before torch is imported."""
    if program == "train":
        signals.listen()  # from the start, so that no signal is missed
        os.environ.pop("WANDB_SERVICE", None)  # inherited, for example from a notebook that called sbatch
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    elif program in ("sample", "evaluate"):
        leave_at_once()
    os.environ["WDS_SECURE"] = "1"  # WebDataset then neither unpickles nor runs commands
    warnings.formatwarning = lambda message, *args, **kwargs: f"warning: {message}\n"  # without lines of code
    for stream in (sys.stdout, sys.stderr):
        make_printable(stream)


def say_loading() -> None:
    """Prints that the program is loading, on one rank only."""
    if (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or "0") == "0":
        print("audio_diffusion: loading ..", file=sys.stderr, flush=True)


def make_printable(stream: TextIO | None) -> None:
    """Makes a stream print "?" for characters that the console does not have (× or ε in cp1252 or ASCII).

    Otherwise printing such a message would raise UnicodeEncodeError and end the run.
    """
    if isinstance(stream, TextIOWrapper):  # a notebook's stream has no encoding; without a console the stream is None
        stream.reconfigure(errors="replace")
