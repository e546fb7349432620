"""Writes results: audio files, one json that records how they were made, and one picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from audio_diffusion.checkpoints.files import blocks_of, sha256_of
from audio_diffusion.cli.samples import Result, Sample
from audio_diffusion.cli.tasks.task import Task
from audio_diffusion.data.audio.reading import write_audio
from audio_diffusion.inference.levels import trouble
from audio_diffusion.metrics import pictures

COLUMNS, ROWS = 10, 5  # maximum numbers of columns and rows of clips in the picture

_EXACT = {"PCM_U8": "PCM_16", "PCM_S8": "PCM_16", "PCM_16": "PCM_16", "PCM_24": "PCM_24"}


def subtype_of(sample: Sample, task: Task, format: str) -> str:
    """Chooses the encoding of a file, so that the kept parts of an input are stored exactly if the format permits.

    Generated audio has 16 bits. An edited file has as many bits as its input (at least 16), or floats if the input was
    converted or has another encoding than 8, 16 or 24 bits, or if the task may exceed full scale (declip). FLAC does
    not support floats and gets 24 bits instead.
    """
    files = [(f.info.format.split("/")[-1], f.converted) for f in sample.files if f.info]
    if not files:
        return "PCM_16"
    kinds = {None if converted else _EXACT.get(kind) for kind, converted in files}
    if task.exceeds_full_scale or None in kinds:
        return "PCM_24" if format == "flac" else "FLOAT"
    return max(str(kind) for kind in kinds)  # PCM_24 if both occur


def hash_of(path: Path) -> str:
    """Returns the hash of a file, or of all files in a folder in the order of their names."""
    parts = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return sha256_of(block for part in parts for block in blocks_of(part))


def write_files(
    requests: Sequence[Sample], results: Sequence[Result], folder: Path, sample_rate: int, task: Task, format: str
) -> list[dict[str, Any]]:
    """Writes <index>_<name>.<format>; returns the record of each file."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for sample, result in zip(requests, results, strict=True):
        subtype = subtype_of(sample, task, format)
        for clip, suffix in zip(result.clips, result.suffixes, strict=True):
            file = f"{sample.index:03d}_{sample.name}{suffix}.{format}"
            write_audio(folder / file, clip, sample_rate, subtype)
            over = int((clip.abs() > 1).sum()) if subtype != "FLOAT" else 0
            about = {"seed": sample.seed, "label": sample.label, "cond": sample.written_cond}
            made_of = [
                {"file": str(f.path), "sha256": f.sha256, "converted": f.converted or None} for f in sample.files
            ]
            row = {"file": file, **about, "input": made_of, "subtype": subtype, "samples_clipped": over}
            wrong = {"trouble": words} if (words := trouble(clip)) else {}
            rows.append({**row, **wrong, **result.figures})
    return rows


def write_record(path: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes the json with the records of all files."""
    path.write_text(json.dumps({**about, "files": rows}, indent=1, ensure_ascii=False, default=str), encoding="utf-8")


def draw(
    shown: Sequence[tuple[Sample, Result]],
    real: Sequence[tuple[str, Tensor | None]],
    sample_rate: int,
    task: Task,
    path: Path,
) -> Path:
    """Draws the picture: inputs, or real clips with titles, above the results.

    If samples have several clips each, there is one row per sample instead.
    """
    names, of_files = [sample.name for sample, _ in shown], bool(shown[0][0].files)
    if len(shown[0][1].clips) > 1:
        rows = [
            pictures.Row(
                sample.name, result.clips[:COLUMNS], [suffix.lstrip("_") for suffix in result.suffixes[:COLUMNS]]
            )
            for sample, result in shown[:ROWS]
        ]
    else:
        made = [
            task.regenerated(sample.files[0].clip.shape[-1] / sample_rate) if sample.files else []
            for sample, _ in shown
        ]
        title = "result" if of_files else "generated"
        rows = [pictures.Row(title, [result.clips[0] for _, result in shown], names, made)]
        if of_files and all(sample.files[0].info for sample, _ in shown):
            rows.insert(0, pictures.Row("input", [sample.files[0].clip for sample, _ in shown], names))
        elif real:
            titles = [title if clip is not None else f"no {title!r}\nis held out" for title, clip in real]
            rows.insert(0, pictures.Row("real", [clip for _, clip in real], titles))
    return pictures.save(pictures.sample_grid(rows, sample_rate), path)
