"""Averages of the weights whose length is chosen after training (Karras et al. 2024, arXiv:2312.02696).

A power-function average of the weights theta at step t has the profile (section 3.1, eq. 2)

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),   0 <= tau <= t.

Its relative length sigma_rel is the profile's standard deviation divided by t. From a run that regularly stores the
averages of two lengths (``callbacks=power_ema``), the average of any other length can be rebuilt: it is the combination
of stored averages whose profile is nearest, by least squares, to the requested profile (section 3.2 and appendix C).
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audio_diffusion.checkpoints import averages as stored_averages
from audio_diffusion.checkpoints import folder as folders
from audio_diffusion.checkpoints.averages import Snapshot
from audio_diffusion.checkpoints.files import FileRecord
from audio_diffusion.checkpoints.manifest import Manifest, hash_of
from audio_diffusion.inference.checkpoint_reader import Weights, find, read_weights
from audio_diffusion.inference.targets import ConfigError

log = logging.getLogger(__name__)

LONGEST = 12**-0.5  # sigma_rel of gamma = 0, the plain mean of all steps
_NEGLIGIBLE = 1e-9  # stored averages with smaller weights are not read


def gamma_of(sigma_rel: float) -> float:
    """Returns the exponent gamma of a relative length: the solution of

        (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2) = sigma_rel.

    Squared, that is the cubic gamma^3 + 7 gamma^2 + (16 - s) gamma + 12 - s = 0 with s = sigma_rel^-2.

    Raises:
        ValueError: if ``sigma_rel`` is not above 0 and at most ``LONGEST``.
    """
    if not 0 < sigma_rel <= LONGEST:
        raise ValueError(f"length of an average: expected above 0 to {LONGEST:.4f}, got {sigma_rel}")
    s = float(sigma_rel) ** -2
    return max(0.0, float(np.roots([1.0, 7.0, 16.0 - s, 12.0 - s]).real.max()))


def _inner(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """Returns the inner products of profiles, the integral of p_a p_b up to the smaller of both t (appendix C):

    (gamma_a + 1)(gamma_b + 1) / (gamma_a + gamma_b + 1) · t_b^gamma_a / t_a^(gamma_a + 1)   for t_a >= t_b,

    and with a and b exchanged otherwise; written with ratios of t, which do not overflow.
    """
    earlier, later = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    power = np.where(t_a >= t_b, gamma_a, gamma_b)  # the exponent of the later one
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (earlier / later) ** power / later


def solve_weights(stored: Sequence[tuple[float, float]], wanted: tuple[float, float]) -> np.ndarray:
    """Returns the weights of stored averages in the wanted one, in float64.

    They minimise the squared distance between the combined and the requested profile (appendix C: A x = b, with A the
    inner products of stored profiles and b those with the requested one). In addition they sum to 1, which the paper
    does not require, so that weights that no longer change are reproduced exactly.

    Args:
        stored: t (number of averaged steps) and gamma of each stored average.
        wanted: t and gamma of the requested average.
    """
    t, gamma = np.asarray(stored, dtype=np.float64).T
    wanted_t, wanted_gamma = np.float64(wanted[0]), np.float64(wanted[1])
    products = _inner(t[:, None], gamma[:, None], t[None], gamma[None])
    size = np.sqrt(np.diag(products))  # profiles are scaled to norm 1, which improves the condition of the matrix
    system = np.zeros((len(t) + 1, len(t) + 1))
    system[:-1, :-1] = products / size[:, None] / size[None]
    system[:-1, -1] = system[-1, :-1] = 1 / size / (1 / size).max()  # the constraint, by a Lagrange multiplier
    right = np.append(_inner(t, gamma, wanted_t, wanted_gamma) / size, 1 / (1 / size).max())
    return np.linalg.lstsq(system, right, rcond=None)[0][:-1] / size


def _usable(folder: Path, step: int | None) -> list[Snapshot]:
    """Returns the verified snapshots up to ``step`` (None: the newest) that began where that one did, by step."""
    found = []
    for path in folders.all_in(folder):
        if step is None or folders.step_of(path) <= step:
            try:
                found.append(stored_averages.read(path))
            except (ValueError, OSError) as error:
                log.warning(f"{error}; the average is rebuilt without it")
    if not found or step not in (None, found[-1].step):
        steps = [folders.step_of(path) for path in folders.all_in(folder)]
        has = f"those of steps {', '.join(map(str, steps))}" if steps else "none: train with callbacks=power_ema"
        raise ConfigError(f"averages: expected a valid snapshot of step {step or 'any'} in {folder}, which has {has}")
    return [one for one in found if one.origin == found[-1].origin]


def rebuild(folder: str | Path, length: float, step: int | None = None) -> tuple[dict[str, Tensor], int]:
    """As ``rebuild_all``, of one length: returns the network's state dict, and the step."""
    (state,), at = rebuild_all(folder, [length], step)
    return state, at


def rebuild_all(
    folder: str | Path, lengths: Sequence[float], step: int | None = None
) -> tuple[list[dict[str, Tensor]], int]:
    """Rebuilds averages of any lengths from the snapshots in ``RUN/ema``, which are verified and read once for all.

    Args:
        folder: the folder of snapshots.
        lengths: relative lengths (sigma_rel) of the averages: the standard deviation of each is this part of the
            training so far.
        step: the step of the snapshot at which the averages end; None for the newest.

    Returns:
        The network's state dict for each length, float32, and the step.

    Raises:
        ConfigError: if there is no valid snapshot of that step.
        ValueError: if a length is not above 0 and at most ``LONGEST``.
    """
    gammas = [gamma_of(length) for length in lengths]
    snapshots = _usable(Path(folder), step)
    last = snapshots[-1]
    stored = [(one.num_updates, gamma_of(of)) for one in snapshots for of in one.lengths]
    weights = [solve_weights(stored, (last.num_updates, gamma)) for gamma in gammas]
    places = [(snapshot, index) for snapshot in snapshots for index in range(len(snapshot.lengths))]
    states: list[dict[str, Tensor]] = [dict(last.rest) for _ in lengths]
    for name in last.averages[0]:  # tensor by tensor, so that only results of all lengths are in memory at once
        totals: list[Tensor | None] = [None] * len(lengths)
        for place, (snapshot, index) in enumerate(places):
            shares = [float(of_length[place]) for of_length in weights]
            if all(abs(share) <= _NEGLIGIBLE for share in shares):
                continue
            value = snapshot.tensor(index, name)
            for i, share in enumerate(shares):
                if abs(share) > _NEGLIGIBLE:
                    total = totals[i]
                    totals[i] = value * share if total is None else total.add_(value, alpha=share)
        for state, total in zip(states, totals, strict=True):
            assert total is not None
            state[name] = total.float()
    return states, last.step


def rebuild_weights(run: str | Path, lengths: Sequence[float], step: int | None = None) -> list[Weights]:
    """Rebuilds averages as weights of models, from which ``checkpoint_reader.assemble`` creates the models.

    Args:
        run: the run's folder.
        lengths: relative lengths of the averages.
        step: the step of a snapshot; None for the newest.

    Raises:
        ConfigError: if the run has no valid snapshot of that step, or no valid checkpoint, whose configuration is used.
        ValueError: if a length is out of range.
    """
    states, at = rebuild_all(Path(run, "ema"), lengths, step)
    path, weights = folders.path_of(Path(run, "ema"), at), read_weights(find(str(run)))
    return [
        replace(weights, state=state, step=at, kind=f"ema of length {length:g}", source=path)
        for length, state in zip(lengths, states, strict=True)
    ]


def write_checkpoint(weights: Weights, folder: str | Path) -> Path:
    """Writes weights as the EMA weights of a checkpoint for sampling, without an optimizer state to resume from.

    A checkpoint of another step in the folder is removed.

    Raises:
        OSError: if it cannot be written.
    """
    content = {
        "state_dict": {f"ema.net.{name}": value.float() for name, value in weights.state.items()},
        "config": weights.config,
        "global_step": weights.step,
    }
    path = folders.path_of(Path(folder), weights.step)

    def describe(files: dict[str, FileRecord]) -> Manifest:
        size, sha256 = weights.config.get("batch_size"), hash_of(weights.config)
        return Manifest(weights.step, files, 1, size, weights.config, sha256)

    folders.write(path, partial(torch.save, content), describe)
    folders.Keep(1).prune(path.parent, weights.step)
    return path
