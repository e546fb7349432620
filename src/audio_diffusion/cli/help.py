"""The text of ``--help``: options and choices with their comments in configs/, which also make up docs/options.md."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from audio_diffusion.cli.config import CONFIG_DIR, INSTALLED

PROGRAMS = {
    "train": (
        "data", "model", "condition", "representation", "diffusion", "sampler", "training", "callbacks", "trainer",
        "logger", "experiment",
    ),
    "sample": ("task",),
    "evaluate": ("metrics", "embedding"),
    "export": (),
    "make_shards": (),
    "report": (),
}  # fmt: skip
LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w/@]+):(?: +(?P<value>[^#\s].*?))?(?: +# ?(?P<comment>.*))?$")


@dataclass
class Option:
    """A line of a YAML file: its path, its value as written, and its comment."""

    path: str
    value: str
    text: list[str] = field(default_factory=list)
    is_group: bool = False  # a mapping that contains options


@dataclass
class Choice:
    """A YAML file: its comment at the top and its options."""

    name: str
    about: str
    options: list[Option]


def read_yaml(path: Path) -> Choice:
    """Returns the options of a file with their comments; a comment may continue on the lines below."""
    about: list[str] = []
    options: list[Option] = []
    parents: list[tuple[int, str]] = []
    package, skipped = "", -1
    for line in path.read_text(encoding="utf-8").splitlines():
        comment = re.match(r"^ *# ?(.*)$", line)
        if comment and comment[1].startswith("@package"):
            package = comment[1].split()[1]
        elif comment and (options or parents) and line.startswith(" "):
            options[-1].text.append(comment[1].strip())
        elif comment:
            about.append(comment[1].strip())
        elif found := LINE.match(line):
            depth = len(found["indent"])
            if skipped >= 0 and depth > skipped:
                continue
            skipped = depth if found["key"] in ("defaults", "hydra") else -1
            if skipped >= 0 or found["key"].startswith("_") or found["key"] == "task":
                continue
            parents = [parent for parent in parents if parent[0] < depth]
            if options and parents and options[-1].path == ".".join(key for _, key in parents):
                options[-1].is_group = True
            parents.append((depth, found["key"]))
            text = [found["comment"].strip()] if found["comment"] else []
            options.append(Option(".".join(key for _, key in parents), (found["value"] or "").strip(), text))
    name = path.stem
    prefix = {"": "", "_global_": ""}.get(package, f"{package}.")
    return Choice(name, " ".join(about), [Option(prefix + o.path, o.value, o.text, o.is_group) for o in options])


def default_of(option: Option) -> str:
    """Returns the default as a cell of a table."""
    if option.is_group:
        return ""
    if option.value == "???":
        return "required"
    reference = re.fullmatch(r"\$\{([\w.]+)\}", option.value)
    return f"↳ `{reference[1]}`" if reference else f"`{option.value}`"


def description_of(option: Option) -> str:
    """Returns the description of an option; one that takes the value of another option may have no comment."""
    text = " ".join(option.text)
    reference = re.fullmatch(r"\[?(?:\"?\$\{[\w.:$]*\{?[\w.]+\}?\}[\w/]*\"?(?:, )?)+\]?", option.value)
    return text or ("see there" if reference else "")


#: options in groups that --help lists in addition to the program's own
_LISTED = {
    "train": (
        "data.train", "data.val", "data.num_workers", "training.optimizer.lr", "training.loss.cond_dropout",
        "training.compile", "trainer.devices", "trainer.precision", "trainer.accumulate_grad_batches",
        "callbacks.checkpoint.every_n_steps", "callbacks.sampling.every_n_steps",
    ),
}  # fmt: skip
_FILES = {  # files of these options, by the start of their names
    "data.": "data/shards", "training.optimizer.": "training/optimizer/adamw", "training.": "training/adamw",
    "trainer.": "trainer/auto", "callbacks.": "callbacks/default",
}  # fmt: skip
_WIDTH, _COLUMN = 120, 36


def help_text(command: str, program: str, about: str, only: tuple[str, ...] = ()) -> str:
    """Returns the help of a program.

    Args:
        command: command that runs it.
        about: description in one line.
        only: names of the options to list; empty for all.
    """
    own = [o for o in read_yaml(CONFIG_DIR / f"{program}.yaml").options if not o.is_group or o.text]
    own = [o for o in own if not only or o.path in only]
    listed = [o for o in map(_find, _LISTED.get(program, ())) if o is not None]
    required = " ".join(f"{o.path}={o.path.upper()}" for o in own if o.value == "???") or ("SHARDS" if only else "")
    required = "RUN [RUN ..]" if program == "report" else required
    lines = [f"{about[0].upper()}{about[1:]}.", "", f"usage: {command} {required} OPTION=VALUE ..".replace("  ", " ")]
    lines += ["", "options:", *map(_line, own + listed)]
    chosen = _defaults(program)
    lines += [line for name in PROGRAMS[program] for line in _choices(name, chosen.get(name, ""))]
    where = "docs/options.md lists all options; " if not INSTALLED else ""
    return "\n".join([*lines, "", f"{where}{command} --cfg job prints the configuration with every option"])


def _find(path: str) -> Option | None:
    """Finds an option of a group by its full name."""
    start = next(start for start in _FILES if path.startswith(start))
    prefix = "" if start == "callbacks." else start
    for option in read_yaml(CONFIG_DIR / f"{_FILES[start]}.yaml").options:
        if path in (f"{prefix}{option.path}", f"callbacks.{option.path}"):
            return Option(path, option.value, option.text)
    return None


def _line(option: Option) -> str:
    """Formats an option, its default and its description in one line."""
    name = option.path if option.is_group else f"{option.path}={'' if option.value == '???' else option.value}"
    text = description_of(option)
    room = _WIDTH - max(_COLUMN, len(name) + 4)
    while len(text) > room and "; " in text:  # only the first clauses of a long description
        text = text.rpartition("; ")[0]
    return f"  {name:{_COLUMN - 4}}  {textwrap.shorten(text, max(room, 20), placeholder=' ..')}"


def _defaults(program: str) -> dict[str, str]:
    """Returns the default choice of each group of a program, as written in its defaults list."""
    text = (CONFIG_DIR / f"{program}.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^  - (\w+): +([^#\n]*?) *(?:#.*)?$", text, re.MULTILINE))


def _choices(group: str, default: str) -> Iterator[str]:
    """Formats the choices of a group and its default; those of the group task have descriptions."""
    choices = [read_yaml(path) for path in sorted((CONFIG_DIR / group).glob("*.yaml"))]
    if not choices:
        return
    if group == "task":
        yield from ("", "tasks:")
        for choice in choices:
            names = ", ".join(o.path for o in choice.options if "." not in o.path)
            about = textwrap.shorten(choice.about, _WIDTH - _COLUMN, placeholder=" ..")
            yield f"  {f'task={choice.name}':{_COLUMN - 4}}  {about}"
            yield from [f"{'':{_COLUMN}}{line}" for line in textwrap.wrap(f"options: {names}", _WIDTH - _COLUMN)]
        return
    yield from ("", "choices:") if group == PROGRAMS["train"][0] else ()
    names = ", ".join(choice.name for choice in choices)
    names += f" (default: {default})" if default not in ("", "default") else ""
    yield from textwrap.wrap(f"{group}= {names}", _WIDTH, initial_indent="  ", subsequent_indent=" " * 8)
