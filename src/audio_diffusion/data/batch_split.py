"""Divides the clips of an optimizer step among devices and accumulated batches."""

from dataclasses import dataclass

from audio_diffusion.data.wording import counted


@dataclass(frozen=True)
class BatchSplit:
    """How the clips of an optimizer step are divided: the same number for each device and accumulated batch.

    Raises:
        ValueError: if this is not possible, naming the nearest valid sizes.
    """

    batch_size: int
    nodes: int
    devices: int  # of each node
    accumulate: int  # batches of each device

    def __post_init__(self) -> None:
        parts = self.nodes * self.devices * self.accumulate
        if self.batch_size % parts:
            below = self.batch_size // parts * parts
            nearest = f"{below} or {below + parts}" if below else str(parts)
            raise ValueError(
                f"batch_size: expected a multiple of {parts} ({self._parts()} × {self.accumulate} accumulated), "
                f"got {self.batch_size}; the nearest that works: {nearest}"
            )

    @property
    def clips(self) -> int:
        """Number of clips in one batch of one device."""
        return self.batch_size // (self.nodes * self.devices * self.accumulate)

    def _parts(self) -> str:
        return f"{counted(self.nodes, 'node')} × {counted(self.devices, 'device')}"

    def __str__(self) -> str:
        clips = counted(self.clips, "clip")
        return f"batch: {self.batch_size} = {self._parts()} × {clips} × {self.accumulate} accumulated"
