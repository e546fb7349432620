"""Vocoders side by side on held-out clips: models trained here and Griffin-Lim, on the same mels; writes a table.

    pip install -e '.[bench]'                 # pesq is compiled: it needs a C compiler
    python benchmarks/vocoder/run.py data/speech --model runs/vocoder [--model RUN ..] [--clips 16] [--output TABLE.md]

Every clip is the first second (64 frames of the mel) of one that is at least as long, from the shards' test split, or
val where there is none: no training has seen it. Griffin-Lim is torchaudio's, after its InverseMelScale. Its frames end
half a hop inside the clip, so all are compared there. Model i's noise on clip j follows from j alone.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # before torch: see train.py

import torch
from pesq import pesq
from pystoi import stoi
from torch import Tensor
from torchaudio.transforms import GriffinLim, InverseMelScale
from tqdm import tqdm

from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.data.shards.shards import Shards
from audio_diffusion.data.stream import read_in_order
from audio_diffusion.diffusion import grids
from audio_diffusion.diffusion.seeding import seed_of
from audio_diffusion.diffusion.solvers.ddpm import ddpm
from audio_diffusion.diffusion.solvers.unipc import unipc
from audio_diffusion.inference import checkpoint_reader
from audio_diffusion.inference.loading import load
from audio_diffusion.metrics.signal import log_mel_distance, multi_resolution_stft
from audio_diffusion.networks.conditions.mel import Mel

RATE, LENGTH = 16_000, 16_384
MEL = Mel(RATE, 1)  # 80 bands to 8 kHz, windows of 1024, hop 256: as configs/condition/mel.yaml
FAST = [1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5]  # DiffWave's fast schedule for T = 50
NFE = (6, 20, 50)
COLUMNS = ("mel distance, dB", "multi-resolution STFT", "PESQ, wide band", "STOI")

Vocoder = Callable[[Tensor], Tensor]


def held_out(data: str, count: int) -> Tensor:
    """Recordings ``[count, 1, T]``.

    Raises:
        ValueError: if there are not so many that are long enough.
    """
    split = "test" if any(Path(data).glob("test-*.tar")) else "val"
    shards = Shards.open([f"{data}/{split}-*.tar"], RemoteStore(None))
    clips = read_in_order(shards, RATE, 1, LENGTH, [])
    chosen = list(islice((audio for clip, audio in clips if clip.num_valid == LENGTH), count))
    if len(chosen) < count:
        raise ValueError(f"clips: {data} has {len(chosen)} {split} clips of {LENGTH} samples, fewer than {count}")
    return torch.stack(chosen)


def griffin_lim(iterations: int) -> Vocoder:
    """Mel -> linear magnitudes by least squares -> phase by iteration."""
    linear = InverseMelScale(MEL.n_fft // 2 + 1, MEL.num_rows, RATE, 0.0, RATE / 2, "slaney", "slaney")
    phase = GriffinLim(MEL.n_fft, iterations, hop_length=MEL.hop, power=1.0)

    def vocode(audio: Tensor) -> Tensor:
        torch.manual_seed(0)
        magnitudes = (3 * MEL.prepare(audio, "cpu") - 5).exp()
        beside = MEL.hop // 2
        return torch.nn.functional.pad(phase(linear(magnitudes)), (beside, beside))[:, None]

    return vocode


def sampler_of(model: checkpoint_reader.Model, nfe: int) -> tuple[str, Callable]:
    """What a model is sampled with in so many calls, and its name."""
    num_steps = model.process.schedule.num_steps
    if num_steps == nfe:
        return "all steps", partial(ddpm, num_steps=None, variance="beta_tilde")
    if num_steps == 50 and nfe == len(FAST):
        grid = partial(grids.of_betas, betas=FAST)
        return "fast", partial(ddpm, num_steps=nfe, variance="beta_tilde", grid=grid)
    return "UniPC", partial(unipc, num_steps=nfe)


def learnt(model: checkpoint_reader.Model, sampler: Callable) -> Vocoder:
    """A model and how it is sampled."""
    model = replace(model, crop=replace(model.crop, num_samples=LENGTH))  # it was trained on shorter crops, maybe

    def vocode(audio: Tensor) -> Tensor:
        seeds = [seed_of(0, "vocoder", i) for i in range(len(audio))]
        made = [
            model.using(guidance=1.0, sampler=sampler).generate([seed], cond={"mel": clip[None]})
            for seed, clip in zip(seeds, tqdm(audio, leave=False), strict=True)
        ]
        return torch.cat(made)

    return vocode


def measure(vocode: Vocoder, audio: Tensor) -> tuple[Tensor, float]:
    """The columns ``[clips, 4]``, and seconds a second of audio takes."""
    start = time.process_time()
    made = vocode(audio)
    seconds = (time.process_time() - start) / (audio.numel() / RATE)
    inside = slice(MEL.hop // 2, -MEL.hop // 2)
    made, true = made[..., inside].clamp(-1, 1), audio[..., inside]
    heard = [
        (pesq(RATE, t[0].numpy(), m[0].numpy(), "wb"), stoi(t[0].numpy(), m[0].numpy(), RATE))
        for m, t in zip(made, true, strict=True)
    ]
    seen = [log_mel_distance(made, true, RATE), multi_resolution_stft(made, true)]
    return torch.cat([torch.stack(seen, 1), torch.tensor(heard, dtype=torch.float64)], dim=1), seconds


def row(name: str, found: tuple[Tensor, float]) -> str:
    """Mean ± standard deviation over the clips."""
    values, seconds = found
    cells = [f"{m:.2f} ± {s:.2f}" for m, s in zip(values.mean(0).tolist(), values.std(0).tolist(), strict=True)]
    return f"| {name} | {' | '.join(cells)} | {seconds:.2f} |"


def main() -> None:
    """Read, vocode, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of shards with test-*.tar or val-*.tar")
    parser.add_argument("--model", action="append", default=[], help="a run's folder or a checkpoint")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--nfe", type=int, nargs="+", default=NFE)
    parser.add_argument("--output", type=Path, help="file for the table as well")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*(stft|Mel filterbank|lstsq).*")
    audio = held_out(options.data, options.clips)
    vocoders = {f"Griffin-Lim, {n} iterations": griffin_lim(n) for n in (32, 100)}
    for path in options.model:
        model = load(path)
        size = sum(p.numel() for p in model.net.parameters()) / 1e6
        for nfe in options.nfe:
            how, sampler = sampler_of(model, nfe)
            name = f"{type(model.net).__name__} {size:.2f} M, step {model.step}: {nfe} NFE, {how}"
            vocoders[name] = learnt(model, sampler)
    lines = [
        f"{len(audio)} clips of {LENGTH / RATE:.3f} s",
        "",
        f"| vocoder | {' | '.join(COLUMNS)} | CPU s/s |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for name, vocode in vocoders.items():
        lines.append(row(name, measure(vocode, audio)))
        print(lines[-1], flush=True)
        if options.output:
            options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
