"""Editing with a trained network: held-out recordings, beside what is simpler; writes NAME.md and NAME.png.

    pip install -e '.[bench]'
    python benchmarks/editing/network.py data/drums runs/oneshots [--clips 16] [--output NAME]

The clips are the loudest crops of the network's length in the shards' test split (val where there is none), the classes
in turn; labels are told where the network takes them, without guidance. Clip i's seed is i.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # before torch: see train.py

import noisereduce
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

import audio_diffusion
from audio_diffusion import Model
from audio_diffusion.data.remote import RemoteStore
from audio_diffusion.data.shards.shards import Shards
from audio_diffusion.data.stream import read_in_order
from audio_diffusion.diffusion.editing.constraints import LowBand
from audio_diffusion.diffusion.editing.noise import estimated_noise_std
from audio_diffusion.diffusion.solvers.dpmpp import dpmpp
from audio_diffusion.metrics import pictures
from audio_diffusion.metrics.signal import log_mel_distance
from audio_diffusion.networks.conditions.mel import Mel

Row = tuple[str, str, str, str]  # task, what was measured, ours, beside it


def held_out(data: str, model: Model, count: int) -> tuple[Tensor, list[str] | None]:
    """Clips ``[count, C, T]`` and their labels."""
    tested = sorted(Path(data).glob("test-*.tar"))
    shards = Shards.open([f"{data}/{'test' if tested else 'val'}-*.tar"], RemoteStore(None))
    of_class: dict[str, list[Tensor]] = defaultdict(list)
    window = model.num_samples
    for clip, audio in read_in_order(shards, model.sample_rate, model.channels, 10 * window, model.classes):
        parts = audio[:, : max(clip.num_valid, window)].unfold(1, window, window // 8).unbind(1)
        loudest = max(parts, key=lambda part: part.square().sum().item())
        if loudest.abs().max() > 0.05:
            of_class[model.classes[clip.label] if model.classes else ""].append(loudest)
    in_turn = chain.from_iterable(zip_longest(*([(name, a) for a in clips] for name, clips in of_class.items())))
    chosen = list(islice((pair for pair in in_turn if pair), count))
    return torch.stack([audio for _, audio in chosen]), [name for name, _ in chosen] if model.classes else None


def db(ratio: Tensor) -> Tensor:
    """Of powers."""
    return 10 * ratio.clamp(min=1e-20).log10()


def power(audio: Tensor) -> Tensor:
    """Mean square of each clip."""
    return audio.square().flatten(1).mean(1)


def snr(made: Tensor, true: Tensor) -> Tensor:
    """Of each clip, dB."""
    return db(power(true) / power(made - true))


def spread(values: Tensor) -> str:
    """Mean ± standard deviation over the clips."""
    return f"{values.mean():.1f} ± {values.std():.1f}"


def filtered(noisy: Tensor, gain: Callable[[Tensor], Tensor], n_fft: int = 512) -> Tensor:
    """A spectrogram's powers, in parts of white unit noise's, -> gains; back to clips of the same shape."""
    window, flat = torch.hann_window(n_fft), noisy.flatten(0, 1)
    spectrum = torch.stft(flat, n_fft, n_fft // 4, window=window, return_complex=True)
    spectrum = spectrum * gain(spectrum.abs().square() / window.square().sum())
    return torch.istft(spectrum, n_fft, n_fft // 4, window=window, length=noisy.shape[-1]).view_as(noisy)


def gate(noisy: Tensor, std: Tensor, threshold_db: float) -> Tensor:
    """Spectral gating: what is less than so many dB above the noise, whose level it is told, is taken away."""
    return filtered(noisy, lambda p: p > std.square() * 10 ** (threshold_db / 10))


def subtraction(noisy: Tensor, std: Tensor, factor: float) -> Tensor:
    """Spectral subtraction (Berouti et al. 1979): the noise's power times a factor is taken off."""
    return filtered(noisy, lambda p: (1 - factor * std.square() / p.clamp(min=1e-20)).clamp(min=0).sqrt())


def packaged(noisy: Tensor, std: Tensor, proportion: float, rate: int) -> Tensor:
    """Spectral gating by the noisereduce package, told a second of such noise."""
    noise = std.item() * torch.randn(rate, generator=torch.Generator().manual_seed(4))
    options = {"stationary": True, "y_noise": noise.numpy(), "prop_decrease": proportion, "use_torch": False}
    made = [noisereduce.reduce_noise(channel, rate, **options) for channel in noisy.flatten(0, 1).numpy()]
    return torch.stack([torch.from_numpy(channel) for channel in made]).float().view_as(noisy)


class Bench:
    """A model and its clips; each method measures a task."""

    def __init__(self, model: Model, audio: Tensor, labels: list[str] | None):
        self.model, self.audio = model, audio
        self.given = {"seeds": list(range(len(audio))), "labels": labels}
        self.shown = {"recorded": audio}

    def mel(self, made: Tensor) -> str:
        """Mel distance from the recordings, dB: windows of 512, floor 80 dB below the loudest magnitude."""
        mel = Mel(self.model.sample_rate, self.model.channels, n_fft=512, hop=128)
        floor = mel.spectrogram(self.audio).exp().max().item() * 1e-4
        return spread(log_mel_distance(made, self.audio, self.model.sample_rate, n_fft=512, hop=128, floor=floor))

    def one(self, i: int) -> dict:
        """What is told of clip i."""
        return {name: value and value[i : i + 1] for name, value in self.given.items()}

    def inpaint(self) -> Iterator[Row]:
        """A gap right after where each clip is loudest, as long as a 16th of it."""
        rate, length = self.model.sample_rate, self.audio.shape[-1] // 16
        energy = self.audio.square().mean(1).unfold(1, length, 1).mean(2)
        starts = (energy[:, : -2 * length].argmax(1) + length).tolist()
        made, repeated, levels = self.audio.clone(), self.audio.clone(), []
        for i, start in enumerate(starts):
            at = slice(start, start + length)
            region = [(start / rate, (start + length) / rate)]
            made[i] = self.model.inpaint(self.audio[i : i + 1], region, **self.one(i))[0]
            repeated[i, :, at] = self.audio[i, :, start - length : start]
            levels.append(
                torch.stack(
                    [db(power(x[i : i + 1, :, at]) / power(self.audio[i : i + 1, :, at])) for x in (made, repeated)]
                )
            )
            outside = torch.ones(self.audio.shape[-1], dtype=torch.bool)
            outside[at] = False
            assert torch.equal(made[i][:, outside], self.audio[i][:, outside])
        self.shown["gap filled"] = made
        name, found = f"inpaint, {1000 * length / rate:.0f} ms", torch.cat(levels, dim=1)
        yield name, "other samples equal", "all", ""
        yield (
            name,
            "level in the gap, too high by, dB",
            spread(found[0]),
            f"{spread(found[1])} what is before it, repeated",
        )
        yield name, "mel distance, dB", self.mel(made), f"{self.mel(repeated)} repeated"

    def continue_(self) -> Iterator[Row]:
        """The second half anew."""
        half = self.audio.shape[-1] // 2
        made = self.model.continue_(self.audio[..., :half], half / self.model.sample_rate, **self.given)
        assert torch.equal(made[..., :half], self.audio[..., :half])
        silent = torch.cat([self.audio[..., :half], torch.zeros_like(made[..., half:])], dim=-1)
        again = torch.cat([self.audio[..., :half], self.audio[..., :half]], dim=-1)
        made = made[..., : self.audio.shape[-1]]
        self.shown["second half made"] = made
        yield "continue", "samples of the first half equal", "all", ""
        yield (
            "continue",
            "mel distance, dB",
            self.mel(made),
            f"{self.mel(again)} first half again; {self.mel(silent)} silence",
        )

    def extend_bandwidth(self) -> Iterator[Row]:
        """What is above an eighth of the rate anew."""
        cutoff = self.model.sample_rate / 8
        silence = torch.zeros_like(self.audio)
        dull = LowBand(self.audio, 1 / 8).onto(silence)
        made = self.model.extend_bandwidth(dull, cutoff, **self.given)
        self.shown[f"up to {cutoff:g} Hz"], self.shown["extended"] = dull, made
        kept = snr(LowBand(made, 1 / 8).onto(silence), dull)
        name = f"extend_bandwidth from {cutoff:g} Hz"
        yield name, "error of the low band, dB", spread(-kept), ""
        yield name, "mel distance, dB", self.mel(made), f"{self.mel(dull)} not extended"

    def declip(self) -> Iterator[Row]:
        """Clipped at a quarter of the peak."""
        level = self.audio.abs().amax((1, 2), keepdim=True) / 4
        clipped = self.audio.clamp(-level, level)
        made = self.model.declip(clipped, **self.given)
        at = clipped.abs() >= level - 1.5 / 2**15  # as the task takes it, of files of 16 bits
        assert torch.equal(made[~at], self.audio[~at])
        splined = clipped.clone()
        for channel, known in zip(splined.flatten(0, 1), ~at.flatten(0, 1), strict=True):
            where = known.nonzero()[:, 0].numpy()
            curve = CubicSpline(where, channel[known].numpy())(range(len(channel)))
            channel.copy_(torch.where(known, channel, torch.from_numpy(curve).float()))
        splined = torch.where(self.audio > 0, splined.clamp(clipped, 4 * level), splined.clamp(-4 * level, clipped))
        self.shown["clipped"], self.shown["declipped"] = clipped, made
        share = f"{100 * at.float().mean():.1f} % of samples"
        yield f"declip, {share}", "all other samples equal", "all", ""
        before = spread(snr(clipped, self.audio))
        yield (
            f"declip, {share}",
            "SDR, dB",
            spread(snr(made, self.audio)),
            f"{before} clipped; {spread(snr(splined, self.audio))} cubic spline",
        )

    def denoise(self) -> Iterator[Row]:
        """White noise at 0, 10 and 20 dB."""
        noise = torch.randn(self.audio.shape, generator=torch.Generator().manual_seed(3))
        for level in (0, 10, 20):
            std = (power(self.audio) * 10 ** (-level / 10)).sqrt()
            noisy = self.audio + std[:, None, None] * noise
            found = {
                name: torch.cat([
                    model.denoise(noisy[i : i + 1], snr_db=snr(noisy, self.audio)[i].item(), mean=mean, **self.one(i))
                    for i in range(len(noisy))
                ])
                for name, model, mean in (
                    ("mean", self.model, True), ("UniPC", self.model, False),
                    ("2M SDE", self.model.using(sampler=partial(dpmpp, num_steps=25, eta=1.0)), False),
                )
            }  # fmt: skip
            guess = db(estimated_noise_std(noisy) ** 2 / std**2)
            if level == 10:
                self.shown["noisy, 10 dB"], self.shown["denoised"], self.shown["mean"] = (
                    noisy,
                    found["UniPC"],
                    found["mean"],
                )
            simple = []
            for name, how, options in (
                ("spectral gating", gate, (3, 6, 9, 12)),
                ("spectral subtraction", subtraction, (1, 2, 4, 8)),
                ("noisereduce", partial(packaged, rate=self.model.sample_rate), (0.5, 0.8, 0.9, 1.0)),
            ):
                tried = [
                    snr(torch.cat([how(n[None], s, option) for n, s in zip(noisy, std, strict=True)]), self.audio)
                    for option in options
                ]
                simple.append(f"{spread(max(tried, key=lambda t: t.mean().item()))} {name}")
            ours = "; ".join(f"{spread(snr(made, self.audio))} {name}" for name, made in found.items())
            yield f"denoise at {level} dB", "SNR, dB", ours, "; ".join(simple)
            mels = "; ".join(f"{self.mel(made)} {name}" for name, made in found.items())
            yield f"denoise at {level} dB", "mel distance, dB", mels, f"{self.mel(noisy)} noisy"
            yield f"denoise at {level} dB", "estimate of the noise, too high by, dB", spread(guess), ""

    def vary(self) -> Iterator[Row]:
        """How far what is made is from the clip."""
        distances = []
        for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
            made = self.model.vary(self.audio, strength, **self.given)
            if strength == 0:
                assert torch.equal(made, self.audio)
                continue
            distances.append(f"{self.mel(made)} ({strength:g})")
            if strength == 0.5:
                self.shown["varied, 0.5"] = made
        yield "vary", "strength 0 is the clip", "equal", ""
        yield "vary", "mel distance by strength, dB", "; ".join(distances), ""

    def interpolate(self) -> Iterator[Row]:
        """From each clip to the next."""
        others = self.audio.roll(-1, 0)
        made = self.model.interpolate(self.audio, others, [0, 0.5, 1])
        assert torch.equal(made.clips[:, 0], self.audio)
        assert torch.equal(made.clips[:, 2], others)
        self.shown["half way to the next"] = made.clips[:, 1]
        middle = db(power(made.clips[:, 1]) / (power(self.audio) * power(others)).sqrt())
        yield "interpolate", "the ends are the clips", "equal", ""
        yield "interpolate", "error to noise and back, dB", spread(made.error_db), ""
        yield "interpolate", "level half way beside the ends' mean, dB", spread(middle), ""

    def seeds(self) -> Iterator[Row]:
        """A batch beside one by one."""
        together = self.model.generate(**self.given)
        alone = torch.cat([self.model.generate(**self.one(i)) for i in range(len(together))])
        self.shown["generated"] = together
        yield "generate", "one by one beside in a batch: difference, dB", spread(-snr(alone, together)), ""
        yield "generate", "level beside the recordings', dB", spread(db(power(together) / power(self.audio))), ""

    def joins(self, windows: int = 6) -> Iterator[Row]:
        """Long clips: 32 ms around each place where a window begins or ends, beside all other places."""
        model, rate, window = self.model, self.model.sample_rate, self.model.num_samples
        made = model.generate(**self.given, seconds=windows * window / rate)
        frame, half = 512, window // 2
        mel = Mel(rate, model.channels, n_mels=40, n_fft=frame, hop=frame // 4)
        frames = (mel.spectrogram(made) * 20 / torch.log(torch.tensor(10.0))).unflatten(1, (model.channels, -1)).mean(1)
        per_half = half // mel.hop
        inner = frames[..., per_half:-per_half].unflatten(2, (-1, per_half))  # [B, bands, halves, phase], 0: a join
        by_phase = inner.mean((0, 2))  # [bands, phase]
        near = [-2, -1, 0, 1]
        rest = by_phase[:, 4:-4]
        level = 10 * torch.log10((10 ** (inner / 10)).mean((0, 1, 2)))
        flux = (frames[..., 1:] - frames[..., :-1]).abs().mean(1)
        of_join = flux[..., per_half - 1 :: per_half][..., : 2 * windows - 2]
        steps = (made[..., 1:] - made[..., :-1]).square().mean((0, 1))
        at_join = steps[half - 1 :: half][: 2 * windows - 1].mean() / steps.mean()
        places = f"{len(made)} clips of {windows * window / rate:.1f} s, {len(made) * (2 * windows - 3)} joins"
        yield (
            places,
            "level at joins; elsewhere, dB",
            f"{level[near].mean():.2f}",
            f"{level[4:-4].mean():.2f} ± {level[4:-4].std():.2f} (32 ms places at equal distances from joins)",
        )
        off = (by_phase[:, near].mean(1) - rest.mean(1)).abs().mean()
        yield (
            places,
            "spectrum at joins against elsewhere, 40 bands, mean difference, dB",
            f"{off:.2f}",
            f"{(rest - rest.mean(1, keepdim=True)).abs().mean():.2f} other places",
        )
        yield places, "change from frame to frame, dB", f"{of_join.mean():.2f}", f"{flux.mean():.2f} everywhere"
        yield places, "power of steps from sample to sample, joins against everywhere, dB", f"{db(at_join):.2f}", ""


def main() -> None:
    """Measure each task, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of shards with test-*.tar or val-*.tar")
    parser.add_argument("model", help="a run's folder or a checkpoint")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--output", type=Path, default=Path("editing"))
    options = parser.parse_args()
    model = audio_diffusion.load(options.model).using(guidance=1.0)
    audio, labels = held_out(options.data, model, options.clips)
    bench = Bench(model, audio, labels)
    size = sum(p.numel() for p in model.net.parameters()) / 1e6
    lines = [
        f"{len(audio)} clips of {audio.shape[-1] / model.sample_rate:.3f} s, {type(model.net).__name__} "
        f"{size:.2f} M, step {model.step}",
        "",
        "| task | measured | ours | beside it |",
        "|---|---|---|---|",
    ]
    tasks = (bench.inpaint, bench.continue_, bench.extend_bandwidth, bench.declip, bench.denoise, bench.vary,
             bench.interpolate, bench.seeds, bench.joins)  # fmt: skip
    for task in tasks:
        for row in task():
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
        options.output.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = labels or [str(i) for i in range(len(audio))]
    rows = [(name, list(clips[:6]), names[:6]) for name, clips in bench.shown.items()]
    pictures.save(pictures.sample_grid(rows, model.sample_rate), options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
