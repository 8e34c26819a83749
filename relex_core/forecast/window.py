"""What the forecast is a function of: Gram matrices, true steps and names. Increments by differencing.

Δ_i = W_{t_i} − W_0,  G_ij = ⟨Δ_i, Δ_j⟩        δ_i = Δ_i − Δ_{i−1} with Δ_0 = 0 at step 0,  I_ij = ⟨δ_i, δ_j⟩
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from relex_core.errors import DataError, WindowError


@dataclass(frozen=True)
class Window:
    """The observed deltas of N tensors, seen through their Gram matrices."""

    names: tuple[str, ...]
    steps: np.ndarray
    """"T", true optimizer steps, ascending, > 0; float64."""
    grams: np.ndarray
    """"N T T", float64, symmetric."""

    @property
    def length(self) -> int:
        """T, the number of checkpoints."""
        return len(self.steps)

    def until(self, count: int) -> Window:
        """The window of the first `count` checkpoints."""
        return Window(self.names, self.steps[:count], self.grams[:, :count, :count])

    def pooled(self, members: np.ndarray) -> np.ndarray:
        """Gram matrices of the concatenated deltas of groups of tensors, "groups T T"; members: "groups N"."""
        return np.tensordot(members, self.grams, axes=1)


def window_of(grams: Mapping[str, np.ndarray], steps: Sequence[int]) -> Window:
    """Check and stack the Gram matrices. A checkpoint of step 0 is the base itself and is left out.

    Args:
        grams: by tensor, "T T".
        steps: T true optimizer steps.

    Raises:
        WindowError: fewer than two checkpoints after step 0, or steps that do not ascend.
        DataError: a matrix of another shape, or with NaN or Inf.
    """
    times = np.asarray(steps, dtype=np.float64)
    if np.any(np.diff(times) <= 0) or np.any(times < 0):
        raise WindowError("the steps do not ascend", expected=f"ascending optimizer steps, not {list(steps)}")
    kept = times > 0
    if int(kept.sum()) < 2:
        raise WindowError(f"a forecast needs at least 2 checkpoints after the base, got {int(kept.sum())}")
    for name, gram in grams.items():
        if gram.shape != (len(times), len(times)) or not np.isfinite(gram).all():
            raise DataError(
                f"the Gram matrix has shape {gram.shape} or is not finite",
                where=name,
                expected=f"a finite matrix of shape {(len(times), len(times))}",
            )
    stack = np.array([np.asarray(gram, dtype=np.float64) for gram in grams.values()])
    stack = stack.reshape(len(grams), len(times), len(times))[:, kept][:, :, kept]
    return Window(tuple(grams), times[kept], (stack + stack.transpose(0, 2, 1)) / 2)


@dataclass(frozen=True)
class Increments:
    """Inner products of the moves between neighbouring checkpoints, the first one from the base."""

    inner: np.ndarray
    """I, "... T T"."""
    gaps: np.ndarray
    """"T", optimizer steps that each increment spans."""
    lags: np.ndarray
    """"T T", integer: 0 on the diagonal, 1 for neighbours, then growing with the optimizer steps in between,
    counted in median gaps; on regular steps |i − j|."""
    mixing: np.ndarray
    """What made these of the window's own increments, "T T": the identity, unless momentum was taken out."""

    @property
    def last_step(self) -> float:
        """t_T."""
        return float(self.gaps.sum())


def increments(grams: np.ndarray, steps: np.ndarray) -> Increments:
    """Difference Gram matrices "... T T" over the steps "T", starting from the base."""
    padded = np.zeros((*grams.shape[:-2], len(steps) + 1, len(steps) + 1))
    padded[..., 1:, 1:] = grams
    ends, starts = steps, np.concatenate([[0.0], steps[:-1]])
    gaps = ends - starts
    between = np.maximum(starts[None, :] - ends[:, None], starts[:, None] - ends[None, :])
    lags = np.floor(1.0 + between / np.median(gaps) + 1e-9).astype(np.int64)
    np.fill_diagonal(lags, 0)
    return Increments(np.diff(np.diff(padded, axis=-1), axis=-2), gaps, lags, np.eye(len(steps)))
