"""What a program does first, before imports that take many seconds."""

import os
import sys
import warnings
from io import TextIOWrapper
from typing import TextIO


def begin() -> None:
    """Makes the console safe to print to, leaves lines of code out of warnings, and says that the program is loading,
    once where there are several ranks."""
    warnings.formatwarning = lambda message, *args, **kwargs: f"warning: {message}\n"
    for stream in (sys.stdout, sys.stderr):
        make_printable(stream)
    if (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or "0") == "0":
        print("audio_diffusion: loading ..", file=sys.stderr, flush=True)


def make_printable(stream: TextIO | None) -> None:
    """From here on a character that the console does not have (× or ε where it is cp1252 or ASCII) is printed as "?".

    Without this, printing it raises UnicodeEncodeError, which would end a run over a message.
    """
    if isinstance(stream, TextIOWrapper):  # a notebook's stream has no encoding; without a console there is none
        stream.reconfigure(errors="replace")
