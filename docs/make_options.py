"""Writes options.md from the comments in configs/.

python docs/make_options.py            # rewrites docs/options.md
python docs/make_options.py --check    # exit status 1 if it is not up to date, or if an option has no description
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("options.md")
INTRO = """# Options

Every option of every program, with its default and what it does. This page is generated from the comments in `configs/`
by `python docs/make_options.py`.

```bash
python train.py experiment=drums max_steps=200 audio.num_samples=4096 model=unet1d name=options
```

A *choice* is written `group=choice` (`model=diffwave`), an *option* `path.to.option=value`
(`training.optimizer.lr=1e-3`). The default `↳ name` means: the value of the option `name`.
An option that several choices of a group share is listed at the first of them.
"""
PROGRAMS = {
    "train": (
        "data", "model", "condition", "representation", "diffusion", "sampler", "training", "callbacks", "trainer",
        "logger", "experiment",
    ),
    "sample": ("task",),
    "evaluate": ("metrics",),
    "export": (),
    "make_shards": (),
}  # fmt: skip
LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w/@]+):(?: +(?P<value>[^#\s].*?))?(?: +# ?(?P<comment>.*))?$")


@dataclass
class Option:
    """A line of a YAML file: its path, its value as written, and its comment."""

    path: str
    value: str
    text: list[str] = field(default_factory=list)
    is_group: bool = False  # a mapping with options of its own


@dataclass
class Choice:
    """A YAML file: its comment at the top and its options."""

    name: str
    about: str
    options: list[Option]


def read(path: Path) -> Choice:
    """The options of a file, with the comments beside them; a comment may go on in the lines below."""
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


def shown(option: Option) -> str:
    """The default, as a cell of a table."""
    if option.is_group:
        return ""
    if option.value == "???":
        return "required"
    reference = re.fullmatch(r"\$\{([\w.]+)\}", option.value)
    return f"↳ `{reference[1]}`" if reference else f"`{option.value}`"


def described(option: Option) -> str:
    """What an option does; the comment of an option that takes another's value may be missing."""
    text = " ".join(option.text)
    reference = re.fullmatch(r"\[?(?:\"?\$\{[\w.:$]*\{?[\w.]+\}?\}[\w/]*\"?(?:, )?)+\]?", option.value)
    return text or ("see there" if reference else "")


def table(prefix: str, options: list[Option]) -> Iterator[str]:
    """Lines of a table of options."""
    rows = [o for o in options if not (o.is_group and not o.text)]
    if rows:
        yield from ("", "| option | default | what it does |", "|---|---|---|")
    for option in rows:
        name = f"{prefix}{option.path}"
        yield f"| `{name}` | {shown(option)} | {described(option)} |".replace("\\|", "|")


def group(folder: Path) -> Iterator[str]:
    """The section of a group of choices, and of the groups inside it."""
    name = folder.relative_to(ROOT / "configs").as_posix()
    yield from ("", f"### {name}", "")
    choices = [read(path) for path in sorted(folder.glob("*.yaml"))]
    yield from (f"Choices of `{name}=`:", "")
    for choice in choices:
        yield f"- `{choice.name}`" + (f": {choice.about}" if choice.about else "")
    seen: dict[tuple[str, str, str], None] = {}
    is_global = name in ("experiment", "task", "condition")
    for choice in choices:
        prefix = "" if is_global else f"{name.replace('/', '.')}."
        new = [o for o in choice.options if (o.path, o.value, " ".join(o.text)) not in seen]
        seen.update(dict.fromkeys((o.path, o.value, " ".join(o.text)) for o in new))
        if name == "experiment":
            continue
        if lines := list(table(prefix, new)):
            yield from ("", f"`{name}={choice.name}`", *lines)
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield from group(inner)


def page() -> str:
    """The whole page."""
    lines = INTRO.splitlines()
    for program, groups in PROGRAMS.items():
        root = read(ROOT / "configs" / f"{program}.yaml")
        lines += ["", f"## {program}.py", *table("", root.options)]
        for name in groups:
            if (ROOT / "configs" / name).is_dir():
                lines += group(ROOT / "configs" / name)
    return "\n".join(lines) + "\n"


def bases(path: Path) -> list[Path]:
    """The files that a file inherits from, by its defaults list."""
    listed = re.search(r"^defaults: \[(\w+)(?:@\w+)?\]", path.read_text(encoding="utf-8"), re.MULTILINE)
    above = [path.with_name(f"{listed[1]}.yaml")] if listed else []
    return above + [base for other in above for base in bases(other)]


def undescribed() -> list[str]:
    """Options without a description, each with its file."""
    found = []
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        if path.parent.name == "experiment" or path.stem == "learnt":
            continue
        based = {o.path.rsplit(".", 1)[-1] for other in bases(path) for o in read(other).options if described(o)}
        missing = [o for o in read(path).options if not (described(o) or o.is_group or o.path.split(".")[-1] in based)]
        name = path.relative_to(ROOT).as_posix()
        found += [f"{name}: {o.path}" for o in missing]
        if path.parent.name != "configs" and not read(path).about:
            found.append(f"{name}, first line")
    return found


def main(arguments: list[str]) -> int:
    """Writes the page, or checks it."""
    if "--check" not in arguments:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    problems = [f"{name}: expected a comment that says what it does" for name in undescribed()]
    if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        problems.append("docs/options.md differs from configs/: run python docs/make_options.py")
    print("\n".join(problems))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
