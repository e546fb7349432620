"""Decides whether a data set has classes, and marks files without a label."""

from dataclasses import replace

from audio_diffusion.data.wording import counted
from audio_diffusion.packing.sources import Source, readable


class Labels:
    """Decides whether a data set has classes: at least half of the files must have a label. The other files are then
    marked with the label null, which training interprets as "not given"."""

    def __init__(self, sources: list[Source]):
        self.num_files = len(sources)
        self.num_labelled = sum(source.fields.get("label") is not None for source in sources)
        self.are_used = 0 < self.num_files <= 2 * self.num_labelled
        folders = {source.name.partition("/")[0] for source in sources if "/" in source.name}
        self._renamed = sorted(readable(folder) for folder in folders if readable(folder) != folder)

    def marked(self, source: Source) -> Source:
        """Returns the source; if it has no label and the data set has classes, with the label null."""
        return replace(source, fields={"label": None, **source.fields}) if self.are_used else source

    def notes(self) -> list[str]:
        """Returns lines about labels that are missing or were changed."""
        notes = [f"the name of a folder is not UTF-8; it was read as Latin-1: {name!r}" for name in self._renamed]
        missing = self.num_files - self.num_labelled
        if self.are_used and missing:
            notes.append(
                f"{counted(missing, 'file')} of {self.num_files} without a label: training treats it as 'not given'"
            )
        elif self.num_labelled and missing:
            notes.append(
                f"labels: {self.num_labelled} of {counted(self.num_files, 'file')} have one, fewer than half, so the "
                "data set has no classes; to use these labels anyway, list them: python train.py 'classes=[..]'"
            )
        return notes
