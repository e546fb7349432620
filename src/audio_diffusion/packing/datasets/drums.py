"""A data set that needs no download: synthetic drum hits, the same on every machine, free of any licence.

    python -m audio_diffusion.packing.datasets.drums FOLDER [hits_per_class]    # FOLDER/kick/kick_0000.wav, ...

Each hit draws its own pitch, decay, filter and level, wide enough to sound different and narrow enough
that the five classes stay apart. Frequencies are in Hz, times and decay constants in seconds.
"""

import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CLASSES = ("clap", "hat", "kick", "snare", "tom")
NOISE_FLOOR_DB = (-60, -40)  # range of the RMS of white noise in a hit relative to full scale, as in recordings
MAX_ONSET_S = 0.006  # latest start of a hit
ATTACK_S = 0.0003  # hits are faded in, because a step would contain all frequencies
SAMPLE_RATE = 16_000  # default and minimum: a hi-hat needs frequencies above 4 kHz
MIN_SAMPLES = 1024


def synthesize(
    label: str, rng: np.random.Generator, sample_rate: int = SAMPLE_RATE, num_samples: int = 8192
) -> NDArray[np.float32]:
    """One hit of class `label` as float32 [num_samples], full scale ±1, peak between 0.5 and 0.95.

    It starts within 6 ms, fades to its noise floor (-60 to -40 dB) before its end, and is decided by `rng` alone.
    Raises ValueError for an unknown label, a rate below 16 kHz or fewer than 1024 samples.
    """
    if label not in _VOICES:
        raise ValueError(f"label must be one of {', '.join(CLASSES)}; got {label!r}")
    _check_at_least("sample_rate", sample_rate, SAMPLE_RATE)
    _check_at_least("num_samples", num_samples, MIN_SAMPLES)
    time = np.arange(num_samples) / sample_rate - rng.uniform(0, MAX_ONSET_S)
    hit = _VOICES[label](time, sample_rate, rng) * _fade_out(num_samples)
    hit *= rng.uniform(0.5, 0.94) / np.abs(hit).max()
    floor = 10 ** (rng.uniform(*NOISE_FLOOR_DB) / 20)
    return (hit + floor * rng.standard_normal(num_samples)).astype(np.float32)


def hits(
    hits_per_class: int, seed: int, sample_rate: int = SAMPLE_RATE, num_samples: int = 8192
) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
    """Yields (name, label, audio float32 [num_samples]), `hits_per_class` of each class, classes in turn.

    A hit depends on (seed, label, number) alone: asking for more appends hits and changes none.
    """
    _check_at_least("hits_per_class", hits_per_class, 1)
    _check_at_least("seed", seed, 0)
    for number in range(hits_per_class):
        for label in CLASSES:
            rng = np.random.default_rng([seed, zlib.crc32(label.encode()), number])
            yield f"{label}_{number:04d}", label, synthesize(label, rng, sample_rate, num_samples)


def write_folder(folder: str | Path, hits_per_class: int = 200, seed: int = 0) -> int:
    """Writes FOLDER/<label>/<name>.wav (mono, 16 kHz, 16 bit), overwriting files; returns the number of files."""
    import torch

    from audio_diffusion.data.audio.reading import write_audio

    count = 0
    for name, label, audio in hits(hits_per_class, seed):
        path = Path(folder) / label / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_audio(path, torch.from_numpy(audio)[None], SAMPLE_RATE)
        count += 1
    return count


def _kick(time: Array, sample_rate: int, rng: np.random.Generator) -> Array:
    body = _swept_sine(time, rng.uniform(45, 65), rng.uniform(150, 250), rng.uniform(0.015, 0.035))
    click = _band(_noise(time, rng), sample_rate, rng.uniform(1500, 3000), q=0.7)
    body *= _decay(time, rng.uniform(0.06, 0.12))
    return body + rng.uniform(0.05, 0.25) * click * _decay(time, 0.002)


def _tom(time: Array, sample_rate: int, rng: np.random.Generator) -> Array:
    base, decay_s = rng.uniform(90, 220), rng.uniform(0.09, 0.16)
    sweep, sweep_s = rng.uniform(1.15, 1.4), rng.uniform(0.03, 0.06)
    body = _swept_sine(time, base, sweep * base, sweep_s) * _decay(time, decay_s)
    mode = 1.59 * base  # the second mode of a round membrane
    upper = _swept_sine(time, mode, sweep * mode, sweep_s) * _decay(time, 0.4 * decay_s)
    stick = _band(_noise(time, rng), sample_rate, rng.uniform(600, 1200), q=0.7) * _decay(time, 0.004)
    return body + rng.uniform(0.1, 0.3) * upper + rng.uniform(0.03, 0.1) * stick


def _snare(time: Array, sample_rate: int, rng: np.random.Generator) -> Array:
    pitch = rng.uniform(170, 240)
    tone = _swept_sine(time, pitch, 1.3 * pitch, 0.01)
    tone += 0.5 * _swept_sine(time, 1.59 * pitch, 2 * pitch, 0.01)
    wires = _band(_noise(time, rng), sample_rate, rng.uniform(2500, 4500), q=rng.uniform(0.3, 0.6))
    tone *= _decay(time, rng.uniform(0.03, 0.06))
    return tone + rng.uniform(0.25, 0.6) * wires * _decay(time, rng.uniform(0.05, 0.1))


def _hat(time: Array, sample_rate: int, rng: np.random.Generator) -> Array:
    closed = rng.uniform() < 0.6
    decay_s = rng.uniform(0.012, 0.03) if closed else rng.uniform(0.06, 0.11)
    ring = sum(_swept_sine(time, pitch, pitch, 1.0) for pitch in rng.uniform(4500, 7600, size=5))
    metal = _noise(time, rng) + rng.uniform(0.1, 0.4) * ring
    return _high_pass(metal, sample_rate, rng.uniform(4200, 5800)) * _decay(time, decay_s)


def _clap(time: Array, sample_rate: int, rng: np.random.Generator) -> Array:
    bursts, gap_s = int(rng.integers(3, 5)), rng.uniform(0.008, 0.012)
    tail_start = (bursts - 1) * gap_s
    envelope = rng.uniform(0.3, 0.55) * _decay(time - tail_start, rng.uniform(0.03, 0.07))
    for burst in range(bursts):
        envelope += rng.uniform(0.8, 1.0) * _decay(time - burst * gap_s, 0.004)
    return envelope * _band(_noise(time, rng), sample_rate, rng.uniform(1000, 2500), q=rng.uniform(1.2, 2.0))


_VOICES = {"clap": _clap, "hat": _hat, "kick": _kick, "snare": _snare, "tom": _tom}


def _swept_sine(time: Array, base: float, start: float, sweep_s: float) -> Array:
    """Sine [T] whose frequency falls from `start` to `base` with time constant `sweep_s`; phase 0 at 0."""
    cycles = base * time + (start - base) * sweep_s * (1 - np.exp(-np.maximum(time, 0) / sweep_s))
    return np.sin(2 * np.pi * cycles)


def _decay(time: Array, decay_s: float) -> Array:
    """Envelope [T]: 0 before time 0, then exp(-time / decay_s) behind an attack short of a millisecond."""
    time = np.maximum(time, 0)
    envelope: Array = (1 - np.exp(-time / ATTACK_S)) * np.exp(-time / decay_s)
    return envelope


def _noise(time: Array, rng: np.random.Generator) -> Array:
    return rng.standard_normal(len(time))


def _band(signal: Array, sample_rate: int, center: float, q: float) -> Array:
    """Second-order band-pass (RLC magnitude, zero phase, circular), scaled to rms 1; [T] -> [T]."""
    freq = _frequencies(signal, sample_rate)
    return _filter(signal, 1 / np.sqrt(1 + (q * (freq / center - center / freq)) ** 2))


def _high_pass(signal: Array, sample_rate: int, cutoff: float) -> Array:
    """Sixth-order Butterworth magnitude, zero phase, circular, scaled to rms 1; [T] -> [T]."""
    return _filter(signal, 1 / np.sqrt(1 + (cutoff / _frequencies(signal, sample_rate)) ** 12))


def _frequencies(signal: Array, sample_rate: int) -> Array:
    freq: Array = np.fft.rfftfreq(len(signal), 1 / sample_rate).clip(1.0)
    return freq


def _filter(signal: Array, gain: Array) -> Array:
    filtered = np.fft.irfft(np.fft.rfft(signal) * gain, n=len(signal))
    scaled: Array = filtered / np.sqrt(np.mean(filtered**2))
    return scaled


def _fade_out(num_samples: int) -> Array:
    """1, then a half cosine down to 0 over the last third; [num_samples]."""
    gain: Array = 0.5 + 0.5 * np.cos(np.pi * np.linspace(-2, 1, num_samples).clip(0))
    return gain


def _check_at_least(name: str, value: int, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}; got {value!r}")


USAGE = "usage: python -m audio_diffusion.packing.datasets.drums FOLDER [hits_per_class]"


def main(arguments: list[str]) -> None:
    if set(arguments) & {"-h", "--help"}:
        print(f"{USAGE}\nWrites FOLDER/<class>/<name>.wav: 200 synthetic drum hits of each class, or hits_per_class.")
        return
    if unknown := [argument for argument in arguments if argument.startswith("-")]:
        sys.exit(f"{USAGE}\nerror: {unknown[0]}: there is no such option")
    if len(arguments) not in (1, 2) or not arguments[0] or not all(a.isdecimal() for a in arguments[1:]):
        sys.exit(USAGE)
    count = write_folder(arguments[0], *map(int, arguments[1:]))
    print(f"wrote {count} hits ({len(CLASSES)} classes) to {arguments[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
