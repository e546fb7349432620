"""Reads remote shards, from web servers and buckets, through a local cache."""

from audio_diffusion.data.remote.address import SCHEMES, RemoteError, is_remote, local_path
from audio_diffusion.data.remote.fetch import version_seal
from audio_diffusion.data.remote.store import RemoteFile, RemoteStore

__all__ = ["SCHEMES", "RemoteError", "RemoteFile", "RemoteStore", "is_remote", "local_path", "version_seal"]
