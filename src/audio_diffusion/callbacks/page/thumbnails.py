"""Small spectrograms of sounds for the page."""

import os
from base64 import b64encode
from io import BytesIO
from pathlib import Path

from audio_diffusion.callbacks.page.records import Clip, Round, Run

FOLDER = "page"  # folder of the spectrograms, in the run's folder
MOST_EMBEDDED = 150  # maximum number of spectrograms embedded for a folder of sounds, which limits the size of the page
MOST_COLUMNS = 160  # maximum width of a spectrogram; of more columns, the maximum of neighbours is shown


def thumbnail_of(run: Run, found: Round, clip: Clip) -> Path:
    """Returns the path of a sound's spectrogram."""
    return run.folder / FOLDER / found.folder.name / f"{clip.slot}.png"


def draw_missing(run: Run) -> None:
    """Draws the missing spectrograms of a run's sounds; notes those that cannot be drawn."""
    failed: list[str] = []
    for found in run.rounds:
        for clip in found.clips:
            path = thumbnail_of(run, found, clip)
            try:
                if not path.exists() or path.stat().st_mtime < clip.file.stat().st_mtime:
                    _save(clip.file, path)
            except Exception as error:  # a damaged sound, a folder that cannot be written
                failed.append(f"{clip.file}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    if failed:
        run.notes.append(f"{len(failed)} spectrogram{'s' * (len(failed) > 1)} cannot be drawn, e.g. of {failed[0]}")


def embedded(run: Run) -> dict[str, str]:
    """Returns the spectrograms of a folder of sounds as data URLs, by slot, without those that cannot be drawn."""
    found: dict[str, str] = {}
    clips = [clip for each in run.rounds for clip in each.clips]
    for clip in clips[:MOST_EMBEDDED]:
        try:
            picture = BytesIO()
            _draw(clip.file, picture)
            found[clip.slot] = f"data:image/png;base64,{b64encode(picture.getvalue()).decode()}"
        except Exception as error:
            run.notes.append(f"the spectrogram of {clip.file.name} cannot be drawn: {error}")
    if len(clips) > MOST_EMBEDDED:
        run.notes.append(f"spectrograms are drawn for the first {MOST_EMBEDDED} of {len(clips)} sounds")
    return found


def _save(audio: Path, path: Path) -> None:
    """Draws a sound into a file, which gets its name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    _draw(audio, part)
    os.replace(part, path)


def _draw(audio: Path, target: Path | BytesIO) -> None:
    """Draws a sound as PNG."""
    import soundfile  # imported here, since a page whose spectrograms exist needs neither soundfile nor torch
    import torch
    from matplotlib.image import imsave

    from audio_diffusion.metrics.pictures import FLOOR_DB, mel_db

    samples, sample_rate = soundfile.read(audio, dtype="float32", always_2d=True)
    if len(samples) < 64:
        raise ValueError(f"expected at least 64 samples, got {len(samples)}")
    picture = mel_db(torch.from_numpy(samples.T.copy()), sample_rate)
    columns = torch.nn.functional.adaptive_max_pool1d(picture, min(MOST_COLUMNS, picture.shape[-1]))
    imsave(target, columns.numpy(), vmin=FLOOR_DB, vmax=0, cmap="magma", origin="lower", format="png")
