"""Embeddings of real clips on disk, found by the content of the clips, so that they are computed once for all runs."""

import hashlib
import logging
import os
import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from audio_diffusion.metrics.embeddings.embedding import Embedded, Embedding, embed_clips, join, nothing_of

log = logging.getLogger(__name__)

VARIABLE = "AUDIO_DIFFUSION_CACHE"  # in the environment: the folder of "auto"
_FORMAT = "1"  # of the files, and of how a clip is resampled and mixed to mono
_PART = 256  # clips that are embedded before they are written


def default_folder() -> Path:
    """The folder of "auto": in $AUDIO_DIFFUSION_CACHE, else in the user's cache folder."""
    if named := os.environ.get(VARIABLE):
        return Path(named, "embeddings")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "audio_diffusion", "embeddings")


class _Kept(NamedTuple):
    """The vectors of one clip, ``[windows, E]``, and the number of windows that were dropped."""

    vectors: Tensor
    num_silent: int


class EmbeddingCache:
    """The vectors of clips, by the embedding's name and the hash of the clip's samples and sample rate.

    Another file, crop or channel is another clip, and another version or window of the embedding another name: neither
    finds an old vector. Vectors of up to 256 clips are in one file, 4 bytes for each component of each window. Files
    are complete once they have their name, so that several programs may use the folder at once. A folder that cannot be
    written to, and a damaged file, cost the time to embed the clips, and a warning.

    Args:
        folder: the folder; "auto" for ``default_folder()``, None for no cache.

    Attributes:
        found: number of clips that were found.
        embedded: number of clips that were not, and were embedded.
    """

    def __init__(self, folder: str | None = "auto"):
        self.folder = None if folder is None else default_folder() if folder == "auto" else Path(folder)
        self.found = self.embedded = 0
        self._known: dict[str, _Kept] | None = None  # by hash of the clip; None: not read yet
        self._new: dict[str, _Kept] = {}  # not written yet
        self._embedding = ""

    def embed(self, embedding: Embedding, clips: Sequence[Tensor], sample_rate: int) -> Embedded:
        """``embed_clips``, where it takes the vectors of clips that are known from the cache."""
        if self.folder is None:
            self.embedded += len(clips)
            return embed_clips(embedding, clips, sample_rate)
        if self._embedding != embedding.name:
            self.flush()
            self._embedding, self._known = embedding.name, None
        if self._known is None:
            self._known = self._read()
        parts = []
        for number, clip in enumerate(clips):
            key = _hash_of(clip, sample_rate)
            kept = self._known.get(key)
            if kept is None:
                try:
                    part = embed_clips(embedding, [clip], sample_rate)
                except ValueError as error:
                    raise ValueError(str(error).replace("clip 0:", f"clip {number}:", 1)) from error
                self._known[key] = self._new[key] = _Kept(part.vectors, part.num_silent)
                self.embedded += 1
            else:
                index = torch.zeros(len(kept.vectors), dtype=torch.int64)
                part = Embedded(kept.vectors, index, 1, kept.num_silent, embedding.name)
                self.found += 1
            parts.append(part)
        if len(self._new) >= _PART:
            self.flush()
        return join([nothing_of(embedding), *parts])

    def describe(self) -> str:
        """One line on what was found, and how large the folder is; empty without a cache."""
        if self.folder is None or not self.found + self.embedded:
            return ""
        self.flush()
        size = sum(path.stat().st_size for path in self.folder.rglob("*.pt")) / 1e6
        count = f"{self.found} of {self.found + self.embedded}"
        return f"{count} real clips had been embedded before, and were found in {self.folder} ({size:.1f} MB)"

    def flush(self) -> None:
        """Writes the new vectors."""
        new, self._new = self._new, {}
        if self.folder is None or not new:
            return
        content = {
            "embedding": self._embedding,
            "clips": list(new),
            "windows": [len(part.vectors) for part in new.values()],
            "silent": [part.num_silent for part in new.values()],
            "vectors": torch.cat([part.vectors for part in new.values()]),
        }
        folder = self._folder()
        name = hashlib.sha256("".join(new).encode()).hexdigest()[:32]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(".part", name, folder)
            try:
                with os.fdopen(handle, "wb") as f:
                    torch.save(content, f)
                os.replace(part, folder / f"{name}.pt")
            except BaseException:
                Path(part).unlink(missing_ok=True)
                raise
        except OSError as error:
            log.warning(f"the embeddings of {len(new)} clips cannot be kept in {folder}: {error}")

    def _folder(self) -> Path:
        """The folder of the present embedding."""
        assert self.folder is not None
        return self.folder / hashlib.sha256(f"{_FORMAT} {self._embedding}".encode()).hexdigest()[:16]

    def _read(self) -> dict[str, "_Kept"]:
        """All vectors of the present embedding; they stay on disk until they are used."""
        known: dict[str, _Kept] = {}
        for path in sorted(self._folder().glob("*.pt")):
            try:
                content = torch.load(path, "cpu", weights_only=True, mmap=True)
                if content["embedding"] != self._embedding:
                    raise ValueError(f"expected {self._embedding}, got {content['embedding']}")
                vectors = content["vectors"].split(content["windows"])
                for key, part, silent in zip(content["clips"], vectors, content["silent"], strict=True):
                    known[key] = _Kept(part, silent)
            except (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
                log.warning(f"{path} is not used, and its clips are embedded again: {error}")
        return known


def _hash_of(clip: Tensor, sample_rate: int) -> str:
    """The hash of a clip's samples, shape and sample rate."""
    samples = clip.detach().float().cpu().contiguous()
    digest = hashlib.sha256(f"{sample_rate} {tuple(samples.shape)}".encode())
    digest.update(samples.numpy().data)
    return digest.hexdigest()


class Vectors:
    """The vectors of clips of several sources; those of generated clips are never cached.

    Args:
        embedding: the embedding.
        cache: for the others.
    """

    def __init__(self, embedding: Embedding, cache: EmbeddingCache):
        self.embedding, self.cache = embedding, cache
        self.sample_rate = 0
        self._parts: dict[str, list[Embedded]] = {}

    def start(self, sample_rate: int) -> None:
        """Forgets all clips; those to come have this sample rate, Hz."""
        self.sample_rate, self._parts = sample_rate, {}

    def add(self, clips: Sequence[Tensor], source: str) -> None:
        """Embeds clips, each ``[C, T]``."""
        if source == "generated":
            found = embed_clips(self.embedding, clips, self.sample_rate)
        else:
            found = self.cache.embed(self.embedding, clips, self.sample_rate)
        self._parts.setdefault(source, []).append(found)

    def forget(self, source: str) -> None:
        """Forgets the clips of a source."""
        self._parts.pop(source, None)

    def of(self, source: str) -> Embedded:
        """The vectors of a source; its cached ones are on disk from now on."""
        self.cache.flush()
        return join([nothing_of(self.embedding), *self._parts.get(source, [])])
