"""Secrets: what is left out, and what is not."""

import pytest

from audio_diffusion.checkpoints.redaction import (
    REDACTED,
    find_redacted,
    may_be,
    redacted,
    redacted_argument,
    redacted_config,
    with_instead,
    without_redacted,
)

SIGNED = "https://user:hunter2@host.org/s/train-{000..003}.tar?X-Amz-Signature=hunter2&Expires=1"


def test_secrets_are_left_out_by_key_by_form_and_out_of_addresses(monkeypatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "hunter2-of-the-environment")
    config = {
        "data": {
            "train": SIGNED,
            "val": ["s3://key:hunter2@bucket/v.tar"],
            "glob": "https://host/[ab].tar?sig=hunter2",
        },
        "store": {"s3": {"key": "hunter2", "secret": "hunter2", "client_kwargs": {"aws_session_token": "hunter2"}}},
        "headers": {"Authorization": "Bearer hunter2"},
        "token": {"refresh": "hunter2"},
        "wandbApiKey": "hunter2",
        "said": "the words hf_hunter2hunter2hunter2 and hunter2-of-the-environment",
    }
    clean = redacted(config)
    assert "hunter2" not in str(clean)
    assert clean["data"]["train"] == f"https://{REDACTED}@host.org/s/train-{{000..003}}.tar?{REDACTED}"
    assert clean.keys() == config.keys()


def test_what_is_no_secret_stays_as_it_is() -> None:
    config = {
        "train": "s3://bucket/train-00?.tar", "num_tokens": 5, "token": None, "key": False, "keys": ["a"], "seed": 0,
        "keyboard": "x", "git_commit": "0123456789abcdef0123456789abcdef01234567", "endpoint": "http://host:9000/a",
    }  # fmt: skip
    assert redacted(config) == config


def test_arguments_of_the_command_line() -> None:
    arguments = [
        f"data.train={SIGNED}", "data.store.storage_options.s3.secret=hunter2",
        "data.store.storage_options={s3: {key: hunter2, secret: hunter2}}", "name=x", "audio.channels=2",
    ]  # fmt: skip
    clean = [redacted_argument(argument) for argument in arguments]
    assert "hunter2" not in str(clean)
    assert clean[3:] == arguments[3:]


def test_what_was_redacted_is_left_to_its_default() -> None:
    options = {"s3": {"key": "a", "endpoint_url": "http://host"}}
    assert without_redacted(redacted(options)) == {"s3": {"endpoint_url": "http://host"}}
    assert without_redacted(None) is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PWD", "/home/me/project"),
        ("OLDPWD", "/home/me/project"),
        ("TOKENIZERS_PARALLELISM", "parallelism"),
        ("KEYBOARD", "some-keyboard-2024"),
        ("PASSWORD_STORE_DIR", "/home/me/project"),
        ("PASSWORD_STORE_DIR", "project/enc-2024"),
        ("SSH_AUTH_SOCK", "/home/me/project"),
        ("GIT_ASKPASS", "/home/me/project"),
        ("SSH_ASKPASS", "/home/me/project"),
        ("AWS_SHARED_CREDENTIALS_FILE", "project/enc-2024"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/project"),
        ("XDG_SESSION_COOKIE", "~/project"),
        ("MY_SECRET", "project"),
        ("MY_SECRET", "speaker_embeddings"),
        ("MY_TOKEN", "12345678"),
        ("MY_TOKEN", "s3://bucket/project"),
        ("MY_PASSWORD", ""),
    ],
)
def test_paths_and_words_are_no_secrets_whatever_the_variable_is_called(monkeypatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    config = {"encoder": f"{value}/enc", "run_dir": value, "said": f"in {value}: 12345678 done"}
    assert redacted(config) == config


def test_a_path_that_exists_is_no_secret(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "hf_abcdefghijabcdefghij0123"
    folder.mkdir()
    monkeypatch.setenv("MY_TOKEN", folder.name)
    assert redacted({"train": str(folder)}) == {"train": str(folder)}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        ("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567"),
        ("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"),
        ("MYSQL_PWD", "Tr0ub4dor"),
        ("DB_PASSWORD", "correcthorsebatterystaple"),
    ],
)
def test_real_secrets_of_the_environment_are_left_out_as_whole_words(monkeypatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    assert redacted({"a": f"using {value}, twice: {value}"}) == {"a": f"using {REDACTED}, twice: {REDACTED}"}
    if not value.startswith("hf_"):  # known by its form
        assert redacted({"a": f"x{value}y"}) == {"a": f"x{value}y"}


def test_what_a_model_is_built_from_stays_as_it_is_whatever_it_is_called(monkeypatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "piano-4-hands")
    config = {
        "name": "piano-4-hands",
        "classes": ["piano-4-hands"],
        "model": {
            "conditions": {"key": {"_target_": "audio_diffusion.networks.conditions.condition.Label", "field": "key"}}
        },
        "data": {
            "train": {"key": "data/piano-4-hands", "token": "s3://me:hunter2@bucket/x"},
            "fields": ["key"],
            "store": {"storage_options": {"s3": {"key": "hunter2", "secret": "hunter2"}}},
        },
        "logger": {"api_key": "hunter2", "note": "piano-4-hands"},
    }
    clean = redacted_config(config)
    assert {name: clean[name] for name in ("name", "classes", "model")} == {
        name: config[name] for name in ("name", "classes", "model")
    }
    assert clean["data"]["train"] == {"key": "data/piano-4-hands", "token": f"s3://{REDACTED}@bucket/x"}
    assert clean["logger"] == {"api_key": REDACTED, "note": REDACTED}
    assert "hunter2" not in str(clean)
    assert clean.keys() == config.keys()


def test_what_an_older_version_redacted_is_found_and_put_back(monkeypatch) -> None:
    config = {"conditions": {"caption": {"encoder": f"{REDACTED}/enc", "width": 3}}, "list": [REDACTED]}
    assert find_redacted(config, "model") == {
        "model.conditions.caption.encoder": f"{REDACTED}/enc", "model.list[0]": REDACTED
    }  # fmt: skip
    assert with_instead(config) == config
    monkeypatch.setenv("AUDIO_DIFFUSION_REDACTED", "/home/me")
    assert with_instead(config)["conditions"]["caption"]["encoder"] == "/home/me/enc"
    assert may_be(f"{REDACTED}/enc", "/home/me/enc")
    assert not may_be(f"{REDACTED}/enc", "/home/me/other")
    assert not may_be("a", "a")
