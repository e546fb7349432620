"""Runs a program with the configuration of the command line, and ends it after a user's mistake."""

import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.utils import configure_log
from omegaconf import DictConfig

from audio_diffusion.checkpoints.signals import STOP_FILE
from audio_diffusion.cli import command_line, config, own_parts
from audio_diffusion.cli.config import CONFIG_DIR, ConfigError


def _is_for_the_user(error: Exception) -> bool:
    """Whether an error is this project's message about a user's mistake; those of other libraries keep a traceback."""
    if isinstance(error, ConfigError):
        return True
    from audio_diffusion.data.remote import RemoteError  # imported here, because it imports network libraries

    if isinstance(error, RemoteError):
        return True
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    package = Path(__file__).parents[1]
    is_ours = frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(package)
    return isinstance(error, ValueError) and is_ours


def refuse(error: Exception) -> NoReturn:
    """Prints the message and exits with status 2.

    A marker file informs slurm/train.sh, which may get the status of another rank.
    """
    print(f"error: {error}", file=sys.stderr)
    if stop_file := os.environ.get(STOP_FILE):
        Path(f"{stop_file}.refused").touch()
    raise SystemExit(2) from None


def entry(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Turns ``main(cfg)`` into a program with ``configs/<config_name>.yaml``; see ``run``."""
    return lambda main: partial(run, config_name, main)


def run(
    config_name: str, main: Callable[[DictConfig], None], check: Callable[[DictConfig], None] | None = None
) -> None:
    """Calls ``main`` with the configuration of the command line; a user's mistake ends in a message and status 2.

    Args:
        config_name: the program's file in configs/.
        main: the program.
        check: raises ConfigError for invalid root options; it is called before anything else.
    """
    try:
        own_parts.make_importable()
        given = own_parts.take_config_dir(command_line.typed())
        arguments = [config.none_as_list(a, config_name) for a in command_line.prepare(given, config_name)]
        options = command_line.without_flags(arguments)
        flags = [argument for argument in arguments if argument not in options]
        cfg, node = None, None
        if not any(re.match("--?(config|c[pnd]|hydra-help|help|h)", flag) for flag in flags):
            cfg, node = config.read_command_line(config_name, options)
        if cfg is None or node is None or flags or any(option.startswith("hydra.") for option in options):
            return _run_by_hydra(config_name, arguments, partial(_guarded, options, main, check))
        if check is not None:
            check(cfg)
    except ConfigError as error:
        refuse(error)
    configure_log(node.job_logging, node.verbose)
    _guarded(options, main, None, cfg)


def _run_by_hydra(config_name: str, arguments: list[str], main: Callable[[DictConfig], None]) -> None:
    """Lets Hydra run a command line with Hydra's own flags or options, and compose it again."""
    typed = list(sys.argv)

    def started(cfg: DictConfig) -> None:
        sys.argv[:] = typed  # Lightning starts a process per device with this command
        main(cfg)

    sys.argv[1:] = [*config.opened(arguments, config_name), *own_parts.search_path()]
    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(started)()


def _guarded(
    options: list[str],
    main: Callable[[DictConfig], None],
    check: Callable[[DictConfig], None] | None,
    cfg: DictConfig,
) -> None:
    """Calls ``main``, after ``check`` if there is one; a user's mistake ends in a message and status 2."""
    try:
        if check is not None:
            check(cfg)
        own_parts.fit(cfg, options)
        main(cfg)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if not _is_for_the_user(error):
            raise
        refuse(error)
