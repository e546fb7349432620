"""Where a file is clipped is looked for in the file as it is, whatever its rate."""

from pathlib import Path

import pytest
import soundfile as sf
import torch

from audio_diffusion.cli.tasks.declip import find_clipped
from audio_diffusion.data.audio.recording import probe, read_file


def write(path: Path, sample_rate: int, level: float) -> torch.Tensor:
    """Noise of a low band, clipped at a level: which samples were."""
    noise = torch.randn(1, sample_rate // 2, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool1d(noise[None], 9, 1, 4)[0]
    clip = smooth / smooth.abs().max()
    sf.write(path, clip.clamp(-level, level)[0].numpy(), sample_rate, subtype="PCM_16")
    return clip.abs() >= level


@pytest.mark.parametrize("sample_rate", [8000, 16000, 22050, 44100, 48000])
def test_clipped_samples_are_found_at_any_rate(sample_rate: int, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    was = write(path, sample_rate, 0.3)
    clip = read_file(path, 16000, 1)
    found, note = find_clipped(path, probe(path), clip, 16000, None)
    assert found.shape == clip.shape
    share = was.float().mean().item()
    assert 0 <= int(note.split()[0]) - int(was.sum()) < 5  # those within a 16-bit step of the level as well
    assert "are at the clip level 0.3" in note
    assert share <= found.float().mean().item() + 0.01
    seconds = was.nonzero()[:, 1] / sample_rate
    assert found[0, (seconds * 16000).round().long().clamp(max=clip.shape[1] - 1)].all()
    if sample_rate == 16000:
        assert (found ^ was).sum() < 5


def test_a_file_that_is_not_clipped_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write(path, 16000, 1.0)
    clip = read_file(path, 8000, 1)
    with pytest.raises(ValueError, match="it is not clipped: 1 of 8000 samples are at its peak of"):
        find_clipped(path, probe(path), clip, 8000, None)
    with pytest.raises(ValueError, match=r"none of its samples is at level=1.5 or above; its peak is 1.0000"):
        find_clipped(path, probe(path), clip, 8000, 1.5)
    assert "are at the clip level 0.5000 or above" in find_clipped(path, probe(path), clip, 8000, 0.5)[1]
