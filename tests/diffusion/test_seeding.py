"""Keyed randomness: the same everywhere, different for everything, and nothing global."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import audio_diffusion
from audio_diffusion.diffusion.seeding import SeededNoise, generator_for, seed_of

KEYS: list[tuple[int | str, ...]] = [(), (0,), (0, "crop", 3, "a/ü.wav"), (-5, "noise", 2**70), ("x" * 1000,)]


@pytest.mark.slow
def test_the_same_in_every_process() -> None:
    """A resumed run is another process, with another ``PYTHONHASHSEED``."""
    code = (
        "from audio_diffusion.diffusion.seeding import *\n"
        f"print([seed_of(*key) for key in {KEYS!r}])\n"
        "print(SeededNoise([1, 2], (3,))().tolist(), torch.rand(2, generator=generator_for(5, 'a')).tolist())"
    )
    source = str(Path(audio_diffusion.__file__).parents[2])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": source},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("0", "12345")
    ]
    answers = [process.communicate(timeout=120)[0] for process in started]
    here = f"{[seed_of(*key) for key in KEYS]}\n"
    here += f"{SeededNoise([1, 2], (3,))().tolist()} {torch.rand(2, generator=generator_for(5, 'a')).tolist()}\n"
    assert answers == [here, here]


def test_the_hash_is_fixed() -> None:
    """Training resumed under a newer version must go on with the same draws."""
    digest = hashlib.blake2b(b"(0, 'crop', 3, 'a')", digest_size=8).digest()
    assert seed_of(0, "crop", 3, "a") == int.from_bytes(digest, "little") // 2


def test_seeds_are_63_bits_spread_evenly() -> None:
    seeds = [seed_of(0, "train", i) for i in range(20_000)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):
        assert abs(sum(seed >> bit & 1 for seed in seeds) / len(seeds) - 0.5) < 5 * 0.5 / len(seeds) ** 0.5


@pytest.mark.parametrize(
    ("one", "other"),
    [((1,), ("1",)), ((1, 2), (12,)), ((1, 2), (2, 1)), (("ab", "c"), ("a", "bc")), (("a", ""), ("a",)), ((0,), ())],
)
def test_parts_are_told_apart(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> None:
    assert seed_of(*one) != seed_of(*other)


def test_generator_is_keyed_and_its_own() -> None:
    before = torch.get_rng_state()
    first, second = generator_for(0, "t", 1), generator_for(0, "t", 1)
    drawn = torch.rand(100, generator=first)
    assert torch.equal(drawn, torch.rand(100, generator=second))  # two generators, not one shared
    assert not torch.equal(drawn, torch.rand(100, generator=generator_for(0, "t", 2)))
    assert torch.equal(torch.get_rng_state(), before)


def test_neighbouring_keys_draw_independently() -> None:
    drawn = torch.stack([torch.randn(2000, generator=generator_for(0, "noise", i)) for i in range(40)])
    correlation = torch.corrcoef(drawn) - torch.eye(40)
    assert correlation.abs().max() < 5 / 2000**0.5
    assert abs(drawn.mean().item()) < 5 / drawn.numel() ** 0.5
    assert drawn.std().item() == pytest.approx(1, abs=0.02)


def test_noise_of_a_sample_is_the_same_in_any_batch() -> None:
    together, shuffled = SeededNoise([5, 6, 7], (2, 30)), SeededNoise([7, 9, 5], (2, 30))
    for _ in range(3):
        one, other = together(), shuffled()
        assert one.shape == (3, 2, 30)
        assert one.dtype == torch.float32
        assert torch.equal(one[[0, 2]], other[[2, 0]])


def test_noise_is_fresh_standard_normal() -> None:
    noise = SeededNoise(range(20), (1, 1000))
    first, second = noise(), noise()
    drawn = torch.cat([first, second]).flatten(1)
    assert (torch.corrcoef(drawn) - torch.eye(40)).abs().max() < 5 / 1000**0.5
    assert abs(drawn.mean().item()) < 5 / 40_000**0.5
    assert drawn.std().item() == pytest.approx(1, abs=0.02)
    assert drawn.pow(4).mean().item() == pytest.approx(3, abs=0.3)  # the kurtosis of a normal


def test_noise_leaves_global_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = SeededNoise([1], (5,))()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(one, SeededNoise([1], (5,))())
