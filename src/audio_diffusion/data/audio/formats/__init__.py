"""Containers of audio files, read byte by byte where a decoder cannot."""
