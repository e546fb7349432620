"""The SC09 benchmark, run as a user would: real clips are themselves, noise is not."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from audio_diffusion.data.audio.reading import write_audio
from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.data.shards.shards import Shards
from audio_diffusion.data.stream import read_in_order


class Loudness(nn.Module):
    """A classifier of sorts: levels of four quarters."""

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        features = audio.flatten(1).unfold(1, 4000, 4000).square().mean(2).add(1e-6).log()
        return features, 5 * features


@pytest.fixture
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "sc09" / "run.py"
    spec = importlib.util.spec_from_file_location("sc09_run", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_real_clips_are_at_no_distance_and_noise_is_far(
    benchmark: ModuleType, drum_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.jit.script(Loudness()).save(str(tmp_path / "classifier.pt"))
    shards = Shards.open([f"{drum_shards}/train-*.tar"], RemoteStore(None))
    real = [audio for _, audio in read_in_order(shards, 16000, 1, 16000, [])]
    found = {}
    for name, clips in {"same": real, "noise": [0.1 * torch.randn(1, 16000) for _ in real]}.items():
        (tmp_path / name).mkdir()
        for i, clip in enumerate(clips):
            write_audio(tmp_path / name / f"{i:03d}.wav", clip, 16000, subtype="FLOAT")
        benchmark.main(
            [str(tmp_path / name), str(drum_shards), "--classifier", str(tmp_path / "classifier.pt"), "--device", "cpu"]
        )
        rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]}
        assert rows["real"][0] == rows["generated"][0] == str(len(real))
        found[name] = rows
    assert float(found["same"]["generated"][1]) == pytest.approx(0, abs=1e-3)
    assert found["same"]["generated"][2] == found["same"]["real"][2]
    assert float(found["noise"]["generated"][1]) > 10
    assert float(found["noise"]["generated"][2]) == pytest.approx(1, abs=0.01)  # all alike


def test_a_folder_without_audio_is_named(benchmark: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"generated: expected a folder of \.wav files, got"):
        next(benchmark.generated(tmp_path))
