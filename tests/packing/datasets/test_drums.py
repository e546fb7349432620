"""The synthetic drum hits: decided by (seed, label, number), at the promised levels, and like drums."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audio_diffusion.packing.datasets import drums

HITS_PER_CLASS = 20


@pytest.fixture(scope="module")
def by_label() -> dict[str, np.ndarray]:
    """Class -> float32 [20, 8192]."""
    found: dict[str, list[np.ndarray]] = {label: [] for label in drums.CLASSES}
    for _, label, audio in drums.hits(HITS_PER_CLASS, seed=3):
        found[label].append(audio)
    return {label: np.stack(clips) for label, clips in found.items()}


def spectral_centroids(clips: np.ndarray) -> np.ndarray:
    """Power-weighted mean frequency in Hz of [N, T]: [N]."""
    power = np.abs(np.fft.rfft(clips)) ** 2
    return power @ np.fft.rfftfreq(clips.shape[1], 1 / 16_000) / power.sum(axis=1)


def loudest_frequencies(clips: np.ndarray) -> np.ndarray:
    """Frequency in Hz of the largest bin of [N, T]: [N]."""
    power = np.abs(np.fft.rfft(clips)) ** 2
    return np.fft.rfftfreq(clips.shape[1], 1 / 16_000)[power.argmax(axis=1)]


def test_the_same_seed_gives_the_same_hits_and_another_seed_others() -> None:
    first, again, other = (list(drums.hits(2, seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(a[2], b[2]) for a, b in zip(first, again, strict=True))
    assert not any(np.allclose(a[2], b[2], atol=1e-2) for a, b in zip(first, other, strict=True))


def test_asking_for_more_hits_only_appends() -> None:
    few, many = list(drums.hits(2, seed=0)), list(drums.hits(5, seed=0))
    assert [name for name, _, _ in few] == [name for name, _, _ in many[: len(few)]]
    assert all(np.array_equal(a[2], b[2]) for a, b in zip(few, many, strict=False))


def test_names_are_unique_and_carry_label_and_number() -> None:
    listed = [(name, label) for name, label, _ in drums.hits(3, seed=0)]
    assert len({name for name, _ in listed}) == 15
    assert listed[:2] == [("clap_0000", "clap"), ("hat_0000", "hat")]
    assert all(name.startswith(f"{label}_") for name, label in listed)


@pytest.mark.parametrize("label", drums.CLASSES)
def test_level_onset_and_end(by_label: dict[str, np.ndarray], label: str) -> None:
    clips = by_label[label]
    peak = np.abs(clips).max(axis=1)
    onset = (np.abs(clips) > 0.02).argmax(axis=1)
    end_db = 20 * np.log10(np.sqrt(np.mean(clips[:, -160:] ** 2, axis=1)))
    assert clips.dtype == np.float32
    assert clips.shape == (HITS_PER_CLASS, 8192)
    assert np.isfinite(clips).all()
    assert peak.min() > 0.49
    assert peak.max() < 0.95
    assert peak.std() > 0.05  # levels differ
    assert onset.max() < 150
    assert np.all((end_db > -63) & (end_db < -37))  # the noise floor is all that is left


@pytest.mark.parametrize("label", drums.CLASSES)
def test_hits_of_a_class_differ(by_label: dict[str, np.ndarray], label: str) -> None:
    clips = by_label[label] / np.linalg.norm(by_label[label], axis=1, keepdims=True)
    similarity = clips @ clips.T - np.eye(len(clips))
    assert np.abs(similarity).max() < 0.99


def test_each_class_sounds_like_its_drum(by_label: dict[str, np.ndarray]) -> None:
    pitch = {label: np.median(loudest_frequencies(clips)) for label, clips in by_label.items()}
    centroid = {label: spectral_centroids(clips) for label, clips in by_label.items()}
    assert 40 < pitch["kick"] < 80
    assert 90 < pitch["tom"] < 260
    assert 165 < pitch["snare"] < 260
    assert 900 < pitch["clap"] < 3000
    assert centroid["hat"].min() > 5000
    assert centroid["kick"].max() < 200 < 500 < centroid["snare"].min()  # drum skins, then wires and noise


def count_bursts(hit: np.ndarray) -> int:
    """How often the level (rms of 4 ms) of the first 50 ms rises above a quarter of its largest."""
    level = np.sqrt(np.convolve(hit**2, np.ones(64) / 64, mode="same"))[:800]
    loud = np.concatenate([[0], level > 0.25 * level.max()])
    return int(np.sum(np.diff(loud) == 1))


def test_a_clap_is_several_bursts_and_a_snare_is_one(by_label: dict[str, np.ndarray]) -> None:
    assert np.median([count_bursts(clap) for clap in by_label["clap"]]) in (3, 4)
    assert np.median([count_bursts(snare) for snare in by_label["snare"]]) == 1


@pytest.mark.parametrize("sample_rate", [16_000, 44_100])
def test_other_rates_and_lengths(sample_rate: int) -> None:
    for name, _, audio in drums.hits(1, seed=0, sample_rate=sample_rate, num_samples=5001):
        assert audio.shape == (5001,), name
        assert np.isfinite(audio).all(), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": "cowbell"}, "label must be one of clap, hat, kick, snare, tom; got 'cowbell'"),
        ({"sample_rate": 8000}, "sample_rate must be a whole number of at least 16000; got 8000"),
        ({"num_samples": 100}, "num_samples must be a whole number of at least 1024; got 100"),
        ({"num_samples": 8192.0}, "num_samples must be a whole number"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drums.synthesize(**({"label": "kick", "rng": np.random.default_rng(0)} | arguments))


@pytest.mark.parametrize(("hits_per_class", "seed", "name"), [(0, 0, "hits_per_class"), (1, -1, "seed")])
def test_bad_counts_and_seeds_are_refused(hits_per_class: int, seed: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least"):
        next(drums.hits(hits_per_class, seed))


def test_the_command_writes_what_hits_yields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import soundfile

    for _ in range(2):  # the second run writes over the first
        drums.main([str(tmp_path), "2"])
    assert "wrote 10 hits" in capsys.readouterr().out
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.wav"))
    assert written == sorted(f"{label}/{label}_000{i}.wav" for label in drums.CLASSES for i in range(2))
    for name, label, audio in drums.hits(2, seed=0):
        path = tmp_path / label / f"{name}.wav"
        read, sample_rate = soundfile.read(path, dtype="float32")
        assert (sample_rate, soundfile.info(path).subtype) == (16_000, "PCM_16")
        np.testing.assert_allclose(read, audio, atol=1.01 / 2**15)


def test_help_is_printed_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["--help"], ["-h"], ["folder", "--help"]):
        drums.main(arguments)
        assert capsys.readouterr().out.startswith("usage: python -m audio_diffusion.packing.datasets.drums FOLDER")
    with pytest.raises(SystemExit, match="--hits=3: there is no such option"):
        drums.main(["folder", "--hits=3"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], [""], ["folder", "many"], ["a", "1", "2"]])
def test_a_wrong_command_line_shows_the_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="usage"):
        drums.main(arguments)
