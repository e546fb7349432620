"""Statistics of packed data; they are stored with each shard and summed over shards."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from audio_diffusion.packing.form import FLOOR_DB
from audio_diffusion.packing.prepare import Clip, Drop

_PER_DECADE = 10  # bars per decade in the histogram of durations
_NAMED = 5  # number of silent places that are named for one source


@dataclass
class Tally:
    """Counts of packed clips and of omitted audio.

    Attributes:
        clips, seconds: number and total duration of packed clips.
        labels: number of clips of each label.
        unlabelled: number of clips without a label.
        durations: histogram; bar n begins at 10^(n/10) seconds.
        levels: histogram; bar n begins at n dBFS.
        shortest, longest: durations in seconds.
        level_sum: sum of the levels, dBFS.
        loudness_limited: number of clips whose peak prevented the requested loudness.
        loudness_unknown: number of clips too quiet to have a loudness.
        clipped_clips, clipped_samples: numbers of clips and samples above full scale when converted to 16 bits.
        formats: number of clips of each sample rate and number of channels, such as ``44100/2``.
        digital_silence: number of clips that contain only zeros.
        silent: for each source, the number of omitted silent pieces, their seconds, and the starts of the first ones.
        refused: (file, reason) of files that were not packed.
        missing: (file, seconds, position and reason) of files that were packed although audio is missing.
    """

    clips: int = 0
    seconds: float = 0.0
    labels: Counter[str] = field(default_factory=Counter)
    unlabelled: int = 0
    durations: Counter[int] = field(default_factory=Counter)
    levels: Counter[int] = field(default_factory=Counter)
    shortest: float = math.inf
    longest: float = 0.0
    level_sum: float = 0.0
    loudness_limited: int = 0
    loudness_unknown: int = 0
    clipped_clips: int = 0
    clipped_samples: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    digital_silence: int = 0
    silent: dict[str, tuple[int, float, list[float]]] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    missing: list[tuple[str, float, str]] = field(default_factory=list)

    def add(self, event: Clip | Drop) -> None:
        """Counts a clip, or audio that was left out."""
        if isinstance(event, Drop):
            if event.kind == "refused":
                self.refused.append((event.name, event.reason))
            elif event.kind == "missing":
                self.missing.append((event.name, event.seconds, event.reason))
            else:
                self._add_silent(event.name, 1, event.seconds, [event.start_s])
            return
        meta = event.meta
        seconds, label = meta["frames"] / meta["sample_rate"], meta.get("label")
        self.clips += 1
        self.seconds += seconds
        self.labels.update([] if label is None else [label])
        self.unlabelled += label is None
        self.durations[math.floor(_PER_DECADE * math.log10(seconds) + 1e-9)] += 1
        self.levels[math.floor(meta["level_db"])] += 1
        self.formats[f"{meta['sample_rate']}/{meta['channels']}"] += 1
        self.digital_silence += meta["level_db"] <= FLOOR_DB
        self.level_sum += meta["level_db"]
        self.shortest, self.longest = min(self.shortest, seconds), max(self.longest, seconds)
        self.loudness_limited += "gain_limited" in meta
        self.loudness_unknown += "lufs" in meta and meta["lufs"] is None
        self.clipped_clips += "clipped" in meta
        self.clipped_samples += meta.get("clipped", 0)

    def _add_silent(self, name: str, count: int, seconds: float, starts: list[float]) -> None:
        before = self.silent.get(name, (0, 0.0, []))
        self.silent[name] = (before[0] + count, before[1] + seconds, [*before[2], *starts][:_NAMED])

    def merge(self, other: "Tally") -> None:
        """Adds the counts of another tally."""
        for name, silent in other.silent.items():
            self._add_silent(name, *silent)
        self.shortest, self.longest = min(self.shortest, other.shortest), max(self.longest, other.longest)
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            elif name not in ("shortest", "longest", "silent"):
                setattr(self, name, getattr(self, name) + value)

    def plain(self) -> dict[str, Any]:
        """Converts the tally to json data."""
        return dict(vars(self))

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "Tally":
        """Creates a tally from json data, in which keys are strings and pairs are lists."""
        tally = cls(**plain)
        tally.labels = Counter(plain["labels"])
        tally.durations = Counter({int(n): count for n, count in plain["durations"].items()})
        tally.levels = Counter({int(n): count for n, count in plain["levels"].items()})
        tally.formats = Counter(plain.get("formats", {}))
        tally.silent = {name: (count, seconds, starts) for name, (count, seconds, starts) in plain["silent"].items()}
        tally.refused = [(name, reason) for name, reason in plain["refused"]]
        tally.missing = [(name, seconds, reason) for name, seconds, reason in plain.get("missing", [])]
        return tally

    def silent_rows(self, silence_db: float | None) -> list[tuple[str, str]]:
        """Returns a row of ``refused.csv`` for each source with omitted silent pieces."""
        return [
            (
                name,
                f"silent (below {silence_db:g} dBFS rms): {count} piece{'s' * (count > 1)}, {seconds:.3f} s, at "
                + ", ".join(f"{start:g}" for start in starts) + (" .." if count > len(starts) else "") + " s",
            )
            for name, (count, seconds, starts) in self.silent.items()
        ]  # fmt: skip

    def statistics(self) -> dict[str, Any]:
        """Returns the statistics for the data set's manifest."""
        mean_s, mean_db = self.seconds / max(self.clips, 1), self.level_sum / max(self.clips, 1)
        return {
            "labels": dict(sorted(self.labels.items())),
            "unlabelled": self.unlabelled,
            "durations_s": {
                "shortest": self.shortest if self.clips else None,
                "mean": round(mean_s, 4),
                "longest": self.longest,
                "histogram": [[round(10 ** (n / _PER_DECADE), 5), self.durations[n]] for n in sorted(self.durations)],
            },
            "levels_dbfs": {
                "mean": round(mean_db, 2),
                "histogram": [[n, self.levels[n]] for n in sorted(self.levels)],
            },
            "formats": [
                {"sample_rate": int(rate), "channels": int(channels), "clips": count}
                for (rate, channels), count in sorted(
                    ((name.split("/"), count) for name, count in self.formats.items()), key=lambda item: -item[1]
                )
            ],
            "digital_silence": self.digital_silence,
            "silent": {
                "pieces": sum(count for count, _, _ in self.silent.values()),
                "seconds": round(sum(seconds for _, seconds, _ in self.silent.values()), 3),
            },
            "missing": {
                "files": len(self.missing),
                "seconds": round(sum(seconds for _, seconds, _ in self.missing), 3),
            },
            "clipped": {"clips": self.clipped_clips, "samples": self.clipped_samples},
            "loudness": {"limited": self.loudness_limited, "unknown": self.loudness_unknown},
        }
