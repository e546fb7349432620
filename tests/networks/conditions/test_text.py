"""Words -> tokens, through the real loading code, on encoders built here."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audio_diffusion.networks.conditions import text
from audio_diffusion.networks.conditions.text import Text

TEXTS = ["a dog barks", "", "rain on the roof", "hit"]


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_cache", text._Cache(text.CACHE_BYTES))


def lengths(tokens: Tensor) -> list[int]:
    """The number of tokens of each text; those that there are come first."""
    there = ~tokens.isnan().any(2)
    assert torch.equal(there, there.sort(dim=1, descending=True, stable=True).values)
    return there.sum(1).tolist()


@pytest.mark.parametrize(("kind", "special"), [("t5", 1), ("t5_encoder", 1), ("bert", 2)])
def test_tokens_are_what_the_encoder_says_of_the_text_alone(
    text_encoders: dict[str, Path], kind: str, special: int
) -> None:
    import transformers

    tokens = Text(str(text_encoders[kind]), 32, max_tokens=10).prepare(TEXTS, "cpu")
    assert tokens.shape == (4, 10, 32)
    assert lengths(tokens) == [3 + special, 0, 4 + special, 1 + special]
    by_hand = transformers.BertModel if kind == "bert" else transformers.T5EncoderModel
    model = by_hand.from_pretrained(text_encoders[kind]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_encoders[kind])
    for row, words in zip(tokens, TEXTS, strict=True):
        if words:
            with torch.no_grad():
                expected = model(**tokenizer(words, return_tensors="pt")).last_hidden_state[0]
            torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-4, atol=1e-5)


def test_a_text_is_encoded_to_the_same_bits_whatever_it_comes_with(text_encoders: dict[str, Path]) -> None:
    many = [f"{'a ' * (i % 5)}dog {'barks ' * (i // 5)}" for i in range(19)]
    together = Text(str(text_encoders["t5"]), 32, 12).prepare(many, "cpu")
    for i in (0, 7, 8, 18):
        text._cache = text._Cache(text.CACHE_BYTES)
        alone = Text(str(text_encoders["t5"]), 32, 12).prepare([many[i]], "cpu")
        assert torch.equal(alone[0].nan_to_num(9), together[i].nan_to_num(9))


def test_long_texts_are_cut_off(text_encoders: dict[str, Path]) -> None:
    assert lengths(Text(str(text_encoders["bert"]), 32, 4).prepare(["a dog barks on the roof"], "cpu")) == [4]


def test_a_text_is_encoded_once(text_encoders: dict[str, Path]) -> None:
    condition, calls = Text(str(text_encoders["t5"]), 32, 8), []
    _, model = text._load(str(text_encoders["t5"]), "cpu")
    hook = model.register_forward_hook(lambda *args: calls.append(1))
    first = condition.prepare(["a dog", "a dog", "rain"], "cpu")
    again = condition.prepare(["rain", "a dog"], "cpu")
    hook.remove()
    assert len(calls) == 1
    assert torch.equal(first.flip(0)[:2].nan_to_num(), again.nan_to_num())


def test_the_cache_is_bounded_and_forgets_what_was_not_used_for_longest() -> None:
    cache = text._Cache(limit=100)
    for key in "abc":
        cache.put(key, torch.zeros(10))  # 40 bytes
    assert [cache.get(key) is not None for key in "abc"] == [False, True, True]
    cache.get("b")
    cache.put("d", torch.zeros(10))
    assert [cache.get(key) is not None for key in "bcd"] == [True, False, True]
    cache.put("e", torch.zeros(1000))
    assert cache.bytes == 0


def test_no_text_needs_no_encoder() -> None:
    condition = Text("no/such-encoder", 16, 5)
    assert condition.prepare(["", ""], "cpu").isnan().all()
    assert condition.nothing(2).shape == (2, 5, 16)


def test_the_encoder_is_frozen_in_evaluation_mode_and_in_full_precision(text_encoders: dict[str, Path]) -> None:
    for folder in text_encoders.values():
        _, model = text._load(str(folder), "cpu")
        assert not any(module.training for module in model.modules())
        assert {(p.requires_grad, p.dtype) for p in model.parameters()} == {(False, torch.float32)}
        assert not hasattr(model, "decoder")


def test_what_cannot_be_encoded_is_an_error(text_encoders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = str(text_encoders["bert"])
    with pytest.raises(ValueError, match=r"text: expected words, got numbers \[2\]"):
        Text(folder, 32).prepare(torch.zeros(2), "cpu")
    with pytest.raises(ValueError, match=r"width: expected 32, the width of the tokens of .*, got 16"):
        Text(folder, 16).prepare(["a"], "cpu")
    with pytest.raises(ValueError, match="encoder: '/no/such' is neither a folder nor downloaded already"):
        Text("/no/such", 16).prepare(["a"], "cpu")
    with pytest.raises(ValueError, match="max_tokens: expected at least 1, got 0"):
        Text(folder, 32, max_tokens=0)


def test_without_a_network_it_is_said_before_training_and_without_waiting(
    text_encoders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        raise ConnectionError("Name or service not known")

    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_network)
    Text(str(text_encoders["t5"]), 32).check()
    for use in (lambda text: text.check(), lambda text: text.prepare(["a dog"], "cpu")):
        with pytest.raises(ValueError, match=r"known\. .* give its folder: model\.conditions\.NAME\.encoder=FOLDER"):
            use(Text("no/such-encoder", 32))
    assert len(calls) == 2  # it is asked for once each time


def test_without_transformers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[text\]'"):
        Text("some/encoder", 16).prepare(["a"], "cpu")


def test_pickled_weights_are_refused(text_encoders: dict[str, Path], tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((text_encoders["bert"] / file).read_bytes())
    _, model = text._load(str(text_encoders["bert"]), "cpu")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded as a text encoder from safetensors"):
        Text(str(tmp_path), 32).prepare(["a"], "cpu")


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_beside_the_weights_is_not_run(text_encoders: dict[str, Path], tmp_path: Path, where: str) -> None:
    for file in text_encoders["bert"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = json.loads((tmp_path / where).read_text())
    content |= {"model_type": "foreign", "tokenizer_class": "Foreign"}
    content["auto_map"] = {
        "AutoConfig": "code.Foreign", "AutoModel": "code.Foreign", "AutoTokenizer": ["code.Foreign", "code.Foreign"]
    }  # fmt: skip
    (tmp_path / where).write_text(json.dumps(content))
    ran = tmp_path / "ran"
    (tmp_path / "code.py").write_text(f"open({str(ran)!r}, 'w')\nclass Foreign: pass\n")
    with suppress(ValueError):  # a tokenizer is made without it
        Text(str(tmp_path), 32).prepare(["a"], "cpu")
    assert not ran.exists()
