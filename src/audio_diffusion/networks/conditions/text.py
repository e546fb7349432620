"""Condition on text, encoded by a frozen text encoder."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from audio_diffusion.diffusion.checks import check_at_least_one
from audio_diffusion.networks.conditions.condition import Condition, Device, Values
from audio_diffusion.networks.layers import NullableTokens

CACHE_BYTES = 256_000_000  # limit on the encoded texts that a process keeps, over all encoders
_REPLY_S = 10.0  # timeout of the request that checks whether an encoder can be downloaded
_TEXTS = 8  # batch size of the encoder, padded to it and to one length: a text's result never depends on the others


class _Cache:
    """Least-recently-used cache of tensors, limited in bytes."""

    def __init__(self, limit: int):
        self.limit, self.bytes, self._kept = limit, 0, OrderedDict[Any, Tensor]()

    def get(self, key: Any) -> Tensor | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Any, value: Tensor) -> None:
        self._kept[key] = value
        self.bytes += value.nbytes
        while self.bytes > self.limit:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes


_cache = _Cache(CACHE_BYTES)


@lru_cache(maxsize=2)
def _find(name: str) -> None:
    """Checks, with one short request at most, that an encoder is on this machine or can be downloaded.

    Raises:
        ValueError: if neither is the case, or transformers is not installed.
    """
    try:
        from huggingface_hub import HfApi
        from transformers import AutoConfig
    except ImportError as error:
        raise ValueError("encoder: needs the package transformers: pip install -e '.[text]'") from error
    if os.path.isdir(name):
        return
    with suppress(OSError, ValueError):
        AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=True)
        return
    try:
        HfApi().model_info(name, timeout=_REPLY_S)
    except Exception as error:  # of the libraries below it, too
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"encoder: {name!r} is neither a folder nor downloaded already, and could not be looked up: {reason}. "
            "Where there is no network, download it elsewhere and give its folder: "
            "model.conditions.NAME.encoder=FOLDER, where NAME is caption with condition=caption"
        ) from error


@lru_cache(maxsize=2)
def _load(name: str, device: str) -> tuple[Any, Any]:
    """Loads tokenizer and model, from safetensors only and without running code from their repository.

    Raises:
        ValueError: if transformers is not installed, or the encoder cannot be found or loaded.
    """
    try:
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer
        from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING
    except ImportError as error:
        raise ValueError("encoder: needs the package transformers: pip install -e '.[text]'") from error
    _find(name)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and forked data workers do not mix
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        # T5's encoder without its decoder, and the like
        kind = AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = kind.from_pretrained(name, trust_remote_code=False, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"encoder: {name!r} cannot be loaded as a text encoder from safetensors: {reason}") from error
    return tokenizer, model.to(device).eval().requires_grad_(False)


class Text(Condition):
    """Condition on text, encoded during training by a frozen text encoder; tokens.

    The encoder is loaded on first use, once per process. It is not part of the network, so no checkpoint, EMA or
    optimizer contains it.

    Args:
        encoder: name or folder of a Hugging Face text encoder with safetensors weights.
        width: width of the encoder's tokens.
        max_tokens: number of tokens S; longer texts are truncated.
        field: name of the batch's field, which holds strings; None for the condition's own name.

    Raises:
        ValueError: if ``max_tokens`` is below 1.
    """

    kind = "tokens"

    def __init__(self, encoder: str, width: int, max_tokens: int = 64, field: str | None = None):
        super().__init__(field)
        check_at_least_one(max_tokens=max_tokens)
        self.encoder, self.width, self.max_tokens = encoder, width, max_tokens

    def check(self) -> None:
        """Checks that the encoder is on this machine or can be downloaded, without loading it.

        Raises:
            ValueError: if it is neither.
        """
        _find(self.encoder)

    def prepare(self, values: Values, device: Device) -> Tensor:
        """Encodes B texts as float32 ``[B, max_tokens, width]``, with NaN as padding; "" means "not given".

        Raises:
            ValueError: if the values are numbers, or the encoder cannot be loaded or has another width.
        """
        if isinstance(values, Tensor):
            raise ValueError(f"text: expected words, got numbers {list(values.shape)}")
        keys = {text: (self.encoder, self.max_tokens, str(device), text) for text in values if text}
        cached = {text: _cache.get(key) for text, key in keys.items()}
        found = {text: tokens for text, tokens in cached.items() if tokens is not None}
        missing = [text for text in keys if text not in found]
        for start in range(0, len(missing), _TEXTS):
            part = missing[start : start + _TEXTS]
            for text, made in zip(part, self._encode(part, str(device)), strict=True):
                found[text] = made
                _cache.put(keys[text], made)
        out = self.nothing(len(values)).to(device)
        for row, text in zip(out, values, strict=True):
            if text:
                row[: len(found[text])] = found[text]
        return out

    def _encode(self, texts: Sequence[str], device: str) -> list[Tensor]:
        """Returns the encoded tokens ``[n, width]`` of each of up to ``_TEXTS`` texts, without padding."""
        tokenizer, model = _load(self.encoder, device)
        if (made := model.config.hidden_size) != self.width:
            raise ValueError(f"width: expected {made}, the width of the tokens of {self.encoder!r}, got {self.width}")
        words = tokenizer(
            [*texts, *[""] * (_TEXTS - len(texts))],
            padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt",
        )  # fmt: skip
        ids, mask = words["input_ids"].to(device), words["attention_mask"].to(device)
        with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return [row[there.bool()].clone() for row, there in zip(hidden, mask, strict=True)][: len(texts)]

    def nothing(self, num: int) -> Tensor:
        return torch.full((num, self.max_tokens, self.width), torch.nan)

    def embedder(self, width: int) -> nn.Module:
        return NullableTokens(nn.Sequential(nn.LayerNorm(self.width), nn.Linear(self.width, width)), width)
