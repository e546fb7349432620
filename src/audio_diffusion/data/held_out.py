"""Selects held-out clips to show, with titles, above generated ones in a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from audio_diffusion.checkpoints.redaction import without_redacted
from audio_diffusion.data.remote import RemoteError, RemoteStore
from audio_diffusion.data.shards.shards import Shards, held_out
from audio_diffusion.data.stream import Crop, read_in_order


def _open(config: Mapping[str, Any], shards: str | None) -> Shards | None:
    """The shards that the user names, else the held-out ones of training; None if those are not available."""
    data = config.get("data") or {}
    if not data and not shards:
        return None  # an exported model knows nothing of them
    store = data.get("store") or {}
    try:
        patterns = [shards] if shards else list(held_out(data["train"], data["val"]).values())
        remote = RemoteStore(None, storage_options=without_redacted(store.get("storage_options")))
        return Shards.open(patterns, remote, data.get("audio_member"))
    except (ValueError, RemoteError):
        if shards:
            raise
        return None


def real_clips(
    config: Mapping[str, Any], shards: str | None, labels: Sequence[str] | None, count: int
) -> list[tuple[str, Tensor | None]]:
    """(title, clip) of ``count`` held-out clips, to be shown above what was generated.

    ``config`` is that of the run. With ``labels`` there is one place a label, its clip of that label and each another;
    None where there are not so many. Without, the first clips are taken, whatever they are, and titled by their own
    words, label or key.
    """
    audio, classes = config["audio"], list(config["classes"])
    real = _open(config, shards)
    if real is None:
        return []
    words = [name for name in (config.get("data") or {}).get("fields") or [] if name == "caption"]
    wanted = [classes.index(label) for label in labels[:count]] if labels else [-1] * count
    found: list[tuple[str, Tensor | None]] = [(label, None) for label in (labels or [])[:count]] or [("", None)] * count
    clips = read_in_order(real, audio["sample_rate"], audio["channels"], audio["num_samples"], classes, words)
    for clip, audio_of_clip in clips:
        slot = next(
            (i for i, want in enumerate(wanted) if found[i][1] is None and (not labels or want == clip.label)), None
        )
        if slot is not None and clip.num_valid:
            found[slot] = _title(clip, classes), audio_of_clip
        if all(kept is not None for _, kept in found):
            break
    return found if any(kept is not None for _, kept in found) else []


def _title(clip: Crop, classes: list[str]) -> str:
    """The title of a clip: its own words, else its label, else its key."""
    words = next((value for value in clip.fields if isinstance(value, str)), "")
    return words or (classes[clip.label] if clip.label >= 0 else clip.key.rpartition("/")[2])
