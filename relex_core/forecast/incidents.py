"""Checkpoints that stand out: duplicates, outliers, jumps, and a kink where the pace of the run changes.

All from the sizes of the increments, ‖δ_i‖² per optimizer step, of the whole model. Only increments over the most
common gap are compared with each other, because momentum makes longer ones relatively longer.

    duplicate   ‖Δ_i − Δ_j‖² at rounding level
    outlier     one checkpoint off the path: a large increment there and one back, ⟨δ_i, δ_{i+1}⟩ far below its peers
    jump        one increment far above its neighbours, and no way back
    kink        the best split of the log sizes into before and after, against random orders of the same sizes

A walk's sizes are interchangeable, so random orders give the kink's level whatever the distribution; jumps and outliers
are measured in robust deviations and must be large outright. Together a pure walk raises fewer than 5 % false alarms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relex_core.forecast.window import Increments, increments

FEWEST = 8
"""Increments of one gap; below this nothing is compared."""
ORDERS = 999
KINK_LEVEL = 0.01
KINK_RATIO = 1.25
"""Smallest change of pace (root mean squared movement a step) that is reported."""
DEVIATIONS = 6.0
JUMP_RATIO = 2.0
"""Smallest squared size of a jump, in those of its neighbours; an outlier needs half."""
ROUNDING = 16 * float(np.finfo(np.float32).eps)
"""Gram matrices are summed from float32 products."""
NEIGHBOURS = 7


@dataclass(frozen=True)
class Kink:
    """The pace of the run changes."""

    step: int
    """First step at the new pace."""
    ratio: float
    """Movement a step after it, in units of that before."""
    p_value: float


@dataclass(frozen=True)
class Incidents:
    """What stands out, by optimizer step."""

    duplicates: tuple[tuple[int, int], ...]
    """(earlier step, later step with the same weights)."""
    outliers: tuple[int, ...]
    jumps: tuple[int, ...]
    kink: Kink | None


def incidents(gram: np.ndarray, steps: np.ndarray, seed: int) -> Incidents:
    """Look for all of them in the Gram matrix "T T" of the whole model."""
    moves = increments(gram, steps)
    same = duplicates(gram, steps)
    repeated = np.isin(steps, [later for _, later in same])
    repeated[1:] |= repeated[:-1]  # the first new weights after a repetition have the moves of several gaps in them
    rows = _comparable(moves, repeated)
    if len(rows) < FEWEST:
        return Incidents(same, (), (), None)
    sizes = np.log(np.diag(moves.inner)[rows])
    outliers = _outliers(moves, rows)
    jumps = [row for row in _jumps(sizes, rows) if row not in outliers and row - 1 not in outliers]
    calm = np.isin(rows, [*jumps, *outliers, *(row + 1 for row in outliers)], invert=True)
    found = kink(sizes[calm], steps[rows[calm]], seed) if calm.sum() >= FEWEST else None
    return Incidents(same, tuple(int(steps[row]) for row in outliers), tuple(int(steps[row]) for row in jumps), found)


def duplicates(gram: np.ndarray, steps: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Checkpoints whose weights an earlier one already has, up to rounding."""
    square = np.diag(gram)
    apart = square[:, None] + square[None, :] - 2 * gram
    same = np.triu((apart <= ROUNDING * np.maximum.outer(square, square)) & (np.minimum.outer(square, square) > 0), 1)
    return tuple(
        (int(steps[same[:, later].argmax()]), int(steps[later])) for later in range(len(steps)) if same[:, later].any()
    )


def _comparable(moves: Increments, repeated: np.ndarray) -> np.ndarray:
    """Rows of the most common gap that moved."""
    gaps, counts = np.unique(moves.gaps, return_counts=True)
    common = np.isclose(moves.gaps, gaps[counts.argmax()])
    return np.flatnonzero(common & (np.diag(moves.inner) > 0) & ~repeated)


def _outliers(moves: Increments, rows: np.ndarray) -> list[int]:
    """Rows with a large move there and back again."""
    pairs = rows[np.isin(rows + 1, rows)]
    if len(pairs) < FEWEST:
        return []
    back = -moves.inner[pairs, pairs + 1]
    typical = float(np.median(np.diag(moves.inner)[rows]))
    centre = float(np.median(back))
    spread = 1.4826 * float(np.median(np.abs(back - centre)))
    large = (back - centre > DEVIATIONS * spread) & (back > JUMP_RATIO / 2 * typical)
    return [int(row) for row in pairs[large]]


def _jumps(sizes: np.ndarray, rows: np.ndarray) -> list[int]:
    """Rows whose log size is far above the median of its neighbours'."""
    half = NEIGHBOURS // 2
    padded = np.pad(sizes, half, mode="reflect")
    local = np.median(np.lib.stride_tricks.sliding_window_view(padded, NEIGHBOURS), axis=1)
    above = sizes - local
    spread = 1.4826 * float(np.median(np.abs(above)))
    return [int(row) for row in rows[above > max(DEVIATIONS * spread, np.log(JUMP_RATIO))]]


def kink(sizes: np.ndarray, steps: np.ndarray, seed: int) -> Kink | None:
    """The change of pace, if there is one.

    Args:
        sizes: log squared increments, "n".
        steps: their steps, "n".
        seed: of the random orders.
    """
    orders = np.random.default_rng(seed).permuted(np.tile(sizes, (ORDERS, 1)), axis=1)
    contrasts = _contrasts(np.vstack([sizes, orders]))
    p_value = (1 + int((contrasts[1:].max(axis=1) >= contrasts[0].max()).sum())) / (1 + ORDERS)
    split = int(contrasts[0].argmax()) + 2
    ratio = float(np.exp((sizes[split:].mean() - sizes[:split].mean()) / 2))
    if p_value > KINK_LEVEL or max(ratio, 1 / ratio) < KINK_RATIO:
        return None
    return Kink(int(steps[split]), ratio, p_value)


def _contrasts(rows: np.ndarray) -> np.ndarray:
    """Standardised difference of the means after and before each split, at least two on either side: "orders n−3"."""
    length = rows.shape[1]
    before = np.arange(2, length - 1)
    sums = (rows - rows.mean(axis=1, keepdims=True)).cumsum(axis=1)[:, 1 : length - 2]
    return np.asarray(np.abs(sums) * np.sqrt(length / (before * (length - before))))
