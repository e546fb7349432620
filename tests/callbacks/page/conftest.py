"""A run's folder written by hand, with as many rounds as wanted."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

CLASSES = ("clap", "hat", "kick")


@pytest.fixture
def make_run_folder(tmp_path: Path) -> Callable[..., Path]:
    """make_run_folder("one", rounds=3, rows=20, lr=0.1, audio=True) -> the folder; without audio files are empty."""

    def made(name: str, rounds: int = 3, rows: int = 20, lr: float = 0.1, audio: bool = True) -> Path:
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(
            f"name: {name}\nrun_dir: runs/{name}\nlr: {lr}\ndata: {{train: one}}\ntrainer: {{max_steps: 1000}}\n"
            f"callbacks: {{sampling: {{folder: runs/{name}/samples}}}}\n"
        )
        (run / "details.json").write_text(json.dumps({"git_commit": "abc", "data": {"train": {"shards": "drums"}}}))
        with open(run / "metrics.jsonl", "w") as f:
            for step in range(1, rows + 1):
                loss = 0.1 + math.exp(-step / 10)
                parts = {f"train/loss_t_0.{low}-0.{low + 2}": loss * (low + 1) for low in (0, 2, 4)}
                f.write(json.dumps({"step": step, "train/loss": loss, **parts, "train/lr": lr}) + "\n")
                if step % 5 == 0:
                    kad = {"metrics/kad": 50 / step, "metrics/kad_low": 40 / step, "metrics/kad_high": 60 / step}
                    f.write(json.dumps({"step": step, "val/loss": loss, "val/loss_ema": loss / 2, **kad}) + "\n")
        for number in range(1, rounds + 1):
            write_round(run / "samples" / f"step_{5 * number:08d}", audio)
        return run

    return made


def write_round(folder: Path, audio: bool) -> None:
    """Six sounds of 0.25 s, their table and their pictures."""
    folder.mkdir(parents=True)
    rows = []
    for slot in range(6):
        label = CLASSES[slot % 3]
        path = folder / f"{slot:03d}_{label}.wav"
        if audio:
            tone = 0.5 * np.sin(2 * np.pi * 220 * (slot + 1) * np.arange(4000) / 16000)
            soundfile.write(path, tone, 16000)
        else:
            path.touch()
        rows.append({"step": 5, "label": label, "seed": 10**17 + slot, "peak": 0.5, "rms": 0.35, "clipped_percent": 0})
    with open(folder / "samples.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for name in ("spectrograms.png", "reverse_process.png"):
        (folder / name).write_bytes(ONE_PIXEL)


ONE_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
