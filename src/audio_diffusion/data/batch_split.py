"""Divides the clips of an optimizer step among devices and accumulated batches."""

from dataclasses import dataclass

from audio_diffusion.data.wording import counted


@dataclass(frozen=True)
class BatchSplit:
    """Division of an optimizer step's clips into equal batches, one for each device and accumulation step.

    Raises:
        ValueError: if the clips cannot be divided equally; the message gives the nearest valid sizes.
    """

    batch_size: int
    nodes: int
    devices: int  # number of devices of each node
    accumulate: int  # number of batches of each device

    def __post_init__(self) -> None:
        parts = self.nodes * self.devices * self.accumulate
        if self.batch_size % parts:
            below = self.batch_size // parts * parts
            nearest = f"{below} or {below + parts}" if below else str(parts)
            raise ValueError(
                f"batch_size: expected a multiple of {parts} ({self._parts()} × {self.accumulate} accumulated), "
                f"got {self.batch_size}; nearest valid: {nearest}"
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
