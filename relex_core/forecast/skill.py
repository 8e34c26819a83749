"""Forecast skill against holding the last checkpoint, raw and at the best scale, by cut, horizon and pooled.

    skill(k, h) = 1 − Σ‖Δ_{k+h} − Δ̂_{k+h}‖² / Σ‖Δ_{k+h} − Δ_k‖²          sums over tensors; > 0: the predictor helps
    s*          = Σ⟨Δ, Δ̂⟩ / Σ‖Δ̂‖²                                       the scale with the smallest error, in hindsight
    error at s* = Σ‖Δ‖² − (Σ⟨Δ, Δ̂⟩)² / Σ‖Δ̂‖²

Pooling over cuts and horizons adds numerators and denominators, so that a pair counts by how far the run went in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from relex_core.forecast.held_out import HeldOut

WINDOW_EDGES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Horizons are pooled between these, in units of t_k: a forecast one window ahead doubles the steps."""


@dataclass(frozen=True)
class LineSkill:
    """The paper's line in some set of pairs (cut, target); arrays of any one shape."""

    skill: np.ndarray
    best_scale_skill: np.ndarray
    best_scale: np.ndarray


def line_skill(hold: np.ndarray, product: np.ndarray, square: np.ndarray, actual: np.ndarray) -> LineSkill:
    """Skill from Σ‖Δ_j − Δ_k‖², Σ⟨Δ, Δ̂⟩, Σ‖Δ̂‖² and Σ‖Δ‖²; NaN where nothing moved after the cut."""
    scale = _ratio(product, square)
    best = np.asarray(np.maximum(actual - np.nan_to_num(scale) * product, 0.0))
    raw = np.maximum(actual - 2 * product + square, 0.0)
    return LineSkill(1.0 - _ratio(raw, hold), 1.0 - _ratio(best, hold), np.where(hold > 0, scale, np.nan))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0))


def line_table(held: HeldOut, row: int) -> LineSkill:
    """Skill of the line of one row (groups, then tensors) for every cut and target: "K T"."""
    hold, product, square = held.line[:, row]
    return line_skill(hold, product, square, np.broadcast_to(held.actual[row], hold.shape))


def fair_pairs(held: HeldOut) -> np.ndarray:
    """Pairs that are pooled, "K T": later than the cut, and the cut is at least a sixth of the window.

    A line through the first two checkpoints of fifty says little about a line through all fifty.
    """
    enough = held.cuts >= max(2, -(-len(held.steps) // 6))
    return np.asarray((held.horizons > 0) & enough[:, None])


def pooled_line(held: HeldOut, pairs: np.ndarray, rows: slice) -> LineSkill:
    """Skill of the line over a set of pairs "K T", by row (groups, then tensors)."""
    hold, product, square = held.line[:, rows][:, :, pairs].sum(axis=2)
    return line_skill(hold, product, square, held.actual[rows] @ pairs.sum(axis=0))


def pooled_skill(held: HeldOut, name: str, pairs: np.ndarray) -> np.ndarray:
    """Skill of one predictor over those of the pairs where it applies, by group: "groups"."""
    return pooled(held.of(name), held.of("hold"), pairs)


def pooled(errors: np.ndarray, hold: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """1 − Σ error / Σ hold over pairs "K T" at which there is an error; errors: "groups K T"."""
    counted = pairs & np.isfinite(errors)
    return np.asarray(1.0 - _ratio(_sum(errors, counted), _sum(hold, counted)))


def _sum(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    return np.asarray(np.where(counted, values, 0.0).sum(axis=(1, 2)))


def cuts_helped(held: HeldOut, name: str, pairs: np.ndarray) -> np.ndarray:
    """Share of cuts at which a predictor's skill, pooled over targets, is above 0, by group; NaN without cuts."""
    errors, hold = held.of(name), held.of("hold")
    counted = pairs & np.isfinite(errors) & (hold > 0)
    gain = np.where(counted, hold - errors, 0.0).sum(axis=2)
    return _ratio((gain > 0).sum(axis=1).astype(np.float64), counted.any(axis=2).sum(axis=1).astype(np.float64))


def window_bins(held: HeldOut) -> list[tuple[float, float, np.ndarray]]:
    """Sets of fair pairs by relative horizon: lower edge (excluded), upper edge (included), pairs "K T"."""
    pairs = fair_pairs(held)
    edges = pairwise(WINDOW_EDGES)
    bins = [(low, high, pairs & (held.windows > low) & (held.windows <= high)) for low, high in edges]
    return [item for item in bins if item[2].any()]


def horizon_bins(held: HeldOut) -> list[tuple[float, np.ndarray]]:
    """Sets of fair pairs by horizon in optimizer steps, counted in median gaps: mean horizon, pairs "K T"."""
    pairs = fair_pairs(held)
    gap = float(np.median(np.diff(np.concatenate([[0.0], held.steps]))))
    rounded = np.where(pairs, np.maximum(np.round(held.horizons / gap), 1.0), 0.0)
    sets = [rounded == value for value in np.unique(rounded[pairs])]
    return [(float(held.horizons[pairs].mean()), pairs) for pairs in sets]
