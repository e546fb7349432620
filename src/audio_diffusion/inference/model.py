"""Generates and edits audio with a trained model."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio_diffusion.data.audio.recording import read_file
from audio_diffusion.data.training_data import CropFormat
from audio_diffusion.diffusion.editing.constraints import Constraint, Kept, LowBand, Unclipped
from audio_diffusion.diffusion.editing.inversion import Interpolation, interpolate
from audio_diffusion.diffusion.editing.noise import estimated_noise_std, noise_std_at, remove_noise
from audio_diffusion.diffusion.editing.through import constraint_on_x0
from audio_diffusion.diffusion.editing.vary import edit
from audio_diffusion.diffusion.generation import Sampler, evenly, generate
from audio_diffusion.diffusion.guidance import Guidance
from audio_diffusion.diffusion.levels import describe_levels
from audio_diffusion.diffusion.process import Diffusion, Net
from audio_diffusion.diffusion.seeding import SeededNoise
from audio_diffusion.inference.arguments import check_audio, clipped_samples, kept_samples, samples_of
from audio_diffusion.inference.lengths import Length
from audio_diffusion.inference.origin import Origin
from audio_diffusion.inference.targets import nearest
from audio_diffusion.networks.conditions.condition import Conditions, Values
from audio_diffusion.networks.conditions.mel import FLOOR, Mel
from audio_diffusion.representations.representation import Representation

Seeds = Sequence[int]
Labels = Sequence[str] | None
Given = Mapping[str, Values | Sequence[float]] | None


@dataclass(repr=False)
class Model:
    """A trained model, ready to generate and edit. ``audio_diffusion.load`` creates it.

    Audio is ``[B, C, T]``, float32, full scale ±1, at ``sample_rate``; times are in seconds. In every method, result i
    depends only on ``seeds[i]``, clip i and its own conditions. Conditions are ``labels`` (class names) and ``cond``
    (other conditions by name, B values each: words, numbers with NaN for "not given", embeddings ``[B, ..]``, or audio
    ``[B, C, T]`` for a mel). Omitted conditions are "not given". The parts of a clip that are kept are returned bit for
    bit. ``using`` changes the sampler and guidance.

    Args:
        net: in eval mode.
        process: schedule and parameterization that it was trained with.
        representation: conversion between audio and x0.
        sampler: the sampler.
        crop: format of the audio that it was trained on.
        guidance_scale: default guidance scale, that of the run; 1 (no guidance) for a model without conditions.
        origin: the training and the file that it comes from.
        guidance: None for that of ``guidance_scale``.
    """

    net: nn.Module
    process: Diffusion
    representation: Representation
    sampler: Sampler
    crop: CropFormat
    guidance_scale: float
    origin: Origin
    guidance: Guidance | None = None

    def __repr__(self) -> str:
        """One line with the network, the form of its audio, its conditions and its source."""
        parameters = sum(p.numel() for p in self.net.parameters()) / 1e6
        conditions = ", ".join(self.conditions.by_name) or "none"
        channels = {1: "mono", 2: "stereo"}.get(self.channels, f"{self.channels} channels")
        return (
            f"{type(self).__name__}({type(self.net).__name__} of {parameters:.2f} M parameters, {self.sample_rate} Hz "
            f"{channels}, {self.num_samples / self.sample_rate:.2f} s, conditions: {conditions}, step {self.step}, "
            f"{self.weights} weights, on {self.device}, from {self.source})"
        )

    @property
    def sample_rate(self) -> int:
        """Sample rate of the audio, Hz."""
        return self.crop.sample_rate

    @property
    def channels(self) -> int:
        """Number of channels C of the audio."""
        return self.crop.channels

    @property
    def num_samples(self) -> int:
        """Number of samples T that the network was trained on."""
        return self.crop.num_samples

    @property
    def step(self) -> int:
        """Optimizer step of the checkpoint."""
        return self.origin.step

    @property
    def weights(self) -> str:
        """Kind of the weights, "ema" or "raw"."""
        return self.origin.weights

    @property
    def source(self) -> Path:
        """The file or folder that it was loaded from."""
        return self.origin.source

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.net.parameters()).device

    @property
    def conditions(self) -> Conditions:
        """The network's conditions."""
        return self.net.conditions  # type: ignore[return-value]

    @property
    def mel(self) -> tuple[str, Mel]:
        """The name of the mel condition, and the condition.

        Raises:
            ValueError: for a model without a mel condition.
        """
        for name, condition in self.conditions.by_name.items():
            if isinstance(condition, Mel):
                return name, condition
        raise ValueError(
            f"vocode: expected a model with a mel condition (trained with condition=mel), got one with the "
            f"conditions {', '.join(self.conditions.by_name) or 'none'}"
        )

    @property
    def classes(self) -> list[str]:
        """Class names; empty for a model without labels."""
        return self.origin.classes if "label" in self.conditions.by_name else []

    def _context(self, num: int, labels: Labels, cond: Given) -> dict[str, Tensor]:
        """Converts labels and other conditions of ``num`` clips to the network's tensors, by name."""
        given = dict(cond or {})
        if labels is not None:
            given["label"] = self._index(labels)
        return self.conditions.given(given, num, self.device)

    def _index(self, labels: Sequence[str]) -> Tensor:
        """Converts class names to class indices."""
        if not self.classes:
            raise ValueError("labels: this model takes none")
        for label in labels:
            if label not in self.classes:
                raise ValueError(f"label {label!r} is unknown to this model.{nearest(label, self.classes)}")
        return torch.tensor([self.classes.index(label) for label in labels])

    def _guided(self, length: Length, is_conditional: bool) -> Guidance:
        """The guidance for signals of a length. Without conditions its scale is 1, which saves network calls."""
        guidance = self.guidance or Guidance(self.guidance_scale)
        if guidance.weak is not None:
            return replace(guidance, weak=self._net(length, guidance.weak))
        return guidance if is_conditional or guidance.negative is not None else replace(guidance, scale=1.0)

    def _net(self, length: Length, net: Net | None = None) -> Net:
        """Adapts a network (default: this model's) to signals of a length."""
        return length.net(net or self.net, self.conditions.by_name, self.sample_rate)

    def _length(self, num_samples: int) -> Length:
        hops = [condition.hop for condition in self.conditions.by_name.values() if isinstance(condition, Mel)]
        return Length(num_samples, self.num_samples, self.representation.hop, max(hops, default=1))

    def _encode(self, audio: Tensor, length: Length) -> Tensor:
        """Audio -> x0 of the length that the network takes, on its device."""
        return self.representation.encode(length.pad(audio.to(self.device)))

    def using(self, *, sampler: Sampler | None = None, guidance: Guidance | float | None = None) -> "Model":
        """Returns the same model with another sampler or guidance (a number is its scale); None keeps the current one.

        All methods of the returned model use them. A sampler that does not keep levels on this model's schedule causes
        a warning.
        """
        if sampler is not None:
            with suppress(ValueError):  # more steps than the schedule has: sampling raises this error
                for line in describe_levels(self.process, sampler)[1:]:
                    warnings.warn(line.removeprefix("warning: "), stacklevel=2)
        guidance = Guidance(guidance) if isinstance(guidance, int | float) else guidance
        return replace(self, sampler=sampler or self.sampler, guidance=guidance or self.guidance)

    def read(self, path: str | Path) -> Tensor:
        """Reads an audio file of any sample rate as a clip ``[1, C, T]`` for this model.

        Raises:
            UnusableAudio: if it cannot be decoded, or its channels cannot be converted to this model's.
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
        """Generates one clip per seed.

        Args:
            seeds: one per clip.
            labels: class names, one per clip; required if the label is the model's only condition.
            cond: other conditions by name.
            seconds: duration; None for that of the training crops. Longer clips consist of windows, denoised jointly.
            on_step: called with (t, estimate of the audio) after each network call.

        Raises:
            ValueError: for an unknown label or condition, invalid values of a condition, or missing labels where they
                are required.
        """
        if labels is None and set(self.conditions.by_name) == {"label"}:
            raise ValueError(f"labels: this model needs one per clip, of {', '.join(self.classes)}")
        wanted = self.num_samples if seconds is None else samples_of("seconds", seconds, self.sample_rate)
        length = self._length(wanted)
        given = self._context(len(seeds), labels, cond)
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
        """Returns (t, estimate of the clean audio ``[B, C, T]``) at up to ``num_points`` of the sampler's steps.

        The first is the noisiest and the last is the result.

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
        """Regenerates regions, each (start, end) in seconds, to fit the rest of the clip, which is kept.

        Raises:
            ValueError: for a region outside the clip.
        """
        check_audio(audio, self.channels, self.sample_rate)
        keep = kept_samples(regions, audio.shape[-1], self.sample_rate)
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
        """Extends the clip, which is kept, by ``before`` and ``after`` seconds of generated audio.

        Raises:
            ValueError: if a time is negative, or both are 0.
        """
        check_audio(audio, self.channels, self.sample_rate)
        if not (before >= 0 and after >= 0 and 0 < before + after < math.inf):
            raise ValueError(f"before, after: expected seconds of which one is positive, got {before} and {after}")
        more = round(before * self.sample_rate), round(after * self.sample_rate)
        keep = F.pad(torch.ones(audio.shape[-1], dtype=torch.bool), more)
        return self._fill(F.pad(audio, more), keep, seeds, labels, cond)

    def continue_(
        self, audio: Tensor, seconds: float, seeds: Seeds, labels: Labels = None, *, cond: Given = None
    ) -> Tensor:
        """Appends ``seconds`` of generated audio to the clip, which is kept."""
        samples_of("seconds", seconds, self.sample_rate)
        return self.outpaint(audio, seeds, labels, after=seconds, cond=cond)

    def vary(
        self, audio: Tensor, strength: float, seeds: Seeds, labels: Labels = None, *, cond: Given = None
    ) -> Tensor:
        """Regenerates the clip to the degree ``strength``: 0 returns the clip itself, 1 a fresh sample (SDEdit)."""
        made = self.edit(audio, seeds, labels, cond, strength=strength)
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
        """Interpolates between two clips, which are returned themselves ``at`` 0 and 1: clips ``[B, len(at), C, T]``.

        See ``diffusion.editing.inversion.interpolate``.

        Args:
            first: clips at position 0.
            second: clips at position 1, of the same shape as the first.
            at: positions inside [0, 1].
            labels: class names of all clips; better omitted if the two clips are of different classes.
            cond: other conditions of all clips, likewise.
            strength: how far both clips are inverted towards noise; 1 is all the way.
            num_steps: number of DDIM steps, network calls from noise to a clip; the inversion to noise takes about six
                times as many.

        Raises:
            ValueError: for clips of different shapes, positions outside [0, 1], or a strength outside (0, 1].
        """
        check_audio(first, self.channels, self.sample_rate)
        check_audio(second, self.channels, self.sample_rate)
        if first.shape != second.shape:
            raise ValueError(f"second: expected the first clip's shape {list(first.shape)}, got {list(second.shape)}")
        length = self._length(first.shape[-1])
        given = self._context(len(first), labels, cond)
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
        """Regenerates the band above ``cutoff`` Hz; the band below is kept up to rounding.

        Raises:
            ValueError: for a cutoff outside (0, half the sample rate).
        """
        if not 0 < cutoff < self.sample_rate / 2:
            raise ValueError(f"cutoff: expected Hz inside (0, {self.sample_rate / 2:g}), got {cutoff}")
        part = cutoff / self.sample_rate
        made = self.edit(audio, seeds, labels, cond, lambda clip: LowBand(clip, part))
        return LowBand(audio, part).onto(made)  # again at the clip's own length: the generated signal may be longer

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
        """Regenerates clipped samples, with at least the magnitude they have now; all others are kept.

        Args:
            audio: the clipped clips.
            seeds: one per clip.
            labels: class names, one per clip.
            level: magnitude from which on samples count as clipped; None for each clip's peak, to a 16-bit step.
            clipped: mask of the clipped samples, bool ``[B, C, T]``, instead of a level, for clips that were resampled
                after clipping.
            cond: other conditions by name.

        Raises:
            ValueError: for a level that is not positive.
        """
        check_audio(audio, self.channels, self.sample_rate)
        clipped = clipped_samples(audio, level, clipped)

        def unclipped(clip: Tensor) -> Constraint:
            return Unclipped(clip, F.pad(clipped, (0, clip.shape[-1] - clipped.shape[-1])).to(clip.device))

        made = self.edit(audio, seeds, labels, cond, unclipped)
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
        """Removes white noise from the clip.

        Args:
            audio: the noisy clips.
            seeds: one per clip, for the noise that a stochastic sampler draws.
            labels: class names, one per clip.
            snr_db: signal-to-noise ratio; None to estimate the noise level from the quietest parts of each clip.
            mean: True for the posterior mean, in one network call: the best SNR, but muffled. False continues with the
                sampler to a clip that sounds like the data.
            cond: other conditions by name.
        """
        check_audio(audio, self.channels, self.sample_rate, seeds)
        if not self.representation.elementwise:
            raise ValueError(
                "denoise: expected a model of the waveform (representation=waveform), in which white noise is white; "
                f"this one diffuses {type(self.representation).__name__}"
            )
        length = self._length(audio.shape[-1])
        noisy = self.representation.encode(audio.to(self.device))
        stds = estimated_noise_std(noisy) if snr_db is None else noise_std_at(noisy, snr_db)
        given, cleaned = self._context(len(audio), labels, cond), []
        for i, std in enumerate(stds.tolist()):  # one at a time: each clip has its own noise level, so its own times
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
        """Computes the model's mel spectrogram of clips: ln of the magnitudes, ``[B, C·n_mels, F]``; F·hop is at
        least T.

        Raises:
            ValueError: for a model without a mel condition.
        """
        check_audio(audio, self.channels, self.sample_rate)
        mel, length = self.mel[1], audio.shape[-1]
        whole = max(-(-length // mel.hop), -(-mel.n_fft // mel.hop)) * mel.hop
        return mel.spectrogram(F.pad(audio.to(self.device), (0, whole - length)))

    def vocode(self, sound: Tensor, seeds: Seeds, labels: Labels = None, *, cond: Given = None) -> Tensor:
        """Generates waveforms for mel spectrograms, with a model that has a mel condition.

        Args:
            sound: spectrograms as ``spectrogram`` returns them, which give F·hop samples, or clips ``[B, C, T]`` whose
                spectrograms are computed first.
            seeds: one per clip.
            labels: class names, one per clip.
            cond: other conditions by name.

        Raises:
            ValueError: for a model without a mel condition, or if ``sound`` is neither spectrograms nor clips.
        """
        name, mel = self.mel
        known = mel.is_spectrogram(sound)
        length = self._length(sound.shape[-1] * (mel.hop if known else 1))
        frames = sound.to(self.device) if known else self.spectrogram(sound)
        frames = F.pad(frames, (0, length.made // mel.hop - frames.shape[-1]), value=math.log(FLOOR))
        cond = {**(cond or {}), name: frames}
        return self.generate(seeds, labels, cond=cond, seconds=length.made / self.sample_rate)[..., : length.wanted]

    def _fill(self, audio: Tensor, keep: Tensor, seeds: Seeds, labels: Labels, cond: Given) -> Tensor:
        """Keeps the clip where ``keep`` (bool ``[T]``) is True and generates the rest.

        The network sees at most one window of audio on either side of the missing parts.
        """
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
        edited = self.edit(audio[..., near], seeds, labels, cond, kept)
        made[..., near] = torch.where(seen.to(audio.device), audio[..., near], edited)
        return made

    def edit(
        self,
        audio: Tensor,
        seeds: Seeds,
        labels: Labels,
        cond: Given,
        constraint: Callable[[Tensor], Constraint] | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Regenerates clips under a constraint; the methods above and tasks of your own consist of it.

        Args:
            audio: clips ``[B, C, T]``.
            seeds: one per clip.
            labels: class names, one per clip.
            cond: other conditions by name.
            constraint: called with the clips, padded with silence to the length that is generated; returns what the
                result must satisfy, see ``diffusion.editing.constraints``. None for no constraint.
            strength: 0 returns the clips themselves, 1 fresh samples (SDEdit).
        """
        check_audio(audio, self.channels, self.sample_rate, seeds)
        length = self._length(audio.shape[-1])
        padded = length.pad(audio.to(self.device))
        x0 = edit(
            self._net(length),
            self.process,
            self.sampler,
            self.representation.encode(padded),
            seeds,
            self._context(len(audio), labels, cond),
            strength=strength,
            constraint=constraint and constraint_on_x0(self.representation, padded, constraint),
            guidance=self._guided(length, bool(labels or cond)),
        )
        return self.representation.decode(x0)[..., : length.wanted].to(audio.device)
