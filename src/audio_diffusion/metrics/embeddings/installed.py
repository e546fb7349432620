"""Finds installed packages that contain the weights of embeddings."""

import importlib.util
from importlib.metadata import version
from pathlib import Path


def package_folder(package: str, needed_by: str, install: str) -> Path:
    """Returns the folder of an installed package without importing it.

    Raises:
        ValueError: if it is not installed; the message says how to install it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{needed_by}: needs the package {package}: {install}")
    return Path(next(iter(spec.submodule_search_locations)))


def package_version(package: str) -> str:
    """Returns the version of an installed package."""
    return version(package)
