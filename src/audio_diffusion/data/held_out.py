"""Selects held-out clips and their titles, for pictures that show them above generated clips."""

from collections.abc import Sequence

from torch import Tensor

from audio_diffusion.checkpoints.redaction import without_redacted
from audio_diffusion.data.remote import RemoteError, RemoteStore
from audio_diffusion.data.shards.find import held_out
from audio_diffusion.data.shards.shards import Shards
from audio_diffusion.data.stream import Crop, read_in_order
from audio_diffusion.data.training_data import CropFormat, TrainingData


def store_of(data: TrainingData | None) -> RemoteStore:
    """Creates a store that reads remote shards with the options used in training."""
    return RemoteStore(None, storage_options=without_redacted(data.storage_options if data else None))


def member_of(data: TrainingData | None) -> str | None:
    """Returns the ending of the members that contain audio; None if clips have only one."""
    return data.audio_member if data else None


def _open(data: TrainingData | None, shards: str | None) -> Shards | None:
    """Opens the shards that the user named, else the held-out ones of training; None if those are not available."""
    try:
        if shards:
            return Shards.open([shards], store_of(data), member_of(data))
        if data is None:
            return None  # an exported model does not store the paths of its data
        return Shards.open(list(held_out(data.train, data.val).values()), store_of(data), member_of(data))
    except (ValueError, RemoteError):
        if shards:
            raise
        return None


def real_clips(
    data: TrainingData | None,
    shards: str | None,
    crop: CropFormat,
    classes: Sequence[str],
    labels: Sequence[str] | None,
    count: int,
) -> list[tuple[str, Tensor | None]]:
    """Returns (title, clip) of ``count`` held-out clips, to be shown above generated ones.

    Args:
        data: the shards that the model was trained on; None if they are not known.
        shards: shards to take the clips from instead.
        crop: format of the clips.
        classes: class names of the training data.
        labels: for each of these labels, a different clip with it is returned, or None if there are not enough. Without
            labels, the first clips are returned, with their caption, label or key as title.
        count: number of clips.
    """
    real = _open(data, shards)
    if real is None:
        return []
    words = [name for name in (data.fields if data else ()) if name == "caption"]
    wanted = [classes.index(label) for label in labels[:count]] if labels else [-1] * count
    found: list[tuple[str, Tensor | None]] = [(label, None) for label in (labels or [])[:count]] or [("", None)] * count
    clips = read_in_order(real, crop.sample_rate, crop.channels, crop.num_samples, classes, words)
    for clip, audio_of_clip in clips:
        slot = next(
            (i for i, want in enumerate(wanted) if found[i][1] is None and (not labels or want == clip.label)), None
        )
        if slot is not None and clip.num_valid:
            found[slot] = _title(clip, classes), audio_of_clip
        if all(kept is not None for _, kept in found):
            break
    return found if any(kept is not None for _, kept in found) else []


def _title(clip: Crop, classes: Sequence[str]) -> str:
    """Returns the title of a clip: its text, else its label, else its key."""
    words = next((value for value in clip.fields if isinstance(value, str)), "")
    return words or (classes[clip.label] if clip.label >= 0 else clip.key.rpartition("/")[2])
