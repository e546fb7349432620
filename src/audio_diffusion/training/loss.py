"""The training loss: what is drawn for each sample, and what counts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from audio_diffusion.data.batch import AudioBatch
from audio_diffusion.diffusion.guidance import drop
from audio_diffusion.diffusion.process import Diffusion
from audio_diffusion.diffusion.seeding import seed_of
from audio_diffusion.networks.conditions.condition import Conditions
from audio_diffusion.representations.representation import Representation

_GOLDEN = 0.6180339887498949  # its multiples, modulo 1, cover [0, 1) evenly however many there are


class TrainingLoss:
    """Draws t, noise and dropped conditions of the samples of a batch, and decides what counts in the loss.

    The t and noise of a sample are drawn by generators keyed by (seed, the sample's position in the stream), so they
    are the same on any number of ranks and after a resume.

    Args:
        cond_dropout: probability that a sample is trained without any of its conditions, as classifier-free guidance
            needs. A dict gives one probability for each condition by name, dropped independently of the others, and
            one for "all": ``{all: 0.1, caption: 0.2}``.
        mask_padding: whether to leave padding out of the loss. The network then does not learn that short clips end in
            silence.
        strata: number of equal ranges of [0, 1) from which u is drawn, in turn by position. With the global batch size
            every optimizer step covers all noise levels evenly; with 1 they are drawn independently.
        seed: seed of t, noise and dropout.

    Raises:
        ValueError: if ``cond_dropout`` lies outside [0, 1], or ``strata`` is below 1.
    """

    def __init__(
        self,
        cond_dropout: float | dict[str, float] = 0.1,
        mask_padding: bool = False,
        strata: int = 1,
        seed: int = 0,
    ):
        if strata < 1:
            raise ValueError(f"strata: expected 1 or more, got {strata}")
        self.cond_dropout = cond_dropout if isinstance(cond_dropout, dict) else {"all": cond_dropout}
        for name, rate in self.cond_dropout.items():
            if not 0 <= rate <= 1:
                raise ValueError(f"cond_dropout: expected 0 to 1, got {rate} for {name}")
        self.mask_padding, self.strata, self.seed = mask_padding, strata, seed

    def check(self, conditions: Conditions) -> None:
        """Checks that the network has the conditions that ``cond_dropout`` names.

        Raises:
            ValueError: naming one that it does not have.
        """
        for name in self.cond_dropout:
            if name != "all" and name not in conditions.by_name:
                has = ", ".join(["all", *conditions.by_name])
                raise ValueError(f"loss.cond_dropout: expected names among {has}, got {name!r}")

    def draws(self, positions: Sequence[int], like: Tensor, purpose: str) -> tuple[Tensor, Tensor, Tensor]:
        """Draws u ``[B]`` and v ``[B]``, uniform in [0, 1), and noise of ``like``'s shape, keyed by each sample's
        position in the stream."""
        device = like.device
        uniform, noise = torch.empty(len(positions), 2, device=device), torch.empty_like(like)
        generator = torch.Generator(device=device)
        for i, position in enumerate(positions):
            generator.manual_seed(seed_of(self.seed, purpose, position))
            uniform[i].uniform_(generator=generator)
            noise[i].normal_(generator=generator)
        return uniform[:, 0], uniform[:, 1], noise

    def training_times(self, process: Diffusion, u: Tensor, positions: Sequence[int]) -> Tensor:
        """Returns the times t ``[B]`` of training samples, given u, each from the stratum of its position."""
        stratum = torch.tensor([position % self.strata for position in positions], device=u.device)
        return process.time_of((stratum + u) / self.strata)

    def validation_times(self, process: Diffusion, positions: Sequence[int], device: torch.device) -> Tensor:
        """Returns the times t ``[B]`` of held-out samples, from a sequence that covers [0, 1) evenly."""
        return process.time_of(torch.tensor(positions, dtype=torch.float64) * _GOLDEN % 1).to(device)

    def drop(self, cond: Mapping[str, Tensor], v: Tensor, positions: Sequence[int]) -> Mapping[str, Tensor]:
        """Drops conditions: all those of a sample according to v ``[B]``, and each by a draw keyed by its name."""
        cond = dict(drop(cond, v < self.cond_dropout.get("all", 0.0)))
        for name, rate in self.cond_dropout.items():
            if name != "all":
                where = [seed_of(self.seed, "drop", name, position) < rate * 2**63 for position in positions]
                cond |= drop({name: cond[name]}, torch.tensor(where, device=v.device))
        return cond

    def seed_network(self, positions: Sequence[int]) -> None:
        """Seeds the network's own randomness (dropout layers) by position, so no generator state has to be saved."""
        torch.manual_seed(seed_of(self.seed, "net", positions[0]))

    def mask(self, representation: Representation, batch: AudioBatch) -> Tensor:
        """Returns the mask of what counts, which broadcasts to x0's shape: 0 for empty slots."""
        return representation.mask(batch.mask) if self.mask_padding else batch.valid[:, None, None]
