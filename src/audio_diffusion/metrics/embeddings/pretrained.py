"""Embeddings by audio models of the transformers library: CLAP, EnCodec, DAC, wav2vec 2.0, HuBERT and the like."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audio_diffusion.metrics.embeddings.embedding import Windows, cut

INSTALL = "pip install -e '.[text]'"
CODECS = ("encodec", "dac")


class Pretrained:
    """Vectors of a pretrained audio model, from a local folder or the Hugging Face hub.

    ============================ =================================================== ==========================
    model                        vector of a window                                  window by default
    ============================ =================================================== ==========================
    CLAP                         its projected audio vector, normalised to length 1  its own, usually 10 s
    EnCodec, DAC                 the encoder's output before quantisation, averaged  1 s
    wav2vec 2.0, HuBERT, WavLM.. the last hidden state, averaged over time           1 s
    ============================ =================================================== ==========================

    Windows follow each other at half their length. Clips shorter than a window are padded with zeros to it (CLAP:
    repeated and padded, as its feature extractor does). A window is dropped if its RMS is below -60 dBFS.

    Weights are read from safetensors only, and no code from the model's repository is run.

    Args:
        model: folder or name on the hub, such as ``laion/clap-htsat-unfused``.
        window_s: length of a window in seconds; None for the default.
        device: of the model.
        batch_size: windows per call.

    Raises:
        ValueError: if transformers is not installed, or the model cannot be found, loaded or used.
    """

    def __init__(self, model: str, window_s: float | None = None, device: str = "cpu", batch_size: int = 8):
        self._model, self._extractor, config = _load(model)
        self._model.to(device)
        self._folder, self._device, self._batch_size = model, device, batch_size
        self.kind: str = config.model_type
        self.sample_rate: int = self._extractor.sampling_rate
        natural = getattr(self._extractor, "max_length_s", 10) if self.kind == "clap" else 1.0
        self.window_s = float(window_s if window_s is not None else natural)
        if self.window_s <= 0:
            raise ValueError(f"window_s: expected a positive number, got {window_s}")
        self._length = max(1, round(self.window_s * self.sample_rate))
        self.name = f"{self.kind} {Path(model).name}@{_revision(model, config)}, {self.window_s:g} s"
        with torch.no_grad():
            self.width: int = self._vectors(torch.zeros(1, self._length)).shape[1]

    @torch.no_grad()
    def embed(self, audio: Tensor) -> Windows:
        """See ``Embedding``."""
        if self.kind == "clap" and len(audio) < self._length:
            times = self._length // len(audio)
            audio = audio.repeat(times)
        windows, silent = cut(audio, self._length, max(1, self._length // 2))
        vectors = [self._vectors(part) for part in windows.split(self._batch_size) if len(part)]
        return Windows(torch.cat(vectors) if vectors else torch.zeros(0, self.width), silent)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Vectors of texts in the space of the audio's, of length 1, ``[N, E]``. CLAP only.

        Raises:
            ValueError: if the model is not a CLAP, or its tokenizer cannot be loaded.
        """
        if self.kind != "clap":
            raise ValueError(f"texts need a CLAP model; {self._folder!r} is {self.kind}")
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self._folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"model: no tokenizer in {self._folder!r}: {_first_line(error)}") from error
        vectors = []
        for start in range(0, len(texts), self._batch_size):
            tokens = tokenizer(list(texts[start : start + self._batch_size]), padding=True, truncation=True,
                               return_tensors="pt").to(self._device)  # fmt: skip
            vectors.append(_unit(_tensor(self._model.get_text_features(**tokens))))
        return torch.cat(vectors) if vectors else torch.zeros(0, self.width)

    def _vectors(self, windows: Tensor) -> Tensor:
        """Windows ``[n, length]`` -> vectors ``[n, E]``."""
        drawn = np.random.get_state()  # CLAP's extractor draws from it, and training must not notice
        inputs = self._extractor(
            [window.numpy() for window in windows], sampling_rate=self.sample_rate, return_tensors="pt"
        ).to(self._device)
        np.random.set_state(drawn)
        if self.kind == "clap":
            if "is_longer" in inputs:  # the extractor of a fused CLAP calls a random window long
                inputs["is_longer"] = torch.zeros_like(inputs["is_longer"])
            return _unit(_tensor(self._model.get_audio_features(**inputs)))
        if self.kind in CODECS:
            audio = inputs["input_values"]
            if self.kind == "encodec" and self._model.config.audio_channels > 1 and audio.shape[1] == 1:
                audio = audio.expand(-1, self._model.config.audio_channels, -1)
            return self._model.encoder(audio).mean(-1).float().cpu()
        return self._model(**inputs).last_hidden_state.mean(1).float().cpu()


def _load(model: str) -> tuple[Any, Any, Any]:
    """Model, feature extractor and configuration."""
    try:
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModel
    except ImportError as error:
        raise ValueError(f"embedding: needs the package transformers: {INSTALL}") from error
    if not Path(model).is_dir() and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise ValueError(f"model: {model!r} cannot be loaded as an audio model: there is no such folder")
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        extractor = AutoFeatureExtractor.from_pretrained(model, trust_remote_code=False)
        with torch.random.fork_rng(devices=[]):  # what a constructor draws is not missing elsewhere
            network = AutoModel.from_pretrained(
                model, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            )
    except (OSError, ValueError) as error:
        raise ValueError(f"model: {model!r} cannot be loaded as an audio model: {_first_line(error)}") from error
    return network.eval().requires_grad_(False), extractor, config


def _revision(model: str, config: Any) -> str:
    """The commit on the hub, or the start of the SHA-256 of a folder's weights."""
    if not Path(model).is_dir():
        return str(getattr(config, "_commit_hash", None) or "unknown")[:12]
    digest = hashlib.sha256()
    for file in sorted(Path(model).glob("*.safetensors")):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]


def _tensor(output: Any) -> Tensor:
    """The projected vectors, which some releases of transformers wrap."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.float().cpu(), dim=1)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
