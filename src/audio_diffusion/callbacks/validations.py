"""A count of validations, which a resumed run continues like an uninterrupted one."""

from typing import Any

import lightning as L


def is_at_validation(trainer: L.Trainer) -> bool:
    """Whether a validation belongs to the present step: one that is due, or took place before the run was resumed.

    A checkpoint of such a step is saved before the validation, which a run that resumes from it does not repeat.
    """
    every = trainer.val_check_interval
    batches = trainer.global_step * trainer.accumulate_grad_batches
    return bool(trainer.limit_val_batches) and isinstance(every, int) and batches > 0 and batches % every == 0


class ValidationCount:
    """Counts validations, of which every n-th is chosen, the first among them.

    Args:
        every: n.
    """

    def __init__(self, every: int):
        self.every = every
        self._count, self._step = 0, -1  # the step of the last one

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._count, "validated_at": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._count, self._step = state_dict["validations"], state_dict.get("validated_at", -1)

    def catch_up(self, trainer: L.Trainer) -> None:
        """Counts, at the start of training, the validation of the checkpoint's step, if the checkpoint does not."""
        if self._step < trainer.global_step and is_at_validation(trainer):
            self.take(trainer)

    @property
    def is_chosen(self) -> bool:
        """Whether the next validation is chosen."""
        return self._count % self.every == 0

    def take(self, trainer: L.Trainer) -> bool:
        """Counts a validation; returns whether it is chosen."""
        chosen = self.is_chosen
        self._count, self._step = self._count + 1, trainer.global_step
        return chosen
