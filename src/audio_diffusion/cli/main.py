"""The console command ``audio-diffusion``, and the entry point of the scripts of a checkout, such as train.py."""

import sys
from functools import partial
from importlib import import_module

from omegaconf import DictConfig

from audio_diffusion import __version__
from audio_diffusion.cli import command_line, help, options, program, startup
from audio_diffusion.inference.targets import nearest

#: (program, description) by the name typed after ``audio-diffusion``
COMMANDS = {
    "train": ("train", "train a diffusion model on shards of audio"),
    "sample": ("sample", "generate and edit audio with a trained model"),
    "evaluate": ("evaluate", "measure a trained model, or a folder of generated audio"),
    "export": ("export", "write a model to a folder without optimizer and data, to share it"),
    "pack": ("make_shards", "pack a folder of audio into WebDataset shards"),
    "verify": ("make_shards", "read and check every clip of shards"),
    "report": ("report", "write a page to listen on, of one run or of several side by side"),
}


def run(name: str) -> None:
    """Runs a program with the options in ``sys.argv``. Option names and root options are checked before torch and the
    rest are imported, which takes seconds."""
    startup.begin(name)
    if {"--help", "-h", "help"} & set(sys.argv[1:]):
        command = command_line.taken() or next(command for command, (of, _) in COMMANDS.items() if of == name)
        only = ("verify", "num_workers") if command == "verify" else ()
        typed = f"audio-diffusion {command}" if command_line.taken() else f"python {name}.py"
        print(help.help_text(typed, name, COMMANDS[command][1], only))
        return

    def main(cfg: DictConfig) -> None:
        startup.say_loading()
        import_module(f"audio_diffusion.cli.{name}").main(options.read(name, cfg))

    program.run(name, main, partial(options.check, name))


def console() -> None:
    """Runs the command ``audio-diffusion``."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(usage())
    elif name in ("--version", "version"):
        print(f"audio_diffusion {__version__}")
    elif name in COMMANDS:
        command_line.take_command(name)
        run(COMMANDS[name][0])
    else:
        print(f"error: {name}: there is no such command.{nearest(name, list(COMMANDS))}", file=sys.stderr)
        raise SystemExit(2)


def usage() -> str:
    """Returns the text that ``audio-diffusion`` prints without arguments."""
    lines = [f"    {name:10}{about}" for name, (_, about) in COMMANDS.items()]
    first, last = "usage: audio-diffusion COMMAND OPTION=VALUE ..", "audio-diffusion COMMAND --help lists its options"
    return "\n".join([first, "", *lines, "", last])
