"""Files that players play though their headers are wrong: all that is in them is read, once, and the rest is named."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from numpy.typing import NDArray

from audio_diffusion.data.audio.decoders import Decoder, open_plain
from audio_diffusion.data.audio.formats import ogg
from audio_diffusion.data.audio.reading import AudioInfo, UnusableAudio, check, read_crop
from audio_diffusion.data.audio.recording import Recording, probe

Encode = Callable[..., bytes]
Noise = Callable[..., NDArray[np.float32]]


def split_pages(data: bytes) -> list[bytes]:
    """The pages of an Ogg file."""
    found, at = [], 0
    while at < len(data):
        count = data[at + 26]
        size = 27 + count + sum(data[at + 27 : at + 27 + count])
        found.append(data[at : at + size])
        at += size
    return found


def as_page(body: bytes, flags: int, granule: int, number: int) -> bytes:
    """An Ogg page that holds one whole packet."""
    table = bytes([255] * (len(body) // 255) + [len(body) % 255])
    head = b"OggS" + struct.pack("<BBqIII", 0, flags, granule, 7, number, 0) + bytes([len(table)]) + table
    page = head + body
    return page[:22] + struct.pack("<I", ogg.checksum(page)) + page[26:]


def ogg_flac(flac: bytes) -> bytes:
    """A FLAC file in Ogg pages, as ``flac --ogg`` writes it."""
    at, blocks = 4, []
    while True:
        size = 4 + int.from_bytes(flac[at + 1 : at + 4], "big")
        blocks.append(flac[at : at + size])
        at += size
        if blocks[-1][0] & 0x80:
            break
    others = blocks[1:] or [b"\x84\0\0\x08" + bytes(8)]
    first = b"\x7fFLAC\x01\x00" + struct.pack(">H", len(others)) + b"fLaC" + bytes([0]) + blocks[0][1:]
    made = [as_page(first, 2, 0, 0), *(as_page(block, 0, 0, n) for n, block in enumerate(others, 1))]
    audio, size = flac[at:], 20_000
    chunks = [audio[i : i + size] for i in range(0, len(audio), size)]
    for number, chunk in enumerate(chunks, len(made)):
        made.append(as_page(chunk, 4 * (chunk is chunks[-1]), number, number))
    return b"".join(made)


def unknown_length(flac: bytes) -> bytes:
    """A FLAC file as a program writes it that cannot seek."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]


def without_xing(mp3: bytes) -> bytes:
    """An MP3 file without its first frame, which says how many follow."""
    assert b"Xing" in mp3[:64] or b"Info" in mp3[:64]
    return mp3[mp3.index(mp3[:2], 4) :]


def decoded(data: bytes) -> NDArray[np.float32]:
    """What libsndfile makes of a whole regular file, ``[n, C]``."""
    with Decoder(io.BytesIO(data)) as file:
        return np.concatenate([block.copy() for block in file.blocks()])


def read_all(data: bytes, tmp_path: Path) -> tuple[AudioInfo, NDArray[np.float32]]:
    """What is read of a file in one go, which is the same in pieces, as crops, and of a path."""
    info = check(memoryview(data), max_missing=1)
    blocks: list[NDArray[np.float32]] = []
    (tmp_path / "file").write_bytes(data)
    assert check(tmp_path / "file", lambda block: blocks.append(block.copy()), max_missing=1) == info
    assert probe(tmp_path / "file").frames == info.frames
    whole, recording = np.concatenate(blocks), Recording(tmp_path / "file", info)
    step = info.frames // 7 + 1
    pieces = [recording.read(at, step, info.sample_rate, info.channels) for at in range(0, info.frames, step)]
    recording.close()
    np.testing.assert_allclose(np.concatenate(pieces, axis=1).T, whole, atol=2e-6)
    crop = torch.empty(info.channels, 500)
    for where in np.linspace(0, 1, 9):
        read = read_crop(memoryview(data), crop, info.sample_rate, float(where), frames=info.frames)
        start = round(read.seconds_start * info.sample_rate)
        np.testing.assert_allclose(crop.numpy().T, whole[start : start + 500], atol=2e-6)
        assert read.num_valid == 500
        assert read.seconds_total == pytest.approx(info.duration_s)
    return info, whole


def test_the_checksum_is_that_of_the_pages_of_other_programs(encode: Encode, noise: Noise) -> None:
    for page in split_pages(encode(noise(20_000), 16_000, "OGG")):
        assert ogg.checksum(page[:22] + bytes(4) + page[26:]) == struct.unpack_from("<I", page, 22)[0]


@pytest.mark.parametrize("kind", ["unknown", "id3v1", "zeros", "ogg", "unknown in ogg", "joined"])
def test_flac_of_any_kind_is_read_to_its_end(encode: Encode, noise: Noise, tmp_path: Path, kind: str) -> None:
    samples = np.round(0.3 * noise(40_123, 2) * 32768).astype(np.float32) / 32768
    flac = encode(samples, 16_000, "FLAC")
    data = {
        "unknown": unknown_length(flac),
        "id3v1": flac + b"TAG" + bytes(125),
        "zeros": unknown_length(flac) + bytes(5000),
        "ogg": ogg_flac(flac),
        "unknown in ogg": ogg_flac(unknown_length(flac)),
        "joined": flac + flac,
    }[kind]
    info, whole = read_all(data, tmp_path)
    np.testing.assert_array_equal(whole, np.concatenate([samples] * (1 + (kind == "joined"))))
    assert (info.missing_s, info.missing) == (0, "")
    crop = torch.empty(2, 500)
    for where in np.linspace(0, 1, 20):  # where no index tells the length
        assert read_crop(memoryview(data), crop, 16_000, float(where)).num_valid == 500


@pytest.mark.slow
@pytest.mark.parametrize(("subtype", "sample_rate"), [("VORBIS", 44_100), ("OPUS", 48_000)])
@pytest.mark.parametrize("fault", ["cut out", "damaged"])
def test_ogg_without_one_of_its_pages_is_what_is_left(
    encode: Encode, noise: Noise, tmp_path: Path, subtype: str, sample_rate: int, fault: str
) -> None:
    data = encode(0.3 * noise(8 * sample_rate), sample_rate, "OGG", subtype)
    pages, whole = split_pages(data), decoded(data)
    number = len(pages) // 2
    lost = pages[number]
    middle = [] if fault == "cut out" else [lost[:-9] + bytes([lost[-9] ^ 255]) + lost[-8:]]
    info, left = read_all(b"".join([*pages[:number], *middle, *pages[number + 1 :]]), tmp_path)
    assert info.missing_s == pytest.approx((len(whole) - len(left)) / sample_rate, abs=1e-6)
    assert 0.1 < info.missing_s < 1.6
    assert "pages are damaged or not there" in info.missing
    before = round(float(info.missing.split(" at ")[1].split(" s")[0]) * sample_rate) - sample_rate // 50
    np.testing.assert_allclose(left[:before], whole[:before], atol=2e-6)
    after = len(left) - before - sample_rate // 5
    np.testing.assert_allclose(left[-after:], whole[-after:], atol=5e-3)  # Opus comes to what it was after a while
    with pytest.raises(UnusableAudio, match=r"more than max_missing=0\.01 allows"):
        check(memoryview(b"".join([*pages[:number], *pages[number + 1 :]])), max_missing=0.01)


@pytest.mark.parametrize(("subtype", "rates"), [("VORBIS", (44_100, 44_100)), ("OPUS", (48_000, 24_000))])
def test_ogg_files_behind_one_another_are_one(
    encode: Encode, noise: Noise, tmp_path: Path, subtype: str, rates: tuple[int, int]
) -> None:
    first, second = (encode(0.3 * noise(2 * rate), rate, "OGG", subtype) for rate in rates)
    info, whole = read_all(first + second, tmp_path)
    assert (info.frames, info.sample_rate, info.missing) == (4 * rates[0], rates[0], "")
    np.testing.assert_allclose(whole[: 2 * rates[0]], decoded(first), atol=2e-6)
    if rates[0] == rates[1]:
        np.testing.assert_allclose(whole[2 * rates[0] :], decoded(second), atol=2e-6)
    crop = torch.empty(1, 500)
    assert read_crop(memoryview(first + second), crop, rates[0], 1.0).seconds_total == 4  # no index tells it


@pytest.mark.slow
@pytest.mark.parametrize(("subtype", "sample_rate"), [("VORBIS", 44_100), ("OPUS", 48_000)])
@pytest.mark.parametrize("followed", [False, True])
def test_an_ogg_file_cut_between_two_pages_is_used_and_that_it_may_go_on_is_said(
    encode: Encode, noise: Noise, tmp_path: Path, subtype: str, sample_rate: int, followed: bool
) -> None:
    data = encode(0.3 * noise(8 * sample_rate), sample_rate, "OGG", subtype)
    whole = decoded(data)
    assert check(memoryview(data)).missing == ""
    cut = b"".join(split_pages(data)[:-2])
    info, left = read_all(cut + (data if followed else b""), tmp_path)
    alone = check(memoryview(cut), max_missing=0).frames  # never refused for that: there may be no more of it
    assert len(whole) - 2 * sample_rate < alone < len(whole)
    np.testing.assert_allclose(left[: alone - 2000], whole[: alone - 2000], atol=2e-6)
    assert info.frames == alone + followed * len(whole)
    assert info.missing_s == 0
    assert info.missing.startswith(
        f"an unknown length may be missing at {alone / sample_rate:.2f} s: no page is marked"
    )


@pytest.mark.parametrize("total", ["known", "unknown"])
def test_flac_in_ogg_tells_its_end_by_its_header_or_its_pages(encode: Encode, noise: Noise, total: str) -> None:
    flac = encode(0.3 * noise(40_000), 16_000, "FLAC")
    *pages, last = split_pages(ogg_flac(flac if total == "known" else unknown_length(flac)))
    unmarked = last[:5] + b"\0" + last[6:22] + bytes(4) + last[26:]
    unmarked = unmarked[:22] + struct.pack("<I", ogg.checksum(unmarked)) + unmarked[26:]
    info = check(memoryview(b"".join([*pages, unmarked])))
    assert info.frames == 40_000
    assert ("no page is marked as the end" in info.missing) == (total == "unknown")


def test_an_ogg_file_whose_first_page_trims_its_beginning_is_read(encode: Encode, noise: Noise, tmp_path: Path) -> None:
    data = encode(0.3 * noise(100_000), 44_100, "OGG")
    pages, shifted = split_pages(data), []
    for page in pages:
        (granule,) = struct.unpack_from("<q", page, 6)
        moved = page[:6] + struct.pack("<q", granule - 5000 if granule else 0) + page[14:22] + bytes(4) + page[26:]
        shifted.append(moved[:22] + struct.pack("<I", ogg.checksum(moved)) + moved[26:])
    info, whole = read_all(b"".join(shifted), tmp_path)
    assert 94_000 <= info.frames <= 100_000
    assert len(whole) == info.frames


def vbr(noise: Noise, sample_rate: int = 44_100) -> bytes:
    """An MP3 file of a variable bit rate, which begins softly."""
    file = io.BytesIO()
    samples = np.concatenate([1e-4 * noise(2 * sample_rate), 0.5 * noise(2 * sample_rate)])
    sf.write(file, samples, sample_rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.3)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["no xing", "joined", "unlike", "id3v1"])
def test_mp3_of_any_kind_is_read_to_its_end(noise: Noise, tmp_path: Path, kind: str) -> None:
    mp3 = vbr(noise)
    frames = len(decoded(mp3))
    data = {
        "no xing": without_xing(mp3),
        "joined": mp3 + mp3,
        "unlike": mp3 + vbr(noise, 22_050),
        "id3v1": mp3 + b"TAG" + bytes(125),
    }[kind]
    info, whole = read_all(data, tmp_path)
    expected = {"no xing": frames, "joined": 2 * frames, "unlike": 2 * frames, "id3v1": frames}[kind]
    assert expected - 2 <= info.frames <= expected + 3 * 1152
    assert info.missing == ""
    np.testing.assert_allclose(whole[:frames][:100_000].std(), decoded(mp3)[:100_000].std(), rtol=0.05)
    crop = torch.empty(1, 500)
    assert read_crop(memoryview(data), crop, 44_100, 1.0).seconds_total == pytest.approx(info.duration_s, abs=0.1)


def test_half_an_mp3_is_used_to_its_end_and_says_what_is_missing(noise: Noise, tmp_path: Path) -> None:
    mp3 = vbr(noise)
    info, _ = read_all(mp3[: len(mp3) * 9 // 10], tmp_path)
    assert info.frames < len(decoded(mp3))
    assert info.missing_s == pytest.approx((len(decoded(mp3)) - info.frames) / 44_100, abs=0.1)
    assert "MPEG frames, though its header says" in info.missing


@pytest.mark.parametrize("format", ["MP3", "OGG", "FLAC", "WAV", "AIFF", "W64", "CAF"])
def test_a_crop_of_half_a_file_is_refused_with_the_share_that_packing_names(
    encode: Encode, noise: Noise, format: str
) -> None:
    data = encode(0.3 * noise(8 * 44_100), 44_100, format)
    half = memoryview(data)[: len(data) // 2]
    if format == "OGG":  # which does not tell its length
        assert check(half).missing
        return
    with pytest.raises(UnusableAudio, match=r"(4[5-9]|5\d)(\.\d)? % of it, more than max_missing=0.2 allows"):
        check(half)
    crop = torch.empty(1, 1000)
    if format == "MP3":
        with pytest.raises(UnusableAudio, match=r"^(4[5-9]|5\d) % of it are missing: ends after"):
            read_crop(half, crop, 44_100, 0.5)


def test_the_mp3_decoder_prints_nothing(noise: Noise, capfd: pytest.CaptureFixture[str]) -> None:
    file = io.BytesIO()
    sf.write(file, 0.5 * noise(16_000 * 6), 16_000, format="MP3", bitrate_mode="CONSTANT", compression_level=0.9)
    crop = torch.empty(1, 4000)
    for where in np.linspace(0, 1, 40):
        read_crop(memoryview(file.getvalue()), crop, 16_000, float(where))
    assert capfd.readouterr().err == ""


def test_wav_whose_size_was_never_written_and_wav_behind_wav(encode: Encode, noise: Noise, tmp_path: Path) -> None:
    samples = np.round(0.3 * noise(9_000, 2) * 32768).astype(np.float32) / 32768
    wav = encode(samples, 16_000)
    at = wav.index(b"data") + 4
    for size, name in ((0, "zero"), (0xFFFFFFFF, "pipe")):
        info, whole = read_all(wav[:at] + struct.pack("<I", size) + wav[at + 4 :], tmp_path)
        np.testing.assert_array_equal(whole, samples, err_msg=name)
        assert info.missing == ""
    _, whole = read_all(wav + wav, tmp_path)
    np.testing.assert_array_equal(whole, np.concatenate([samples, samples]))


@pytest.mark.parametrize("second_rate", [8_000, 16_000])
def test_the_time_of_a_bad_sample_in_a_joined_file_is_counted_from_its_beginning(
    encode: Encode, noise: Noise, second_rate: int
) -> None:
    good, bad = 0.1 * noise(2 * 8_000), 0.1 * noise(second_rate)
    bad[second_rate // 4] = np.nan
    data = encode(good, 8_000, subtype="FLOAT") + encode(bad, second_rate, subtype="FLOAT")
    info = probe(memoryview(data))
    assert info.frames == 3 * 8_000
    with pytest.raises(UnusableAudio, match=r"the first at 2\.250 s"):
        check(memoryview(data))
    with pytest.raises(UnusableAudio, match=r"the first at 2\.250 s"):
        read_crop(memoryview(data), torch.empty(1, 8_000), 8_000, 1.0)
    with pytest.raises(UnusableAudio, match=r"the first at 2\.250 s"):
        Recording(memoryview(data), info).read(2 * 8_000, 4_000, 8_000, 1)


@pytest.mark.parametrize("riff_size", [0xFFFFFFFFFFFFFFFF, 0])
def test_w64_whose_size_was_never_written(encode: Encode, noise: Noise, tmp_path: Path, riff_size: int) -> None:
    samples = np.round(0.3 * noise(9_000, 2) * 32768).astype(np.float32) / 32768
    w64 = encode(samples, 16_000, "W64")
    at = w64.index(b"data\xf3\xac") + 16
    info, whole = read_all(
        w64[:16] + struct.pack("<Q", riff_size) + w64[24:at] + struct.pack("<Q", (1 << 63) - 1) + w64[at + 8 :],
        tmp_path,
    )
    np.testing.assert_array_equal(whole[: len(samples)], samples)
    assert (len(whole) - len(samples), info.missing) == (0, "")


@pytest.mark.parametrize("format", ["WAV", "MP3", "FLAC", "OGG"])
def test_what_lies_beside_a_file_does_not_matter(encode: Encode, noise: Noise, tmp_path: Path, format: str) -> None:
    data = encode(0.3 * noise(20_000), 16_000, format)
    name = f"x.{format.lower()}"
    (tmp_path / name).write_bytes(data)
    entry = struct.pack(">IIHIII", 0x00051607, 0x00020000, 1, 2, 50, 286)
    (tmp_path / f"._{name}").write_bytes(entry.ljust(4096, b"\0"))  # as macOS keeps it
    assert check(tmp_path / name) == check(memoryview(data))
    with pytest.raises(UnusableAudio, match="cannot be decoded"):
        check(tmp_path / f"._{name}")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="nothing lists what is open")
def test_a_file_that_is_no_audio_is_closed(tmp_path: Path) -> None:
    (tmp_path / "x.au").write_bytes(b"words, which no name makes audio" * 30)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(UnusableAudio, match="cannot be decoded"):
            open_plain(tmp_path / "x.au")
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 10


@pytest.mark.parametrize("format", ["WAV", "AIFF", "AU", "W64", "CAF", "RF64"])
def test_what_is_missing_at_the_end_of_a_file_is_told(
    encode: Encode, noise: Noise, tmp_path: Path, format: str
) -> None:
    data = encode(0.3 * noise(16_000), 16_000, format)
    info, _ = read_all(data[: len(data) - 3200], tmp_path)
    assert info.missing_s == pytest.approx(0.1, abs=0.02)
    assert f"missing at {info.duration_s:.2f} s: ends after" in info.missing
    with pytest.raises(UnusableAudio, match=r"more than max_missing=0\.05 allows"):
        check(memoryview(data[: len(data) - 3200]), max_missing=0.05)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", "GSM610"), ("WAV", "MS_ADPCM"), ("WAV", "IMA_ADPCM"), ("WAV", "G721_32"), ("AU", "G723_24"),
     ("AIFF", "DWVW_16"), ("CAF", "ALAC_16"), ("WAV", "ULAW")],
)  # fmt: skip
def test_what_packs_can_be_cropped(encode: Encode, noise: Noise, tmp_path: Path, format: str, subtype: str) -> None:
    read_all(encode(0.3 * noise(12_000), 8_000, format, subtype), tmp_path)


def test_frames_after_a_jump_in_an_open_vorbis_file_are_those_of_the_whole(encode: Encode, noise: Noise) -> None:
    data = encode(0.3 * noise(400_000), 44_100, "OGG")
    whole, decoder, at = decoded(data), Decoder(io.BytesIO(data)), 0
    for ahead in (0, 1, 700, 5_000, 30_000, 87_000, 89_000, 0, 60_000, -200_000, 12_345):
        at += ahead
        np.testing.assert_array_equal(decoder.samples(at, 3000), whole[at : at + 3000])
        at += 3000


def encoded_by_ffmpeg(samples: NDArray[np.float32], format: str, codec: str, sample_rate: int = 48_000) -> bytes:
    """The bytes of a file that PyAV writes, mono."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=sample_rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="fltp", layout="mono")
        frame.sample_rate = sample_rate
        fifo = av.AudioFifo()
        fifo.write(frame)
        while (part := fifo.read(stream.codec_context.frame_size or 1024, partial=True)) is not None:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(("format", "codec"), [("ipod", "aac"), ("adts", "aac"), ("webm", "libopus"), ("ac3", "ac3")])
def test_what_libsndfile_does_not_know_is_converted_by_ffmpeg(
    noise: Noise, tmp_path: Path, format: str, codec: str
) -> None:
    time = np.arange(96_000) / 48_000
    tone = (0.4 * np.sin(2 * np.pi * (300 + 200 * time) * time)).astype(np.float32)
    (tmp_path / "file").write_bytes(encoded_by_ffmpeg(tone, format, codec))
    info = probe(tmp_path / "file")
    assert (info.sample_rate, info.channels, info.missing) == (48_000, 1, "")
    assert abs(info.frames - 96_000) < 4096
    recording = Recording(tmp_path / "file", info)
    whole = recording.read(0, info.frames, 48_000, 1)
    again = np.concatenate([recording.read(at, 30_000, 48_000, 1) for at in range(0, info.frames, 30_000)], axis=1)
    recording.close()
    np.testing.assert_array_equal(whole, again)
    shifts = [np.corrcoef(whole[0, 20_000 + n : 60_000 + n], tone[20_000:60_000])[0, 1] for n in range(0, 3000)]
    assert max(shifts) > 0.98
    with pytest.raises(UnusableAudio, match="only packing reads it, with format=flac"):
        check(tmp_path / "file")
