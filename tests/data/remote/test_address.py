import pickle

import pytest

from audio_diffusion.checkpoints.redaction import redacted_url
from audio_diffusion.data.remote import RemoteError, is_remote, local_path


@pytest.mark.parametrize("path", ["data/train-{000..127}.tar", "/abs/x.tar", "file:///abs/x.tar", "odd::name.tar", ""])
def test_plain_and_file_paths_are_local(path):
    assert not is_remote(path)


@pytest.mark.parametrize("path", ["http://h/x", "HTTPS://h/x", "s3://bucket/a/*.tar", "gs://b/x", "http://[::1]:80/x"])
def test_addresses_of_the_four_schemes_are_remote(path):
    assert is_remote(path)


@pytest.mark.parametrize(
    "path",
    ["pipe:cat x", "pipe://cat x", "ftp://h/x", "simplecache::s3://b/x", "https://h/x::file:///etc/passwd", "://x"],
)
def test_commands_chains_and_other_schemes_are_refused_and_the_allowed_named(path):
    with pytest.raises(ValueError, match=r"http://, https://, s3://, gs://"):
        is_remote(path)


def test_local_path_of_a_file_address():
    assert local_path("file:///data/x.tar") == "/data/x.tar"
    assert local_path("data/x.tar") == "data/x.tar"


@pytest.mark.parametrize(
    "url", ["https://me:secret@host/x.tar?X-Amz-Signature=secret#secret", "https://[bad/x?token=secret"]
)
def test_a_redacted_address_has_no_secret(url):
    assert "secret" not in redacted_url(url)
    assert redacted_url("s3://bucket/x.tar") == "s3://bucket/x.tar"


def test_an_error_survives_the_way_out_of_a_worker():
    error = pickle.loads(pickle.dumps(RemoteError("gone", "not_found")))
    assert (str(error), error.kind, error.final) == ("gone", "not_found", True)
