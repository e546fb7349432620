"""This project, as its users have it: train.py with the defaults of an experiment, and the Python API."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from corpora import ROOT, Corpus
from torch import Tensor

import audio_diffusion
from audio_diffusion.diffusion.seeding import seed_of

HERE = Path(__file__).parent
CALIBRATION = 0.04  # share of the time, before it, in which the duration of a step is measured
BATCH = 16


class Ours:
    """Trains in a process of its own, in as many steps as fit into the time; ends with it in any case."""

    name = "ours"
    learning_rates: tuple[float, ...] = ()  # the experiment's; nothing is searched

    def problem(self) -> str:
        """Why it cannot run here; empty if it can."""
        return ""

    def train(self, corpus: Corpus, seconds: float, seed: int, rate: float | None, device: str, folder: Path) -> dict:
        """Trains, and returns what was spent; the run is in ``folder``/run."""
        form = [
            f"experiment={corpus.experiment}", f"data.train={corpus.shards}", "data.num_workers=0", f"seed={seed}",
            f"trainer={'gpu' if device == 'cuda' else 'cpu'}", "trainer.enable_progress_bar=false", "logger=null",
            "val_every_steps=null", "callbacks.sampling=null", *corpus.overrides,
        ]  # fmt: skip
        step = self._run([*form, "callbacks.checkpoint=null"], CALIBRATION * seconds, 10**6, device, folder, "tried")
        steps = max(1, round(0.98 * seconds / step["seconds_per_step"]))  # the decay of the rate ends at the last one
        spent = self._run(form, seconds, steps, device, folder, "run")
        return {**spent, "planned_steps": steps, "learning_rate": "the experiment's"}

    def _run(self, form: list[str], seconds: float, steps: int, device: str, folder: Path, name: str) -> dict:
        file = folder / f"spent_{name}.json"
        command = [
            sys.executable, str(ROOT / "train.py"), f"config_dir={HERE / 'configs'}", "callbacks=budget", *form,
            f"max_steps={steps}", f"run_dir={folder / name}", f"name={folder.name}", "ckpt=none",
            f"callbacks.budget.seconds={seconds}", f"callbacks.budget.file={file}",
            f"callbacks.budget.device={device}",
        ]  # fmt: skip
        if "callbacks.checkpoint=null" not in form:
            command.append(f"callbacks.checkpoint.every_n_steps={10**9}")  # the last step's alone
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"train.py ended with status {done.returncode}:\n{done.stderr[-3000:]}")
        return json.loads(file.read_text(encoding="utf-8"))

    def generate(self, corpus: Corpus, labels: list[str], calls: int, seed: int, device: str, folder: Path) -> Tensor:
        """Generates a clip for each label from the EMA weights, by the experiment's sampler, without guidance."""
        model = audio_diffusion.load(folder / "run", device=device)
        model = model.using(sampler=partial(model.sampler, num_steps=calls), guidance=1.0)
        seeds = [seed_of(seed, "quality", i) for i in range(len(labels))]
        parts = []
        for i in range(0, len(labels), BATCH):
            part = slice(i, i + BATCH)
            parts.append(model.generate(seeds[part], labels[part] if corpus.classes else None).cpu())
        return torch.cat(parts)
