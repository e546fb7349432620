"""Writes options.md from the comments in configs/.

python docs/make_options.py            # rewrites docs/options.md
python docs/make_options.py --check    # exit status 1 if it is not up to date, or if an option has no description
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from audio_diffusion.cli.help import PROGRAMS, Option, default_of, description_of, read_yaml

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


def table(prefix: str, options: list[Option]) -> Iterator[str]:
    """Lines of a table of options."""
    rows = [o for o in options if not (o.is_group and not o.text)]
    if rows:
        yield from ("", "| option | default | what it does |", "|---|---|---|")
    for option in rows:
        name = f"{prefix}{option.path}"
        yield f"| `{name}` | {default_of(option)} | {description_of(option)} |".replace("\\|", "|")


def group(folder: Path) -> Iterator[str]:
    """The section of a group of choices, and of the groups inside it."""
    name = folder.relative_to(ROOT / "configs").as_posix()
    yield from ("", f"### {name}", "")
    choices = [read_yaml(path) for path in sorted(folder.glob("*.yaml"))]
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
        root = read_yaml(ROOT / "configs" / f"{program}.yaml")
        typed = f"{program}.py" if (ROOT / f"{program}.py").is_file() else f"audio-diffusion {program}"
        lines += ["", f"## {typed}", *table("", root.options)]
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
        inherited = [o for other in bases(path) for o in read_yaml(other).options if description_of(o)]
        based = {o.path.rsplit(".", 1)[-1] for o in inherited}
        options = [o for o in read_yaml(path).options if not (description_of(o) or o.is_group)]
        missing = [o for o in options if o.path.rsplit(".", 1)[-1] not in based]
        name = path.relative_to(ROOT).as_posix()
        found += [f"{name}: {o.path}" for o in missing]
        if path.parent.name != "configs" and not read_yaml(path).about:
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
