"""The benchmark's own audio: made on first use, the same on every machine, free of any licence, packed by our packer.

    tracks    stereo, 44.1 kHz, 180 to 300 s: layered loops and noise, whose FLAC is about 60 % of PCM16, as music's is
    clips     stereo, 44.1 kHz, 10 s, cut from such tracks
    speech    mono, 16 kHz, 5 to 15 s: a voice-like buzz in syllables

Each as ``NAME/files/{flac,wav}``, the same samples in shards as ``NAME/shards/{flac,wav}``, and ``NAME/pcm16.bin``: all
of its samples as one array, with ``pcm16.json`` saying where each clip starts.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from audio_diffusion.packing.pack import Source, pack, scan_folder

Samples = NDArray[np.int16]  # [N, C]
RATES = {"tracks": 44_100, "clips": 44_100, "speech": 16_000}
COUNTS = {"tracks": 12, "clips": 300, "speech": 300}
QUICK = {"tracks": 3, "clips": 20, "speech": 20}


def _loop(rng: np.random.Generator, rate: int, num_beats: int, beat: int) -> NDArray[np.float32]:
    """A bar of decaying harmonic notes in stereo, float32 ``[N, 2]``."""
    time = np.arange(beat, dtype=np.float32) / rate
    beats = []
    for _ in range(num_beats):
        pitch = 55 * 2 ** (rng.integers(0, 48) / 12)
        harmonics = np.arange(1, min(12, int(rate / 2.2 / pitch)) + 1)
        phases = 2 * np.pi * (pitch * harmonics[:, None] * time + rng.uniform(size=(len(harmonics), 1)))
        note = (np.sin(phases) / harmonics[:, None] ** 1.3).sum(0) * np.exp(-time * rng.uniform(1, 8))
        pan = rng.uniform(0.2, 0.8)
        beats.append(np.stack([note * pan, note * (1 - pan)], axis=1))
    return np.concatenate(beats).astype(np.float32)


def track(number: int, seconds: float | None = None) -> Samples:
    """A piece of layered loops; it depends on (number, seconds) alone."""
    rng, rate = np.random.default_rng([1, number]), RATES["tracks"]
    frames = int((seconds or rng.uniform(180, 300)) * rate)
    beat = int(rate * 60 / rng.uniform(80, 150))
    mix = np.zeros((frames, 2), dtype=np.float32)
    for num_beats in (4, 7, 16):
        loop = _loop(rng, rate, num_beats, beat)
        mix += np.resize(loop, (frames, 2)) * rng.uniform(0.1, 0.25)
    swell = np.resize(np.repeat(rng.uniform(0.5, 1, 64), beat), frames)[:, None].astype(np.float32)
    mix += 0.004 * swell * rng.standard_normal((frames, 2), dtype=np.float32)
    return (mix.clip(-1, 1) * 32_767).astype(np.int16)


def utterance(number: int) -> Samples:
    """A buzz of gliding pitch through formants, in syllables, over a little noise."""
    rng, rate = np.random.default_rng([2, number]), RATES["speech"]
    frames = int(rng.uniform(5, 15) * rate)
    time = np.arange(frames) / rate
    pitch = rng.uniform(90, 220) * (1 + 0.15 * np.sin(2 * np.pi * rng.uniform(0.2, 0.6) * time))
    buzz = (np.cumsum(pitch) / rate % 1) * 2 - 1 + 0.2 * rng.standard_normal(frames)
    frequency = np.fft.rfftfreq(frames, 1 / rate)
    formants = rng.uniform([300, 900, 2200], [800, 2000, 3200])
    gain = sum(1 / (1 + ((frequency - formant) / 90) ** 2) for formant in formants) + 0.02
    voice = np.fft.irfft(np.fft.rfft(buzz) * gain, frames)
    syllables = np.clip(np.sin(2 * np.pi * rng.uniform(2, 3) * time) + 0.4, 0, 1)
    voice = 0.5 * voice / np.abs(voice).max() * syllables + 0.002 * rng.standard_normal(frames)
    return (voice[:, None].clip(-1, 1) * 32_767).astype(np.int16)


def _clips(count: int) -> Iterator[Samples]:
    length = 10 * RATES["clips"]
    for number in range(-(-count // 20)):
        whole = track(1000 + number, 200)
        yield from (whole[i * length : (i + 1) * length] for i in range(min(20, count - 20 * number)))


def _sources(name: str, count: int) -> Iterator[Samples]:
    """One more than the training clips: the packer wants a clip to hold out."""
    make: dict[str, Callable[[], Iterator[Samples]]] = {
        "tracks": lambda: (track(i) for i in range(count + 1)),
        "clips": lambda: _clips(count + 1),
        "speech": lambda: (utterance(i) for i in range(count + 1)),
    }
    return make[name]()


def _write_files(folder: Path, name: str, count: int) -> None:
    starts, at = [], 0
    for encoding in ("flac", "wav"):
        (folder / "files" / encoding).mkdir(parents=True)
    with open(folder / "pcm16.bin", "wb") as raw:
        for i, samples in enumerate(_sources(name, count)):
            for encoding in ("flac", "wav"):
                file = folder / "files" / encoding / f"{name}_{i:04d}.{encoding}"
                sf.write(file, samples, RATES[name], subtype="PCM_16")
            if i < count:
                raw.write(samples.tobytes())
                starts.append(at)
                at += len(samples)
    layout = {"sample_rate": RATES[name], "channels": samples.shape[1], "starts": starts, "frames": at}
    (folder / "pcm16.json").write_text(json.dumps(layout), encoding="utf-8")


def _pack(files: Path, output: Path, count: int) -> None:
    sources = [
        Source(path, path.name, {"split": "train" if i < count else "val"})
        for i, path in enumerate(sorted(files.iterdir()))
    ]
    pack(sources, output)


def make(root: Path, quick: bool) -> None:
    """Makes what of the corpora is not there yet."""
    for name, count in (QUICK if quick else COUNTS).items():
        folder, temporary = root / name, root / f".{name}.part"
        if folder.is_dir():
            continue
        print(f"making the corpus {name}: {count} clips", flush=True)
        shutil.rmtree(temporary, ignore_errors=True)
        _write_files(temporary, name, count)
        for encoding in ("flac", "wav"):
            _pack(temporary / "files" / encoding, temporary / "shards" / encoding, count)
        temporary.rename(folder)


def from_folder(folder: Path, root: Path) -> tuple[Path, str, int, int]:
    """A corpus of a user's files: its folder, their encoding, rate in Hz and channels.

    Raises:
        ValueError: if they are not all .flac or all .wav, of one rate and width.
    """
    corpus = root / f"own_{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}"
    sources = scan_folder(folder, False)
    encodings = {source.path.suffix.lower().lstrip(".") for source in sources}
    kinds = {(info.samplerate, info.channels) for info in (sf.info(source.path) for source in sources)}
    if len(encodings) > 1 or not encodings <= {"flac", "wav"} or len(kinds) > 1:
        raise ValueError(f"files: expected all flac or all wav, of one rate and width, got {encodings} and {kinds}")
    (encoding,), ((rate, channels),) = encodings, kinds
    if not corpus.is_dir():
        temporary = root / f".{corpus.name}.part"
        shutil.rmtree(temporary, ignore_errors=True)
        pack(sources, temporary / "shards" / encoding)
        (temporary / "files" / encoding).mkdir(parents=True)
        for i, source in enumerate(sources):
            (temporary / "files" / encoding / f"{i:06d}.{encoding}").symlink_to(source.path.resolve())
        temporary.rename(corpus)
    return corpus, encoding, rate, channels
