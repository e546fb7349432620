"""Every command of the README and of docs/ is run as it is printed, on tiny data and a tiny network."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile as sf

from audio_diffusion.packing.pack import pack, scan_folder

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
SCRIPTS = ("train.py", "sample.py", "evaluate.py", "export.py", "make_shards.py")

#: commands that cannot be run in a test, by their beginning, and why
NOT_RUN = {
    "make ": "installs, trains for minutes or runs all tests; the target must exist",
    "pip install": "would change the environment; the extra must exist",
    "sbatch ": "needs a cluster; tests/slurm runs the scripts on a real Slurm",
    "CONTAINER": "needs a cluster and a container runtime",
    "scancel ": "needs a cluster",
    "tail -F": "follows the log of a cluster's job",
    "srun ": "needs a cluster and a container runtime",
    "docker ": "needs Docker",
    "apptainer ": "needs Apptainer",
    "enroot ": "needs Enroot",
    ".venv/bin/python": "starts an interactive session; tests/test_tutorial.py runs what is pasted into it",
    "mkdocs ": "tests/test_docs.py builds the site",
    "git clone": "needs the network",
    "python -c 'import audio_diffusion; audio_diffusion.push(": "needs the Hugging Face hub",
    "python sample.py ckpt=hub:": "needs the Hugging Face hub",
    'python -c "import torchaudio; torchaudio.datasets': "downloads 2.3 GB",
    "python -m audio_diffusion.packing.datasets.sc09": "needs the downloaded data; tests/packing has a stand-in",
    "python make_shards.py input=data/SpeechCommands": "needs the downloaded data",
    "python train.py experiment=sc09": "needs eight GPUs and the downloaded data; the recipe is stepped by tests/cli",
    "python sample.py ckpt=runs/sc09": "needs the model of the command before",
    "python benchmarks/": "takes hours; benchmarks/ has the results",
    "python train.py trainer.devices=8": "needs eight GPUs",
}
#: words that stand for something of the reader's
STAND_INS = {"RUN": "runs/quickstart", "EARLIER": "runs/quickstart", "SHARDS": "data/drums"}


def commands_of(page: str) -> list[str]:
    """The commands of a page, in order: lines of ``bash`` blocks, and whole commands in code spans."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    spans = re.findall(rf"`(python (?:{'|'.join(SCRIPTS)}) [^`\n]+)`".replace(".py", r"\.py"), text)
    lines += [span for span in spans if ".." not in span]
    programs = r"(?:[A-Z_]+=\S+ )*(?:\S*python|pip|make|sbatch|srun|docker|apptainer|enroot|scancel|tail|git|mkdocs) "
    return list(dict.fromkeys(line for line in lines if re.match(programs, line)))


def reason_not_to_run(command: str) -> str | None:
    """Why a command is not run here; None for one that is."""
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), None)


def to_run() -> dict[str, list[str]]:
    """The commands to run, by page. Those that differ in their names and data alone are run once."""
    seen: set[str] = set()
    chosen: dict[str, list[str]] = {page: [] for page in PAGES}
    for page in PAGES:
        for command in commands_of(page):
            what = re.sub(r" #.*| (?:name|data\.train)=\S+|(?<=ckpt=)(?:runs/\S+|RUN)", "", command).strip()
            if reason_not_to_run(command) is None and what not in seen:
                seen.add(what)
                chosen[page].append(command)
    return chosen


RUN = to_run()


@pytest.fixture(scope="module")
def quickstart(
    tmp_path_factory: pytest.TempPathFactory, run_program: Callable[..., subprocess.CompletedProcess],
    drum_shards: Path, tiny_sampled: list[str],
) -> Path:  # fmt: skip
    """runs/quickstart, trained for two steps."""
    folder = tmp_path_factory.mktemp("quickstart")
    done = run_program(folder, "train.py", f"data.train={drum_shards}", "name=quickstart", "max_steps=2", *tiny_sampled)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "quickstart"


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory, drum_folder: Path) -> Path:
    """Shards of drum hits with captions."""
    shards = tmp_path_factory.mktemp("captioned")
    sources = scan_folder(drum_folder, label_from_folder=True)
    pack([replace(source, fields={**source.fields, "caption": "a hit"}) for source in sources], shards)
    return shards


@pytest.fixture
def reader(
    tmp_path: Path, quickstart: Path, drum_folder: Path, drum_shards: Path, captioned: Path
) -> Path:  # fmt: skip
    """The folder in which a reader types: data of every name that pages use, sounds, and runs/quickstart."""
    (tmp_path / "data").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "FOLDER").symlink_to(drum_folder)
    (tmp_path / "runs" / "quickstart").symlink_to(quickstart)
    for name in ("drums", "mine", "speech", "music", "environment"):
        (tmp_path / "data" / name).symlink_to(drum_shards)
    (tmp_path / "data" / "captioned").symlink_to(captioned)
    for name, hit in {"hit": "snare", "snare": "snare", "kick": "kick"}.items():
        shutil.copy(sorted((drum_folder / hit).glob("*.wav"))[0], tmp_path / f"{name}.wav")
    write_own_parts(tmp_path)
    audio, sample_rate = sf.read(tmp_path / "kick.wav")
    sf.write(tmp_path / "loud.wav", (3 * audio).clip(-0.9, 0.9), sample_rate)
    return tmp_path


def write_own_parts(folder: Path) -> None:
    """The package and the YAMLs of docs/extending.md, each under the name in its first line."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for name, block in re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if name.endswith((".py", ".yaml")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with open(folder / name, "a", encoding="utf-8") as file:
                file.write(block)


def small(script: str, arguments: list[str], tiny: list[str], encoder: Path) -> list[str]:
    """The arguments with what makes the program quick: a network, a batch and a number of steps that are tiny."""
    words = " ".join(arguments)
    arguments = [re.sub(r"=([A-Z]+)$", lambda found: f"={STAND_INS.get(found[1], found[1])}", a) for a in arguments]
    if script == "make_shards.py":  # into a folder that holds no shards yet
        return [argument.replace("output=data/drums", "output=packed") for argument in arguments]
    if script == "evaluate.py":
        return [*arguments, "num_clips=1"]
    if script == "export.py":
        return [argument.replace("output=FOLDER", "output=exported") for argument in arguments]
    if script != "train.py":
        return arguments
    arguments = [a.replace("NAME_OR_FOLDER", str(encoder)).replace("width=1024", "width=32") for a in arguments]
    is_diffwave = "experiment=vocoder" in words or "model=diffwave" in words
    is_own = "my_package" in words or "config_dir=" in words
    for option in tiny:
        group = option.split("=")[0]
        if f"{group}=" in words and "." not in group and group in ("trainer", "logger"):
            continue
        if not ((is_diffwave or is_own) and option.startswith("model.")):
            arguments.append(option)
    if is_diffwave:
        arguments += ["model.num_layers=2", "model.width=8"]
    if "condition=[caption" in words:
        arguments += ["model.attention=true", "model.widths=[8,64]"]
    return [*arguments, "max_steps=2", "callbacks.sampling.num_samples=1", "trainer.limit_val_batches=1"]


@pytest.mark.documentation
@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page] and not page.endswith(".zh.md")])
def test_the_commands_of_a_page_run_in_their_order(
    page: str, reader: Path, launch: Callable, tiny_sampled: list[str], text_encoders: dict[str, Path]
) -> None:
    for command in RUN[page]:
        program, script, *arguments = shlex.split(command, comments=True)
        assert program == "python", command
        if script in ("-m", "-c"):
            done = subprocess.run([sys.executable, script, *arguments], cwd=reader, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            continue
        prepare(script, arguments, reader)
        ranks = 2 if "trainer.devices=2" in arguments else 1
        started = launch(
            reader, script, *small(script, arguments, tiny_sampled, text_encoders["t5_encoder"]), ranks=ranks
        )
        assert started.wait(240) == [0] * ranks, f"{command}\n{started.text}"


def prepare(script: str, arguments: list[str], reader: Path) -> None:
    """Clears the output of packing, and puts the tiny model where a page uses one that it has not trained."""
    for key, _, value in (argument.partition("=") for argument in arguments):
        path = reader / value
        if script == "make_shards.py" and key == "output":
            path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
        if script != "train.py" and key == "ckpt" and value.startswith("runs/") and not path.exists():
            path.symlink_to(reader / "runs" / "quickstart")


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_names_what_exists(page: str) -> None:
    makefile, project = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "pyproject.toml"))
    for command in commands_of(page):
        words = shlex.split(command, comments=True)
        assert reason_not_to_run(command) or words[1] in (*SCRIPTS, "-m", "-c"), f"{page}: {command}"
        if words[0] == "make":
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in words[1:]), command
        if words[:2] == ["pip", "install"] and (extra := re.search(r"\[(\w+)\]", command)):
            assert re.search(rf"^{extra[1]} = \[", project, re.MULTILINE), command
        for script in re.findall(r"\b(?:slurm|docker)/\S+|\b\w+\.py\b", command):
            assert any((ROOT / place / script).exists() for place in (".", "benchmarks/sc09")), command


def test_the_chinese_readme_has_the_same_commands() -> None:
    def typed(page: str) -> list[list[str]]:
        return [shlex.split(command, comments=True) for command in commands_of(page)]

    def code(page: str) -> list[str]:
        text = (ROOT / page).read_text(encoding="utf-8")
        blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        return [re.sub(r" +#.*", "", block) for block in blocks]

    assert typed("README.md") == typed("README.zh.md")
    assert code("README.md") == code("README.zh.md") != []


def test_each_reason_belongs_to_a_command() -> None:
    every = [command for page in PAGES for command in commands_of(page)]
    unused = {start for start in NOT_RUN if not any(command.startswith(start) for command in every)}
    assert unused <= {"mkdocs ", "git clone", "python train.py trainer.devices=8"}


@pytest.mark.documentation
@pytest.mark.parametrize("page", ["README.md", "docs/sampling.md"])
def test_the_python_of_a_page_runs(page: str, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader)
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})
