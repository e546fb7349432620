"""Packs a folder of audio into WebDataset shards.

python make_shards.py input=FOLDER output=SHARDS              # labels are the names of the sub-folders
python make_shards.py input=FOLDER output=SHARDS manifest=FOLDER/manifest.csv
"""

import os
import sys
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from audio_diffusion import config
from audio_diffusion.config import ConfigError
from audio_diffusion.packing.pack import pack, scan_folder, scan_manifest


@config.entry("make_shards")
def main(cfg: DictConfig) -> None:
    """Find the files, check and pack them, say what came of it."""
    options = config.to_plain(cfg)
    if options["labels"] not in ("folder", "none"):
        raise ConfigError(f"labels: expected folder or none, got {options['labels']!r}")
    numbers = {"val_fraction": (int, float), "shard_mb": (int, float), "num_workers": (int, type(None))}
    for name, types in numbers.items():
        if not isinstance(options[name], types) or isinstance(options[name], bool):
            raise ConfigError(f"{name}: expected a number, got {options[name]!r}")
    folder, output = Path(str(options["input"])), Path(str(options["output"]))  # a folder may be called 2024
    manifest = options["manifest"]
    try:
        sources = (
            scan_manifest(folder, Path(str(manifest)))
            if manifest
            else scan_folder(folder, options["labels"] == "folder")
        )
        with tqdm(total=len(sources), unit="file", desc="checking", file=sys.stdout) as bar:
            report = pack(
                sources,
                output,
                val_fraction=options["val_fraction"],
                shard_bytes=int(options["shard_mb"] * 1e6),
                num_workers=options["num_workers"] or os.cpu_count() or 1,
                progress=lambda done, total: bar.update(1) and None,
            )
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    for split, clips in report.clips.items():
        print(f"{split:5} {clips:7d} clips  {report.seconds[split] / 3600:9.4f} h")
    print(f"classes: {', '.join(report.classes) or 'none'}")
    if report.refused:
        print(f"refused {len(report.refused)} files, named with the reasons in {output / 'refused.csv'}, e.g.")
        for name, reason in report.refused[:3]:
            print(f"    {name!r}: {reason}")
    print(f"{len(report.shards)} shards in {output}/  ->  python train.py data.train={output}")


if __name__ == "__main__":
    main()
