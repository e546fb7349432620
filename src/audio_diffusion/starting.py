"""What a program does first, before imports that take many seconds."""

import os
import sys
from typing import TextIO


def begin() -> None:
    """Makes the console safe to print to, and says that the program is loading, once where there are several ranks."""
    for stream in (sys.stdout, sys.stderr):
        make_printable(stream)
    if (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or "0") == "0":
        print("audio_diffusion: loading ..", file=sys.stderr, flush=True)


def make_printable(stream: TextIO | None) -> None:
    """From here on a character that the console does not have (× or ε where it is cp1252 or ASCII) is printed as "?".

    Without this, printing it raises UnicodeEncodeError, which would end a run over a message.
    """
    if hasattr(
        stream, "reconfigure"
    ):  # a notebook's has no encoding; a Windows program without a console has no stream
        stream.reconfigure(errors="replace")
