"""Secrets: what is left out, and what is not."""

from audio_diffusion.redaction import REDACTED, redacted, redacted_argument, without_redacted

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
