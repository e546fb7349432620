"""A crop is what would be cut out of the whole file, and what cannot be used says why."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import soundfile as sf
import torch
import torchaudio
from numpy.typing import NDArray
from torch import Tensor

from audio_diffusion.data.audio import decoders
from audio_diffusion.data.audio import reading as audio
from audio_diffusion.data.audio import reading as audio_module
from audio_diffusion.data.audio.reading import UnusableAudio, check, map_channels, write_audio

Encode = Callable[..., bytes]
Noise = Callable[..., NDArray[np.float32]]

LOSSLESS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("AIFF", "PCM_16")]
LOSSY = [("MP3", "MPEG_LAYER_III", 44_100), ("OGG", "VORBIS", 44_100), ("OGG", "OPUS", 48_000)]
RATES = [(44_100, 16_000), (48_000, 16_000), (8_000, 16_000), (22_050, 44_100), (32_000, 44_100)]


def read_crop(
    file: str | Path | BinaryIO | memoryview, sample_rate: int, channels: int, num_samples: int, where: float = 0.0
) -> tuple[Tensor, int]:
    """The crop, written over what was there before, and its valid samples; memory and a file give the same."""
    crop = torch.full((channels, num_samples), 7.0)
    read = audio_module.read_crop(file, crop, sample_rate, where)
    if isinstance(file, io.BytesIO):
        again = torch.full((channels, num_samples), 7.0)
        assert audio_module.read_crop(memoryview(file.getvalue()), again, sample_rate, where) == read
        assert torch.equal(crop, again)
    return crop, read.num_valid


def place_of(crop: Tensor, whole: Tensor, atol: float = 0.0) -> int:
    """Where a crop [C, T] lies in the whole [C, N]; fails where it does not."""
    starts = (whole[0, : whole.shape[1] - crop.shape[1] + 1] - crop[0, 0]).abs() <= atol
    for start in starts.nonzero().flatten().tolist():
        if (whole[:, start : start + crop.shape[1]] - crop).abs().max() <= atol:
            return start
    pytest.fail("the crop is no slice of the whole file")


@pytest.mark.parametrize(("format", "subtype"), LOSSLESS)
def test_without_resampling_a_crop_is_a_slice_bit_for_bit(
    encode: Encode, noise: Noise, format: str, subtype: str
) -> None:
    data = encode(noise(30_000, 2), 44_100, format, subtype)
    whole = torch.from_numpy(sf.read(io.BytesIO(data), dtype="float32")[0].T)
    places = []
    for where in (0.0, 0.1, 0.5, 0.9, 1 - 2**-53):
        crop, num_valid = read_crop(io.BytesIO(data), 44_100, 2, 2_000, where)
        assert crop.shape == (2, 2_000)
        assert crop.dtype == torch.float32
        assert num_valid == 2_000
        places.append(place_of(crop, whole))
    assert places == [0, 2_800, 14_000, 25_200, 28_000]


def test_every_place_is_reached_equally_often(encode: Encode, noise: Noise) -> None:
    data = encode(noise(10), 8_000, subtype="FLOAT")
    whole = torch.from_numpy(sf.read(io.BytesIO(data), dtype="float32", always_2d=True)[0].T)
    wheres = (np.arange(70) + 0.5) / 70
    places = [place_of(read_crop(io.BytesIO(data), 8_000, 1, 4, where)[0], whole) for where in wheres]
    assert np.bincount(places).tolist() == [10] * 7


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("rate_in", "rate_out"), RATES)
def test_with_resampling_a_crop_is_a_slice_of_the_resampled_file(
    encode: Encode, noise: Noise, rate_in: int, rate_out: int, channels: int
) -> None:
    frames, num_samples = 2 * rate_in + 17, rate_out // 10 + 3
    data = encode(noise(frames, channels), rate_in, "WAV", "FLOAT")
    samples = torch.from_numpy(sf.read(io.BytesIO(data), dtype="float32", always_2d=True)[0].T)
    whole = torchaudio.functional.resample(samples, rate_in, rate_out)
    wheres = (0.0, 0.003, 0.3, 0.77, 0.997, 1.0)
    places = []
    for where in wheres:
        crop, num_valid = read_crop(io.BytesIO(data), rate_out, channels, num_samples, where)
        assert num_valid == num_samples
        places.append(place_of(crop, whole, atol=1e-5))
    last = whole.shape[1] - num_samples
    assert places[0] == 0
    assert last - rate_out // 50 < places[-1] <= last  # the last place, to the length of a resampling period
    assert np.allclose(places, np.array(wheres) * last, atol=rate_out / 50)


@pytest.mark.parametrize(("rate_in", "rate_out"), [*RATES, (16_000, 16_000)])
def test_short_files_are_padded_and_the_number_of_their_own_samples_is_told(
    encode: Encode, noise: Noise, rate_in: int, rate_out: int
) -> None:
    data = encode(noise(1_000), rate_in, "WAV", "FLOAT")
    samples = torch.from_numpy(sf.read(io.BytesIO(data), dtype="float32", always_2d=True)[0].T)
    whole = torchaudio.functional.resample(samples, rate_in, rate_out)
    own = whole.shape[1]
    for where in (0.0, 1.0):
        crop, num_valid = read_crop(io.BytesIO(data), rate_out, 1, own + 500, where)
        assert num_valid == own
        assert torch.allclose(crop[:, :own], whole, atol=1e-5)
        assert crop.shape == (1, own + 500)
        assert not crop[:, own:].any()
    exact, num_valid = read_crop(io.BytesIO(data), rate_out, 1, own, 1.0)
    assert num_valid == own
    assert torch.allclose(exact, whole, atol=1e-5)


def test_a_single_sample_is_a_file() -> None:
    file = io.BytesIO()
    sf.write(file, np.array([0.25]), 16_000, format="WAV")
    file.seek(0)
    crop, num_valid = read_crop(file, 16_000, 1, 4, 0.9)
    assert crop.tolist() == [[0.25, 0, 0, 0]]
    assert num_valid == 1


@pytest.mark.parametrize(("format", "subtype", "sample_rate"), LOSSY)
def test_lossy_formats_are_read_and_cropped(
    encode: Encode, tmp_path: Path, format: str, subtype: str, sample_rate: int
) -> None:
    time = np.arange(sample_rate) / sample_rate
    sweep = 0.5 * np.sin(2 * np.pi * (300 * time + 1000 * time**2))
    data = encode(sweep, sample_rate, format, subtype)
    (tmp_path / "sweep").write_bytes(data)
    info = check(tmp_path / "sweep")
    assert (info.frames, info.sample_rate, info.channels, info.duration_s) == (sample_rate, sample_rate, 1, 1.0)
    assert info.format == f"{format}/{subtype}"
    whole = torch.from_numpy(sf.read(io.BytesIO(data), dtype="float32", always_2d=True)[0].T)
    assert np.corrcoef(whole[0].numpy(), sweep)[0, 1] > 0.98
    for where in (0.0, 0.4, 1.0):
        crop, num_valid = read_crop(io.BytesIO(data), sample_rate, 1, 5_000, where)
        start = round(where * (sample_rate - 5_000))
        assert num_valid == 5_000
        assert torch.allclose(crop, whole[:, start : start + 5_000], atol=1e-6)


def test_only_the_crop_is_decoded(encode: Encode, noise: Noise) -> None:
    class Counting(io.BytesIO):
        num_read = 0

        def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
            got = super().readinto(buffer)
            Counting.num_read += got
            return got

    file = Counting(encode(noise(60 * 44_100), 44_100))  # 5.3 MB
    read_crop(file, 16_000, 1, 16_000, 0.5)
    assert Counting.num_read < 2 * 44_100 * 1.2


@pytest.mark.parametrize(
    ("format", "subtype", "num_samples"),
    [("FLAC", "PCM_16", 4_096), ("FLAC", "PCM_16", 65_536), ("FLAC", "PCM_24", 65_536), ("WAV", "FLOAT", 4_096)],
)
def test_a_crop_of_memory_reads_at_most_twice_its_encoded_bytes_and_64_kib(
    monkeypatch: pytest.MonkeyPatch, encode: Encode, noise: Noise, format: str, subtype: str, num_samples: int
) -> None:
    counts: list[int] = []
    readinto = audio.Window.readinto

    def counted(window: audio.Window, buffer: memoryview) -> int:
        counts.append(readinto(window, buffer))
        return counts[-1]

    monkeypatch.setattr(audio.Window, "readinto", counted)
    frames = 40 * 44_100
    data = memoryview(encode(noise(frames, 2), 44_100, format, subtype))  # 6 to 14 MB
    for where in np.linspace(0, 1, 16):
        counts.clear()
        read_crop(data, 44_100, 2, num_samples, where)
        encoded = len(data) * num_samples / frames
        assert encoded / 2 < sum(counts) <= 2 * encoded + 65_536


def test_sixteen_bit_wav_in_memory_is_not_read_at_all_but_used_where_it_lies(
    monkeypatch: pytest.MonkeyPatch, encode: Encode, noise: Noise
) -> None:
    monkeypatch.setattr(decoders, "Window", None)
    data = memoryview(encode(noise(9_000, 2), 44_100))
    crop, _ = read_crop(data, 44_100, 2, 1_000, 0.5)
    opened = decoders.open_plain(data)
    samples = opened.samples(4_000, 1_000)
    assert np.shares_memory(samples, np.frombuffer(data, np.uint8))
    assert np.array_equal(samples.T / np.float32(32768), crop.numpy())


def test_channels() -> None:
    mono, stereo, eight = torch.randn(1, 9), torch.randn(2, 9), torch.randn(8, 9)
    assert map_channels(mono, 1) is mono
    assert map_channels(eight, 8) is eight
    assert torch.equal(map_channels(stereo, 1), (stereo[:1] + stereo[1:]) / 2)
    assert torch.allclose(map_channels(eight, 1)[0], eight.sum(0) / 8)
    assert torch.equal(map_channels(mono, 2), torch.cat([mono, mono]))
    for audio_in, channels in ((eight, 2), (stereo, 8)):
        with pytest.raises(UnusableAudio, match=rf"has {len(audio_in)} channels, .* cannot be converted to {channels}"):
            map_channels(audio_in, channels)


def test_channels_of_a_file(encode: Encode, noise: Noise) -> None:
    samples = noise(100, 8)
    data = encode(samples, 16_000, "WAV", "FLOAT")
    crop, _ = read_crop(io.BytesIO(data), 16_000, 1, 100)
    assert np.allclose(crop.numpy()[0], samples.mean(1), atol=1e-7)
    with pytest.raises(UnusableAudio, match="has 8 channels, which cannot be converted to 2"):
        read_crop(io.BytesIO(data), 16_000, 2, 100)
    mono = encode(samples[:, :1], 16_000, "WAV", "FLOAT")
    crop, _ = read_crop(io.BytesIO(mono), 16_000, 2, 100)
    assert np.array_equal(crop.numpy(), np.stack([samples[:, 0]] * 2))


def changed(data: bytes, at: int, by: bytes) -> bytes:
    return data[:at] + by + data[at + len(by) :]


def with_frames(flac: bytes, frames: int) -> bytes:
    """A FLAC file whose header tells of another number of frames."""
    return changed(changed(flac, 21, bytes([flac[21] & 0xF0])), 22, struct.pack(">I", frames))


@pytest.fixture
def broken(encode: Encode, noise: Noise) -> dict[str, bytes]:
    samples = noise(40_000)
    wav, flac = encode(samples, 16_000), encode(samples, 16_000, "FLAC")
    nan, infinite, integers = samples.copy(), samples.copy(), samples * 32768
    nan[20_000], infinite[20_000] = np.nan, -np.inf
    middle = len(flac) // 2
    return {
        "nan": encode(nan, 16_000, "WAV", "FLOAT"),
        "infinite": encode(infinite, 16_000, "WAV", "FLOAT"),
        "overflow": encode(np.full(40_000, 1e300), 16_000, "WAV", "DOUBLE"),
        "integers": encode(integers, 16_000, "WAV", "FLOAT"),
        "negative": encode(-np.abs(integers), 16_000, "WAV", "FLOAT"),
        "truncated flac": flac[:middle],
        "flipped flac": changed(flac, middle, bytes([flac[middle] ^ 16])),
        "too many frames": with_frames(flac, 80_000),
        "empty": b"",
        "text": b"# not audio\n" * 1_000,
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "no samples": encode(samples[:0], 16_000),
        "rate 1": changed(wav, 24, struct.pack("<I", 1)),
        "rate 0": changed(wav, 24, struct.pack("<I", 0)),
        "rate 1 MHz": changed(wav, 24, struct.pack("<I", 1_000_000)),
        "0 channels": changed(wav, 22, struct.pack("<H", 0)),
        "2000 channels": changed(wav, 22, struct.pack("<H", 2000)),
    }


REASONS = {
    "nan": "NaN or infinite",
    "infinite": "NaN or infinite",
    "overflow": "NaN or infinite",
    "integers": r"samples of 1\.6\de\+04, where full scale is 1",
    "negative": r"samples of 1\.6\de\+04, where full scale is 1",
    "truncated flac": "broken",
    "flipped flac": "broken",
    "too many frames": r"ends after 40000 frames, though its header says 80000|broken near 2\.5 s",
    "empty": r"cannot be decoded: the file is empty \(0 bytes\)",
    "text": "cannot be decoded: Format not recognised",
    "html": "cannot be decoded: Format not recognised",
    "no samples": "no samples",
    "rate 1": "sample rate 1 Hz is outside 1000 to 768000 Hz",
    "rate 0": "cannot be decoded",
    "rate 1 MHz": "sample rate 1000000 Hz is outside",
    "0 channels": "cannot be decoded",
    "2000 channels": "cannot be decoded",
}


@pytest.mark.parametrize("fault", REASONS)
def test_broken_files_are_refused_with_the_reason(broken: dict[str, bytes], fault: str, tmp_path: Path) -> None:
    (tmp_path / "file.flac").write_bytes(broken[fault])
    with pytest.raises(UnusableAudio, match=REASONS[fault]):
        check(tmp_path / "file.flac")
    with pytest.raises(UnusableAudio, match=REASONS[fault]):
        read_crop(io.BytesIO(broken[fault]), 16_000, 1, 40_000, 1.0)


def test_a_crop_past_the_real_end_of_a_file_is_refused(broken: dict[str, bytes]) -> None:
    with pytest.raises(UnusableAudio, match=r"broken near 4\.9 s"):
        read_crop(io.BytesIO(broken["too many frames"]), 16_000, 1, 1_000, 0.99)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0xFFFFFFF0])
def test_a_wav_that_claims_4_gb_has_its_actual_length(encode: Encode, noise: Noise, tmp_path: Path, size: int) -> None:
    samples = noise(1_000)
    wav = encode(samples, 16_000)
    (tmp_path / "big.wav").write_bytes(changed(wav, wav.index(b"data") + 4, struct.pack("<I", size)))
    assert check(tmp_path / "big.wav").frames == 1_000
    crop, num_valid = read_crop(tmp_path / "big.wav", 16_000, 1, 2_000, 0.5)
    assert num_valid == 1_000
    assert np.allclose(crop[0, :1_000].numpy(), samples[:, 0], atol=2**-15)


def test_loud_float_files_are_used(encode: Encode) -> None:
    data = encode(np.linspace(-4, 4, 100), 16_000, "WAV", "FLOAT")
    assert read_crop(io.BytesIO(data), 16_000, 1, 100)[0].max() == 4


def test_a_rate_that_would_take_gigabytes_to_resample_is_refused(encode: Encode, noise: Noise) -> None:
    data = encode(noise(1_000), 44_101)
    with pytest.raises(UnusableAudio, match="44101 Hz is in no short ratio to 16000 Hz"):
        read_crop(io.BytesIO(data), 16_000, 1, 100)
    assert read_crop(io.BytesIO(data), 44_101, 1, 100)[1] == 100  # as it is, it can be used


def test_missing_files_are_unusable(tmp_path: Path) -> None:
    with pytest.raises(UnusableAudio, match=r"^there is no such file$"):
        check(tmp_path / "none.wav")


def test_a_header_of_rate_0_is_named_in_plain_words(tmp_path: Path, encode: Encode, noise: Noise) -> None:
    data = bytearray(encode(noise(100), 16_000))
    data[24:28] = bytes(4)
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(UnusableAudio, match="cannot be decoded: its header gives no usable sample rate"):
        check(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("name", "subtype", "atol"), [("a.wav", "PCM_16", 2**-15), ("a.wav", "FLOAT", 0), ("a.flac", "PCM_24", 2**-23)]
)
def test_what_is_written_is_read_back(noise: Noise, tmp_path: Path, name: str, subtype: str, atol: float) -> None:
    samples = torch.from_numpy(noise(500, 2).T.copy()).requires_grad_()
    write_audio(tmp_path / name, samples, 22_050, subtype)
    info = check(tmp_path / name)
    assert (info.frames, info.sample_rate, info.channels) == (500, 22_050, 2)
    assert info.format.endswith(subtype)
    crop, num_valid = read_crop(tmp_path / name, 22_050, 2, 500)
    assert num_valid == 500
    assert (crop - samples).abs().max() <= atol


def test_integers_are_the_default_and_clip_what_is_too_loud(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", torch.tensor([[-3.0, -0.5, 0.5, 3.0]]), 16_000)
    assert check(tmp_path / "a.wav").format == "WAV/PCM_16"
    crop, _ = read_crop(tmp_path / "a.wav", 16_000, 1, 4)
    assert torch.allclose(crop, torch.tensor([[-1, -0.5, 0.5, 1]]), atol=2**-14)


def test_check_takes_bounded_memory(
    monkeypatch: pytest.MonkeyPatch, encode: Encode, noise: Noise, tmp_path: Path
) -> None:
    (tmp_path / "long.wav").write_bytes(encode(noise(600_000), 16_000))
    blocks: list[int] = []
    monkeypatch.setattr(audio, "check_samples", lambda block, *_: blocks.append(len(block)))
    assert check(tmp_path / "long.wav").frames == sum(blocks) == 600_000
    assert max(blocks) <= 1 << 18


@pytest.mark.parametrize("num_frames", [144_123, 132_423, 300_000])
def test_the_end_of_a_vorbis_file_is_read_where_it_is(encode: Encode, noise: Noise, num_frames: int) -> None:
    data = encode(noise(num_frames), 48_000, "OGG")
    whole, _ = read_crop(io.BytesIO(data), 48_000, 1, num_frames)
    for where in (0.5, 0.8, 0.9, 0.95, 0.99, 1.0):
        crop, _ = read_crop(io.BytesIO(data), 48_000, 1, 997, where)
        start = min(int(where * (num_frames - 997 + 1)), num_frames - 997)
        assert torch.equal(crop, whole[:, start : start + 997])


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("a dog barks, twice", "a_dog_barks_twice"),
        ("../../etc", "etc"),
        ("", "sample"),
        ("犬 x/y", "犬_x_y"),
        ("?", "sample"),
    ],
)
def test_words_make_a_name_for_a_file_that_leads_nowhere(words: str, name: str) -> None:
    assert audio_module.file_name(words) == name
    assert len(audio_module.file_name(100 * words)) <= 40


def test_names_of_files_are_ascii_where_the_system_takes_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from audio_diffusion.data.audio import reading

    assert reading.file_name("Säge, Wind") == "Säge_Wind"
    monkeypatch.setattr(reading.os, "fsencode", lambda name: name.encode("ascii"))
    assert [reading.file_name(words) for words in ("Säge, Wind", "雨", "kick")] == ["S_ge_Wind", "sample", "kick"]
