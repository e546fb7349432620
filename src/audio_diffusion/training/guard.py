"""Guard that skips optimizer steps whose loss or gradient is not finite, or whose gradient explodes."""

import math
import statistics
from collections import deque
from typing import Any

from audio_diffusion.diffusion.checks import check_at_least_one


class StepGuard:
    """Decides from the gradient's norm whether each optimizer step is taken, and ends a run that diverges.

    The norm is that of the whole gradient, which is the same on all ranks, so they decide alike without communication.

    Args:
        max_skipped_in_a_row: number of consecutive skipped steps after which the run ends with an error.
        max_growth: a norm above this factor times the median of the last ``window`` norms is an explosion; with None,
            only steps that are not finite are skipped.
        window: number of norms in the median; until that many are known, no step counts as an explosion.

    Raises:
        ValueError: for numbers below 1, or a ``max_growth`` of 1 or less.
    """

    def __init__(self, max_skipped_in_a_row: int = 10, max_growth: float | None = 30.0, window: int = 100):
        check_at_least_one(max_skipped_in_a_row=max_skipped_in_a_row, window=window)
        if max_growth is not None and not max_growth > 1:
            raise ValueError(f"max_growth: expected above 1, or null, got {max_growth}")
        self.max_skipped_in_a_row, self.max_growth, self.window = max_skipped_in_a_row, max_growth, window
        self.num_skipped = self.skipped_in_a_row = 0
        self.reason: str | None = None  # the reason why the latest step was skipped; None if it was not
        self._norms: deque[float] = deque(
            maxlen=window
        )  # finite norms, including those of skipped steps, so that the median adapts to a new gradient level

    def judge(self, norm: float) -> bool:
        """Whether a step with a gradient of this norm may be taken; if not, counts it and sets ``reason``.

        Raises:
            ValueError: if this is the ``max_skipped_in_a_row``-th skipped step in a row.
        """
        self.reason = self._fault(norm)
        if self.max_growth is not None and math.isfinite(norm):
            self._norms.append(norm)
        if self.reason is None:
            self.skipped_in_a_row = 0
            return True
        self.num_skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self.max_skipped_in_a_row:
            raise ValueError(
                f"training: {self.skipped_in_a_row} steps in a row were skipped (training.guard.max_skipped_in_a_row), "
                f"the latest since {self.reason}. The weights, and the checkpoints, are those before. Try a lower "
                "training.optimizer.lr, a longer warm-up or trainer.precision=32-true; look at the clips the log names"
            )
        return False

    def _fault(self, norm: float) -> str | None:
        if not math.isfinite(norm):
            return f"the loss or the gradient is not finite (norm {norm})"
        if self.max_growth is None or len(self._norms) < self.window:
            return None
        usual = statistics.median(self._norms)
        if norm <= self.max_growth * usual:
            return None
        return (
            f"the gradient explodes: its norm {norm:.4g} is more than training.guard.max_growth = {self.max_growth:g} "
            f"times the recent median of {usual:.4g}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns all state that later decisions depend on, as plain data."""
        counts = {"num_skipped": self.num_skipped, "skipped_in_a_row": self.skipped_in_a_row}
        return {**counts, "norms": list(self._norms)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_skipped, self.skipped_in_a_row = state["num_skipped"], state["skipped_in_a_row"]
        self._norms = deque(state["norms"], maxlen=self.window)
