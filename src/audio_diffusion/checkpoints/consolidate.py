"""Converts a sharded checkpoint to the single file that a run without shards would have written.

python -m audio_diffusion.checkpoints.consolidate runs/big big.ckpt        # its newest valid checkpoint
python -m audio_diffusion.checkpoints.consolidate runs/big/checkpoints/step_00010000.ckpt big.ckpt
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from audio_diffusion.checkpoints import sharded
from audio_diffusion.checkpoints.folder import manifest_of, newest_verified, problem_of, write
from audio_diffusion.checkpoints.manifest import Manifest


def consolidate(source: Path, output: Path) -> Manifest:
    """Reads a checkpoint's shards and writes ``output`` with a manifest beside it; the content must fit into memory.

    Args:
        source: a run's folder, whose newest verified checkpoint is used, or the folder of a checkpoint.
        output: path of the new file.

    Raises:
        ValueError: if ``source`` is not a valid sharded checkpoint, or ``output`` exists or has no suffix.
        OSError: if it cannot be written.
    """
    if output.exists() or not output.suffix:
        raise ValueError(f"output: expected the name of a new file, such as big.ckpt, got {str(output)!r}")
    checkpoint = source if manifest_of(source).is_file() else newest_verified(source / "checkpoints").path
    if checkpoint is None:
        raise ValueError(f"source: expected a run's folder or a checkpoint in one, with a valid manifest, got {source}")
    if problem := problem_of(checkpoint):
        raise ValueError(f"source: {problem}")
    if checkpoint.is_file():
        raise ValueError(f"source: {checkpoint} is already a single file")
    manifest = Manifest.read(manifest_of(checkpoint))
    content = sharded.read(checkpoint)
    return write(output, partial(torch.save, content), lambda files: replace(manifest, files=files))


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m audio_diffusion.checkpoints.consolidate", description=__doc__)
    parser.add_argument("source", type=Path, help="a run's folder, or a checkpoint's")
    parser.add_argument("output", type=Path, help="the file to write")
    options = parser.parse_args()
    try:
        manifest = consolidate(options.source, options.output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{options.output}: step {manifest.step}, {manifest.files[options.output.name].bytes / 1e6:.1f} MB, verified")


if __name__ == "__main__":
    main()
