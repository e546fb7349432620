"""Chooses held-out data: by a manifest, by the hash of each file's name, or, for few files, the end of each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from audio_diffusion.data.audio.reading import AudioInfo
from audio_diffusion.data.audio.recording import resampled_length
from audio_diffusion.data.wording import counted
from audio_diffusion.packing.form import Cut, Form, Part, cut_of
from audio_diffusion.packing.sources import Source, split_of

FEW = 2  # with at most this many files, no whole file is held out
_PIECE_S = 600.0  # longest piece of a file without segment_s
_MAX_SAMPLES = 1 << 26  # maximum number of samples over all channels of such a piece
_MOST_PIECES = 100  # pieces that a short file is cut into if val_fraction is small


@dataclass(frozen=True)
class HeldOut:
    """How the files are divided.

    Attributes:
        splits: train, val or test for each source; train for those whose end alone is held out.
        stretches: names of the sources whose end is held out, and whose beginning is trained on.
        note: one line about the division if it deviates from the request.
    """

    splits: list[str]
    stretches: frozenset[str]
    note: str


def hold_out(
    sources: Sequence[Source],
    plan: Sequence[AudioInfo | str],
    val_fraction: float,
    copies: Sequence[Sequence[int]] = (),
) -> HeldOut:
    """Assigns files to splits. The result depends only on their names, lengths, given splits and copies.

    Splits given by a manifest or sidecar are kept. Other files are held out by the hash of their names, and copies of a
    file together. If that leaves no file to hold out or to train on, one whole file is held out: the one whose share of
    all audio is nearest to ``val_fraction``. If there are only one or two files, the end of each is held out.

    Args:
        sources: the files.
        plan: properties of each file, or the reason why it is refused.
        val_fraction: share to hold out, 0 to 1.
        copies: groups of files with the same content, as indices into ``sources``; the first file of a group decides.

    Raises:
        ValueError: for a split of an unknown name.
    """
    splits = [split_of(source, val_fraction) for source in sources]
    usable = [i for i, info in enumerate(plan) if isinstance(info, AudioInfo)]
    is_given = [source.fields.get("split") is not None for source in sources]
    groups = [[i for i in group if isinstance(plan[i], AudioInfo)] for group in copies]
    for group in groups:
        decides = next((i for i in group if is_given[i]), group[0] if group else None)
        for i in group:
            if decides is not None and not is_given[i]:
                splits[i], is_given[i] = splits[decides], is_given[decides]
    free = [i for i in usable if not is_given[i]]
    given = {splits[i] for i in usable if is_given[i]}
    found = {splits[i] for i in usable}
    if val_fraction == 0:
        none = "" if "val" in found else "nothing is held out (val_fraction is 0): training runs without validation"
        return HeldOut(splits, frozenset(), none)
    if {"train", "val"} <= found:
        return HeldOut(splits, frozenset(), "")
    if not free:
        note = "no file is given the split val: training runs without validation" if "train" in found else ""
        return HeldOut(splits, frozenset(), note)

    # the hash has left one of the two splits empty
    for i in free:
        splits[i] = "train"
    if "val" in given:
        return HeldOut(splits, frozenset(), "")
    return _few(sources, plan, val_fraction, splits, free, groups)


def _few(
    sources: Sequence[Source],
    plan: Sequence[AudioInfo | str],
    val_fraction: float,
    splits: list[str],
    free: list[int],
    groups: list[list[int]],
) -> HeldOut:
    """Holds out one of the free files, with its copies, or, if there are at most two, the end of each."""
    together = {i: group for group in groups for i in group}
    seconds = {i: info.duration_s for i, info in enumerate(plan) if isinstance(info, AudioInfo)}
    candidates = [i for i in seconds if splits[i] == "train"]
    contents = {min(together.get(i, [i])) for i in candidates}
    if len(contents) > FEW:
        wanted_s = val_fraction * sum(seconds[i] for i in candidates)

        def distance(i: int) -> tuple[float, str]:
            return abs(sum(seconds[j] for j in together.get(i, [i])) - wanted_s), sources[i].digest

        chosen = min(free, key=distance)
        for i in together.get(chosen, [chosen]):
            splits[i] = "val"
        with_copies = " and its copies" if chosen in together and len(together[chosen]) > 1 else ""
        note = f"held out because there are few files: {sources[chosen].name!r}{with_copies}"
        return HeldOut(splits, frozenset(), note)
    stretches = frozenset(sources[i].name for i in free)
    which = repr(sources[free[0]].name) if len(free) == 1 else f"each of {counted(len(free), 'file')}"
    note = f"held out because there are few files: the last {100 * val_fraction:.3g} % of {which}"
    return HeldOut(splits, stretches, note)


def cutting(form: Form) -> Form:
    """Returns the form in which a file with a held-out end is examined: it is cut, therefore encoded again, and may
    have any length."""
    return replace(form, format="flac" if form.format == "keep" else form.format, segment_s=form.segment_s or 1.0)


def parts_of(info: AudioInfo, form: Form, val_fraction: float) -> dict[str, Part]:
    """Returns the pieces of a file that are trained on, and those at its end that are held out, by split.

    The pieces are those of ``segment_s``. Without it there are two pieces, or equal ones for a file longer than ten
    minutes.
    """
    cut = cut_of(info, form)
    if cut.num_pieces == 1:
        cut = _equal_pieces(info, cut, val_fraction)
    held = min(max(round(val_fraction * cut.num_pieces), 1), cut.num_pieces - 1)
    first = cut.num_pieces - held
    return {"train": Part(cut, 0, first), "val": Part(cut, first, cut.num_pieces)}


def _equal_pieces(info: AudioInfo, whole: Cut, val_fraction: float) -> Cut:
    """Returns how to cut a file that ``segment_s`` does not cut."""
    total = resampled_length(info, whole.sample_rate)
    longest = min(int(_PIECE_S * whole.sample_rate), _MAX_SAMPLES // whole.channels)
    if total <= longest and val_fraction <= 0.5:
        piece = max(total - max(round(total * val_fraction), 1), 1)
    else:
        finest = min(round(1 / min(val_fraction, 1 - val_fraction)), _MOST_PIECES)
        piece = -(-total // max(math.ceil(total / longest), finest, 2))
    return Cut(whole.sample_rate, whole.channels, piece, -(-total // piece), 0)
