"""What can be made with a trained model."""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from audio_diffusion.data.audio.recording import read_file
from audio_diffusion.diffusion.editing.constraints import Constraint, Kept, LowBand, Unclipped
from audio_diffusion.diffusion.editing.inversion import Interpolation, interpolate
from audio_diffusion.diffusion.editing.noise import estimated_noise_std, noise_std_at, remove_noise
from audio_diffusion.diffusion.editing.through import known_of
from audio_diffusion.diffusion.editing.vary import edit
from audio_diffusion.diffusion.generation import Sampler, evenly, generate
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.levels import describe_levels
from audio_diffusion.diffusion.seeding import SeededNoise
from audio_diffusion.inference.model import Given, Labels, Model, Seeds
from audio_diffusion.networks.conditions.mel import FLOOR


class Generator(Model):
    """A trained model, ready to generate. Made by ``audio_diffusion.load``.

    Audio is ``[B, C, T]``, float32, full scale ±1, at ``sample_rate``; times are in seconds. Of every method, result i
    depends on ``seeds[i]``, clip i and its own conditions alone. Conditions are ``labels``, class names, and ``cond``,
    others by name, B values each: words, numbers (NaN: "not given"), embeddings ``[B, ..]``, audio ``[B, C, T]`` for a
    mel. What is left out is "not given". What is kept of a clip comes back bit by bit. ``using`` changes the sampler
    and guidance.
    """

    def using(self, *, sampler: Sampler | None = None, guidance: Guidance | float | None = None) -> "Generator":
        """The same model with another sampler or guidance, a number being its scale; None keeps what is there.

        It warns of a sampler that does not keep levels on this model's schedule, which all methods then sample with.
        """
        if sampler is not None:
            with suppress(ValueError):  # more steps than the schedule has: refused as it samples
                for line in describe_levels(self.process, sampler)[1:]:
                    warnings.warn(line.removeprefix("warning: "), stacklevel=2)
        guidance = Guidance(guidance) if isinstance(guidance, int | float) else guidance
        return replace(self, sampler=sampler or self.sampler, guidance=guidance or self.guidance)

    def read(self, path: str | Path) -> Tensor:
        """An audio file of any rate as a clip ``[1, C, T]`` for this model.

        Raises:
            UnusableAudio: if it cannot be decoded, or has channels that cannot be made this model's.
        """
        return read_file(path, self.sample_rate, self.channels)[None]

    def generate(
        self,
        seeds: Seeds,
        labels: Labels = None,
        *,
        cond: Given = None,
        seconds: float | None = None,
        on_step: Callable[[float, Tensor], None] | None = None,
    ) -> Tensor:
        """One clip per seed.

        Args:
            seeds: one a clip.
            labels: a model that is told nothing else needs them.
            cond: other conditions by name.
            seconds: None is what the network was trained on; longer clips are made of windows, denoised jointly.
            on_step: told (t, audio) of the estimate after each network call.

        Raises:
            ValueError: for a label or a condition the model does not know, values that are none for it, or no labels
                where the model needs them.
        """
        if labels is None and set(self.conditions.by_name) == {"label"}:
            raise ValueError(f"labels: this model needs one per clip, of {', '.join(self.classes)}")
        wanted = self.num_samples if seconds is None else self._samples("seconds", seconds)
        length = self._length(wanted)
        given = self._told(len(seeds), labels, cond)
        x0 = generate(
            self._net(length),
            self.process,
            self.sampler,
            self.representation.shape(self.channels, length.made),
            seeds,
            given,
            guidance=self._guided(length, True),
            device=self.device,
            on_step=on_step and (lambda t, x0: on_step(t, self.representation.decode(x0)[..., :wanted])),
        )
        return self.representation.decode(x0)[..., :wanted]

    def reverse_process(
        self,
        seeds: Seeds,
        labels: Labels = None,
        *,
        cond: Given = None,
        seconds: float | None = None,
        num_points: int = 6,
    ) -> list[tuple[float, Tensor]]:
        """(t, estimate of the clean audio ``[B, C, T]``) at so many of the sampler's steps, from noise to the result.

        Raises:
            ValueError: for fewer than 2 points, or what ``generate`` refuses.
        """
        if num_points < 2:
            raise ValueError(f"num_points: expected at least 2, got {num_points}")
        points: list[tuple[float, Tensor]] = []
        self.generate(
            seeds, labels, cond=cond, seconds=seconds, on_step=lambda t, audio: points.append((t, audio.clone()))
        )
        return evenly(points, num_points)

    def inpaint(
        self,
        audio: Tensor,
        regions: Sequence[tuple[float, float]],
        seeds: Seeds,
        labels: Labels = None,
        *,
        cond: Given = None,
    ) -> Tensor:
        """Regions, each (start, end) in seconds, made anew to fit the rest, which is kept.

        Raises:
            ValueError: for a region outside the clip.
        """
        self._check(audio)
        total = audio.shape[-1] / self.sample_rate
        keep = torch.ones(audio.shape[-1], dtype=torch.bool)
        for region in regions:
            if len(region) != 2 or not 0 <= region[0] < region[1] <= total + 0.5 / self.sample_rate:
                raise ValueError(
                    f"regions: expected [start, end] with 0 <= start < end <= {total:g}, the seconds of the clip, got "
                    f"{list(region)}"
                )
            start, end = (round(time * self.sample_rate) for time in region)
            keep[start : max(end, start + 1)] = False
        return self._fill(audio, keep, seeds, labels, cond)

    def outpaint(
        self,
        audio: Tensor,
        seeds: Seeds,
        labels: Labels = None,
        *,
        before: float = 0.0,
        after: float = 0.0,
        cond: Given = None,
    ) -> Tensor:
        """The clip, which is kept, with seconds made ``before`` and ``after`` it.

        Raises:
            ValueError: if a time is negative, or both are 0.
        """
        self._check(audio)
        if not (before >= 0 and after >= 0 and 0 < before + after < math.inf):
            raise ValueError(f"before, after: expected seconds of which one is positive, got {before} and {after}")
        more = round(before * self.sample_rate), round(after * self.sample_rate)
        keep = F.pad(torch.ones(audio.shape[-1], dtype=torch.bool), more)
        return self._fill(F.pad(audio, more), keep, seeds, labels, cond)

    def continue_(
        self, audio: Tensor, seconds: float, seeds: Seeds, labels: Labels = None, *, cond: Given = None
    ) -> Tensor:
        """The clip, which is kept, and so many seconds after it."""
        self._samples("seconds", seconds)
        return self.outpaint(audio, seeds, labels, after=seconds, cond=cond)

    def vary(
        self, audio: Tensor, strength: float, seeds: Seeds, labels: Labels = None, *, cond: Given = None
    ) -> Tensor:
        """The clip made anew as far as ``strength`` says: 0 is the clip itself, 1 a fresh sample (SDEdit)."""
        made = self._edit(audio, seeds, labels, cond, strength=strength)
        return audio.clone() if strength == 0 else made

    def interpolate(
        self,
        first: Tensor,
        second: Tensor,
        at: Sequence[float],
        labels: Labels = None,
        *,
        cond: Given = None,
        strength: float = 0.9,
        num_steps: int = 50,
    ) -> Interpolation:
        """Clips ``[B, len(at), C, T]`` between two, which are themselves ``at`` 0 and 1; see
        ``diffusion.editing.inversion.interpolate``.

        Args:
            first: what is at 0.
            second: what is at 1, as long as the first.
            at: places inside [0, 1].
            labels: of all clips; better left out where the two are of unlike kinds.
            cond: likewise.
            strength: how far back to noise both go, 1 is all the way.
            num_steps: of DDIM: network calls from noise to a clip; the way to noise takes some six times as many.

        Raises:
            ValueError: for clips of unlike shape, places outside [0, 1], or a strength outside (0, 1].
        """
        self._check(first)
        self._check(second)
        if first.shape != second.shape:
            raise ValueError(f"second: expected the first clip's shape {list(first.shape)}, got {list(second.shape)}")
        length = self._length(first.shape[-1])
        given = self._told(len(first), labels, cond)
        made = interpolate(
            self._net(length),
            self.process,
            self._encode(first, length),
            self._encode(second, length),
            at,
            given,
            strength=strength,
            num_steps=num_steps,
            guidance=self._guided(length, bool(labels or cond)),
        )
        clips = self.representation.decode(made.clips.flatten(0, 1)).unflatten(0, made.clips.shape[:2])
        clips = clips[..., : first.shape[-1]].to(first.device)
        for i, place in enumerate(at):
            if place in (0, 1):
                clips[:, i] = second if place else first
        return Interpolation(clips, made.error_db)

    def extend_bandwidth(
        self, audio: Tensor, cutoff: float, seeds: Seeds, labels: Labels = None, *, cond: Given = None
    ) -> Tensor:
        """What lies above ``cutoff`` Hz made anew, what lies below kept (to rounding).

        Raises:
            ValueError: for a cutoff outside (0, half the sample rate).
        """
        if not 0 < cutoff < self.sample_rate / 2:
            raise ValueError(f"cutoff: expected Hz inside (0, {self.sample_rate / 2:g}), got {cutoff}")
        part = cutoff / self.sample_rate
        made = self._edit(audio, seeds, labels, cond, lambda clip: LowBand(clip, part))
        return LowBand(audio, part).onto(made)  # once more: what was made may be longer than the clip

    def declip(
        self,
        audio: Tensor,
        seeds: Seeds,
        labels: Labels = None,
        *,
        level: float | None = None,
        clipped: Tensor | None = None,
        cond: Given = None,
    ) -> Tensor:
        """Samples at the clip level made anew, at it or beyond it; all others are kept.

        Args:
            audio: the clipped clips.
            seeds: one a clip.
            labels: class names, one a clip.
            level: magnitude at which and above which samples were clipped; None is each clip's peak, to a 16-bit step.
            clipped: which samples were, bool ``[B, C, T]``, in place of a level: of clips that were resampled since.
            cond: other conditions by name.

        Raises:
            ValueError: for a level that is not positive.
        """
        self._check(audio)
        if level is not None and not level > 0:
            raise ValueError(f"level: expected a positive magnitude, at most the clip's peak, got {level}")
        peak = audio.abs().amax((1, 2), keepdim=True)
        least = (peak - 1.5 / 2**15).clamp(min=1e-9) if level is None else torch.full_like(peak, level)
        if clipped is not None:
            if clipped.shape != audio.shape or clipped.dtype != torch.bool:
                raise ValueError(
                    f"clipped: expected bool {list(audio.shape)}, got {clipped.dtype} {list(clipped.shape)}"
                )
            least = torch.where(clipped, audio.abs().clamp(min=1e-9), torch.inf)
        clipped = audio.abs() >= least

        def unclipped(clip: Tensor) -> Constraint:
            return Unclipped(clip, F.pad(clipped, (0, clip.shape[-1] - clipped.shape[-1])).to(clip.device))

        made = self._edit(audio, seeds, labels, cond, unclipped)
        made = torch.where(audio > 0, made.maximum(audio), made.minimum(audio))  # decoding rounds
        return torch.where(clipped, made, audio)

    def denoise(
        self,
        audio: Tensor,
        seeds: Seeds,
        labels: Labels = None,
        *,
        snr_db: float | None = None,
        mean: bool = False,
        cond: Given = None,
    ) -> Tensor:
        """The clip without the white noise in it.

        Args:
            audio: the noisy clips.
            seeds: one a clip, of what a stochastic sampler draws.
            labels: class names, one a clip.
            snr_db: signal-to-noise ratio; None: the noise's level is estimated from the quietest parts of each clip.
            mean: True is the mean of all that the clip may have been, in one network call: nearest in SNR, but
                muffled. False goes on from there, with the sampler, to one that sounds like the data.
            cond: other conditions by name.
        """
        self._check(audio, seeds)
        if not self.representation.elementwise:
            raise ValueError(
                "denoise: expected a model of the waveform (representation=waveform), in which white noise is white; "
                f"this one diffuses {type(self.representation).__name__}"
            )
        length = self._length(audio.shape[-1])
        noisy = self.representation.encode(audio.to(self.device))
        stds = estimated_noise_std(noisy) if snr_db is None else noise_std_at(noisy, snr_db)
        given, cleaned = self._told(len(audio), labels, cond), []
        for i, std in enumerate(stds.tolist()):  # each is asked about at its own times
            if std == 0:  # silence, or without any noise
                cleaned.append(noisy[i : i + 1])
                continue
            own = {name: value[i : i + 1] for name, value in given.items()}
            beyond = SeededNoise(seeds[i : i + 1], (self.channels, length.made - length.wanted), self.device)()
            x0 = remove_noise(
                self._net(length),
                self.process,
                None if mean else self.sampler,
                torch.cat([noisy[i : i + 1], std * beyond], dim=-1),
                std,
                seeds[i : i + 1],
                own,
                guidance=self._guided(length, bool(labels or cond)),
            )
            cleaned.append(x0[..., : length.wanted])
        return self.representation.decode(torch.cat(cleaned)).to(audio.device)

    def spectrogram(self, audio: Tensor) -> Tensor:
        """The mel spectrogram that the model is told of clips: ln of the magnitudes, ``[B, C·n_mels, F]``; F·hop is at
        least T.

        Raises:
            ValueError: for a model that is told none.
        """
        self._check(audio)
        mel, length = self.mel[1], audio.shape[-1]
        whole = max(-(-length // mel.hop), -(-mel.n_fft // mel.hop)) * mel.hop
        return mel.spectrogram(F.pad(audio.to(self.device), (0, whole - length)))

    def vocode(self, sound: Tensor, seeds: Seeds, labels: Labels = None, *, cond: Given = None) -> Tensor:
        """Waveforms for mel spectrograms, by a model that is told its mel.

        Args:
            sound: the spectrograms, as ``spectrogram`` makes them (F·hop samples come out), or clips ``[B, C, T]`` of
                which they are taken.
            seeds: one a clip.
            labels: class names, one a clip.
            cond: other conditions by name.

        Raises:
            ValueError: for a model that is told none, or what is neither spectrograms nor clips.
        """
        name, mel = self.mel
        known = mel.is_spectrogram(sound)
        length = self._length(sound.shape[-1] * (mel.hop if known else 1))
        frames = sound.to(self.device) if known else self.spectrogram(sound)
        frames = F.pad(frames, (0, length.made // mel.hop - frames.shape[-1]), value=math.log(FLOOR))
        told = {**(cond or {}), name: frames}
        return self.generate(seeds, labels, cond=told, seconds=length.made / self.sample_rate)[..., : length.wanted]

    def _fill(self, audio: Tensor, keep: Tensor, seeds: Seeds, labels: Labels, cond: Given) -> Tensor:
        """The clip where ``keep`` (bool ``[T]``) is True; the network looks no further from the rest than a window."""
        if keep.all():
            return audio.clone()
        missing = (~keep).nonzero()
        start = max(int(missing[0]) - self.num_samples, 0)
        near = slice(start, int(missing[-1]) + 1 + self.num_samples)
        seen = keep[near]

        def kept(clip: Tensor) -> Constraint:
            mask = F.pad(seen, (0, clip.shape[-1] - len(seen)), value=False)
            return Kept(clip, mask.to(clip.device).expand(len(clip), 1, -1))

        made = audio.clone()
        edited = self._edit(audio[..., near], seeds, labels, cond, kept)
        made[..., near] = torch.where(seen.to(audio.device), audio[..., near], edited)
        return made

    def _edit(
        self,
        audio: Tensor,
        seeds: Seeds,
        labels: Labels,
        cond: Given,
        constraint: Callable[[Tensor], Constraint] | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """``diffusion.editing.vary.edit`` of audio; ``constraint`` is made of the padded clip."""
        self._check(audio, seeds)
        length = self._length(audio.shape[-1])
        padded = length.pad(audio.to(self.device))
        x0 = edit(
            self._net(length),
            self.process,
            self.sampler,
            self.representation.encode(padded),
            seeds,
            self._told(len(audio), labels, cond),
            strength=strength,
            constraint=constraint and known_of(self.representation, padded, constraint),
            guidance=self._guided(length, bool(labels or cond)),
        )
        return self.representation.decode(x0)[..., : length.wanted].to(audio.device)
