"""Do the distances hear what they should? Real clips against changed ones; writes RESULTS.md.

    python benchmarks/metrics/run.py drums=FOLDER speech=FOLDER [--clips 300] [--embeddings log_mel yamnet]

Of each corpus (a folder of audio files, searched recursively) as many clips as asked are drawn and split into halves A
and B. Half A is the reference; half B is compared with it as it is, with white noise at 40 to 0 dB below each clip's
level, with a low-pass, and clipped after 6 to 40 dB of gain over its peak; then the other corpora, and white noise.
Windows of digital silence are dropped, so that noise in pauses counts for what it is.
"""

import argparse
import math
import platform
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

from audio_diffusion.metrics.distances.estimate import Estimate
from audio_diffusion.metrics.distances.frechet import fad
from audio_diffusion.metrics.distances.kernel import kad
from audio_diffusion.metrics.distances.neighbours import precision_recall_density_coverage
from audio_diffusion.metrics.embeddings.embedding import Embedded, Embedding, embed_clips, to_mono
from audio_diffusion.metrics.embeddings.log_mel import LogMel
from audio_diffusion.metrics.embeddings.voice import Voice
from audio_diffusion.metrics.embeddings.yamnet import YAMNet

import soundfile as sf  # isort: skip
import torch  # isort: skip
from torch import Tensor  # isort: skip

RESULTS = Path(__file__).with_name("RESULTS.md")
SUFFIXES = {".wav", ".flac", ".ogg", ".mp3"}
EMBEDDINGS: dict[str, Callable[[], Embedding]] = {"log_mel": LogMel, "yamnet": YAMNet, "voice": Voice}
RATE = 16_000
MAX_S = 10.0
Change = Callable[[Tensor, torch.Generator], Tensor]


def noisy(snr_db: float) -> Change:
    """Adds white noise so far below the clip's level."""

    def change(clip: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(clip.shape, generator=generator)
        return clip + noise * clip.square().mean().sqrt() * 10 ** (-snr_db / 20)

    return change


def low_passed(hz: float) -> Change:
    """Removes what lies above a frequency."""

    def change(clip: Tensor, _: torch.Generator) -> Tensor:
        spectrum = torch.fft.rfft(clip)
        spectrum[torch.fft.rfftfreq(len(clip), 1 / RATE) > hz] = 0
        return torch.fft.irfft(spectrum, len(clip))

    return change


def clipped(gain_db: float) -> Change:
    """Clips a clip whose peak would lie so far over full scale, and undoes the gain."""

    def change(clip: Tensor, _: torch.Generator) -> Tensor:
        limit = clip.abs().amax() * 10 ** (-gain_db / 20)
        return clip.clamp(-limit, limit)

    return change


CHANGES: Mapping[str, Change] = {
    "unchanged": lambda clip, _: clip,
    **{f"white noise, SNR {snr} dB": noisy(snr) for snr in (40, 30, 20, 10, 0)},
    **{f"low-pass {hz:,} Hz": low_passed(hz) for hz in (6000, 4000, 2000, 1000)},
    **{f"clipped by {gain} dB": clipped(gain) for gain in (6, 12, 24, 40)},
}


def read(folder: Path, count: int) -> list[Tensor]:
    """Mono clips at 16 kHz, of at most 10 s from the file's start, drawn from all files."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    chosen = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[:count].tolist()
    clips = []
    for i in chosen:
        with sf.SoundFile(files[i]) as file:
            audio = file.read(round(MAX_S * file.samplerate), dtype="float32", always_2d=True)
            if len(audio):
                clips.append(to_mono(torch.from_numpy(audio.T.copy()), file.samplerate, RATE))
    return clips


def cell(estimate: Estimate, digits: int) -> str:
    """The figure with its interval."""
    if math.isnan(estimate.value):
        return "too few"
    if estimate.interval is None:
        return f"{estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f} [{estimate.interval[0]:.{digits}f}, {estimate.interval[1]:.{digits}f}]"


def row(name: str, made: Embedded, reference: Embedded) -> str:
    """One line of a table, with the CPU time of each figure."""
    kernel, frechet = kad(made, reference), fad(made, reference)
    shares = precision_recall_density_coverage(made, reference)
    print(f"{name}: {len(made)} windows, KAD {cell(kernel, 2)}, FAD {cell(frechet, 2)}", flush=True)
    return (
        f"| {name} | {len(made)} | {cell(kernel, 2)} | {cell(frechet, 2)} | "
        + " | ".join(cell(share, 2) for share in shares.values())
        + " |"
    )


def table(name: str, corpora: Mapping[str, list[Tensor]], embedding: Embedding) -> list[str]:
    """The table of one corpus by one embedding."""
    clips = corpora[name]
    half = len(clips) // 2
    started = time.process_time()
    reference = embed_clips(embedding, clips[:half], RATE)
    spent = 1000 * (time.process_time() - started) / max(1, len(reference))
    lines = [
        f"### {name}, {embedding.name}", "",
        f"Reference: {len(reference)} windows of {half} clips ({spent:.1f} ms of CPU time a window).", "",
        "| half B | windows | KAD | FAD | precision | recall | density | coverage |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for label, change in CHANGES.items():
        generator = torch.Generator().manual_seed(1)
        changed = [change(clip, generator) for clip in clips[half:]]
        lines.append(row(label, embed_clips(embedding, changed, RATE), reference))
    for other, theirs in corpora.items():
        if other != name:
            lines.append(row(other, embed_clips(embedding, theirs[:half], RATE), reference))
    generator = torch.Generator().manual_seed(2)
    white = [0.1 * torch.randn(len(clip), generator=generator) for clip in clips[half:]]
    return [*lines, row("white noise alone", embed_clips(embedding, white, RATE), reference), ""]


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--clips", type=int, default=300, help="clips of each corpus, both halves together")
    parser.add_argument("--embeddings", nargs="+", choices=EMBEDDINGS, default=["log_mel", "yamnet"])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    folders = dict(pair.split("=", 1) for pair in arguments.corpora)
    corpora = {name: read(Path(folder), arguments.clips) for name, folder in folders.items()}
    named = " ".join(f"{name}=FOLDER" for name in folders)
    lines = [
        "# Sanity of the distances", "",
        f"Made on {date.today().isoformat()} by `python benchmarks/metrics/run.py {named} "
        f"--clips {arguments.clips} --embeddings {' '.join(arguments.embeddings)}`, {platform.machine()}, "
        f"torch {torch.__version__} with {torch.get_num_threads()} threads. In brackets: 95 % intervals.", "",
    ]  # fmt: skip
    for name in arguments.embeddings:
        embedding = EMBEDDINGS[name]()
        for corpus in corpora:
            lines += table(corpus, corpora, embedding)
            arguments.output.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
