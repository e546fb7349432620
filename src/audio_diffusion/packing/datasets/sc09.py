"""SC09, the spoken digits of Speech Commands (Warden 2018, arXiv:1804.03209): a manifest with the official split.

python -c "import torchaudio; torchaudio.datasets.SPEECHCOMMANDS('data', download=True)"
python -m audio_diffusion.packing.datasets.sc09 data/SpeechCommands/speech_commands_v0.02
python make_shards.py input=data/SpeechCommands/speech_commands_v0.02 manifest=SAME_FOLDER/sc09.csv output=data/sc09
"""

import csv
import sys
from collections import Counter
from pathlib import Path

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LISTS = {"validation_list.txt": "val", "testing_list.txt": "test"}  # every other clip is for training
MANIFEST = "sc09.csv"


def write_manifest(folder: str | Path) -> Counter[str]:
    """Writes FOLDER/sc09.csv (file, label, split) for the clips of digits; returns the number of clips in each split.

    Raises:
        ValueError: if the folder is not Speech Commands as distributed, or a list names a clip that does not exist.
    """
    folder = Path(folder)
    if missing := [name for name in (*LISTS, *DIGITS) if not (folder / name).exists()]:
        raise ValueError(
            f"folder: expected Speech Commands, with {', '.join(LISTS)} and a folder for each digit, but {folder} has "
            f"no {', '.join(missing)}; give the folder that contains them, such as "
            "data/SpeechCommands/speech_commands_v0.02"
        )
    splits = {
        line: split for name, split in LISTS.items() for line in (folder / name).read_text(encoding="utf-8").split()
    }
    clips = sorted(path.relative_to(folder).as_posix() for digit in DIGITS for path in (folder / digit).glob("*.wav"))
    if absent := sorted({clip for clip in splits if clip.partition("/")[0] in DIGITS} - set(clips)):
        raise ValueError(
            f"folder: {len(absent)} clips in the official lists do not exist, such as {absent[0]}: "
            "the download is incomplete"
        )
    rows = [(clip, clip.partition("/")[0], splits.get(clip, "train")) for clip in clips]
    with open(folder / MANIFEST, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "label", "split"), *rows])
    return Counter(split for _, _, split in rows)


USAGE = "usage: python -m audio_diffusion.packing.datasets.sc09 FOLDER"


def main(arguments: list[str]) -> None:
    if set(arguments) & {"-h", "--help"}:
        print(f"{USAGE}\nWrites FOLDER/{MANIFEST}: the digits of Speech Commands in FOLDER, with the official split.")
        return
    if unknown := [argument for argument in arguments if argument.startswith("-")]:
        sys.exit(f"{USAGE}\nerror: {unknown[0]}: there is no such option")
    if len(arguments) != 1 or not arguments[0]:
        sys.exit(USAGE)
    try:
        counts = write_manifest(arguments[0])
    except ValueError as error:
        sys.exit(f"error: {error}")
    manifest = Path(arguments[0]) / MANIFEST
    print(", ".join(f"{split} {counts[split]}" for split in ("train", "val", "test")), f"clips in {manifest}")
    print(f"next: python make_shards.py input={arguments[0]} manifest={manifest} output=data/sc09")


if __name__ == "__main__":
    main(sys.argv[1:])
