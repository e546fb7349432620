"""Decides when a multistep solver takes a step of lower order."""

from collections.abc import Callable

#: Largest sum of |weights| of k estimates, relative to their sum and to 2^k - 1. On even steps the sum is at most
#: 2^k - 1: 2, -1 or 3, -3, 1 at the end of a long step.
_MOST_AMPLIFIED = 2.0
#: The same where fresh noise is added on the way: it makes the estimates differ from one to the next, and extrapolating
#: amplifies the difference. Measured: DiffWave's last two steps reach 1.47, which is 3.4 dB too loud.
_MOST_AMPLIFIED_WITH_NOISE = 1.4


def bounded(weights: Callable[[int], list[float]], most: int, stochastic: bool = False) -> list[float]:
    """Returns ``weights(k)`` of the newest k estimates, for the largest k up to ``most`` that stays within the bound.

    A polynomial through estimates that lie close together, taken to the end of a step much longer than theirs, makes
    their differences many times larger. Multistep methods of variable step therefore bound the ratio of consecutive
    steps (Hairer, Nørsett & Wanner 1993, Solving Ordinary Differential Equations I, section III.5); here the sum of
    |weights| is bounded, and a step beyond the bound is of lower order. Even grids stay far below it.
    """
    bound = _MOST_AMPLIFIED_WITH_NOISE if stochastic else _MOST_AMPLIFIED
    for count in range(most, 1, -1):
        found = weights(count)
        if sum(map(abs, found)) <= bound * (2**count - 1) * abs(sum(found)):
            return found
    return weights(1)
