"""From a Gram matrix to the directions: everything here is a function of G and the steps.

    G = U Λ Uᵀ,  σ_i = √λ_i,  c_i = σ_i u_i,  v_i = Mᵀ u_i / σ_i          M: deltas, "T d"; never seen here

This is the method of snapshots (Sirovich 1987): the right singular vectors of M from the T × T matrix M Mᵀ.
Every direction is a mix of the observed deltas, D = Cᵀ M; `Basis.mixing` is C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relex_core.fit.columns import average_column, rank_columns, trend_columns
from relex_core.fit.line import NOISE, Line, fit_line
from relex_core.shapes import Float64
from relex_core.spec import FitSpec


@dataclass(frozen=True)
class Spectrum:
    """Singular data of one tensor's deltas."""

    singular_values: Float64[np.ndarray, " T"]
    """Descending; those at noise level are 0."""
    coefficients: Float64[np.ndarray, "r T"]
    """c_i of the first r components; r may be smaller than asked for, where the deltas have lower rank."""
    vectors: Float64[np.ndarray, "r T"]
    """u_i."""

    @property
    def rank(self) -> int:
        return len(self.coefficients)

    @property
    def moved(self) -> bool:
        """Whether the tensor moved at all: G ≠ 0."""
        return self.rank > 0

    def explained_variance(self, gram: Float64[np.ndarray, "T T"]) -> float | None:
        """Share of the squared deltas along the first r components, uncentred; None if the tensor never moved."""
        total = float(np.trace(gram))
        return float(np.square(self.singular_values[: self.rank]).sum()) / total if self.moved else None


def decompose(gram: Float64[np.ndarray, "T T"], rank: int) -> Spectrum:
    """Eigenvectors of a Gram matrix.

    The sign of each component is such that its coefficients sum to at least 0 (where the sum is 0, such that the
    largest is positive), so that the direction points the way the run went.

    Args:
        gram: symmetric.
        rank: components wanted.
    """
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1], vectors[:, ::-1]
    # An eigenvalue below that is rounding noise, not a direction.
    floor = max(float(values[0]), 0.0) * len(gram) * NOISE
    values = np.where(values > floor, values, 0.0)
    kept = min(rank, int(np.count_nonzero(values)))
    sigma = np.sqrt(values)
    u = vectors[:, :kept].T
    sums = u.sum(axis=1)
    largest = u[np.arange(kept), np.abs(u).argmax(axis=1)] if kept else sums
    tied = np.abs(sums) <= len(gram) * np.finfo(np.float64).eps
    u = u * np.where(np.where(tied, largest, sums) < 0, -1.0, 1.0)[:, None]
    return Spectrum(sigma, sigma[:kept, None] * u, u)


@dataclass(frozen=True)
class Basis:
    """Which directions are stored for one tensor, and how they mix the observed deltas."""

    names: tuple[str, ...]
    """One per column, the stems of the stored files: "direction", "direction_2", "trailing_average_20", ..."""
    mixing: Float64[np.ndarray, "T columns"]
    """C."""


def rank_basis(spectrum: Spectrum) -> Basis:
    """Unit directions v_i: C = u_i / σ_i."""
    sigma = spectrum.singular_values[: spectrum.rank]
    return Basis(rank_columns(spectrum.rank), (spectrum.vectors / sigma[:, None]).T)


def trend_basis(steps: Sequence[int], degree: int) -> Basis:
    """A line for every weight: D = Qᵀ M, with Q R the orthonormalised powers 1, t, ..., t^degree of the steps.

    The weight at step τ is then W_0 + φ(τ)ᵀ D with φ from `trend_coefficients`; this is the least-squares fit of
    each weight's own delta over the steps (the paper's "raw delta" ablation).
    """
    q, _ = _orthonormal_powers(steps, degree)
    return Basis(trend_columns(degree), q)


def trend_coefficients(steps: Sequence[int], degree: int, step: int) -> list[float]:
    """φ(τ) = R⁻ᵀ (1, τ, ..., τ^degree): what multiplies each trend direction at step τ."""
    _, r = _orthonormal_powers(steps, degree)
    powers = np.power((step - np.mean(steps)) / _spread(steps), np.arange(degree + 1))
    return [float(value) for value in np.linalg.solve(r.T, powers)]


def _orthonormal_powers(
    steps: Sequence[int], degree: int
) -> tuple[Float64[np.ndarray, "T columns"], Float64[np.ndarray, "columns columns"]]:
    scaled = (np.asarray(steps, dtype=np.float64) - np.mean(steps)) / _spread(steps)
    q, r = np.linalg.qr(np.vander(scaled, degree + 1, increasing=True))
    signs = np.where(np.diag(r) < 0, -1.0, 1.0)  # fixes the sign that QR leaves open
    return q * signs, r * signs[:, None]


def _spread(steps: Sequence[int]) -> float:
    return float(np.ptp(steps)) or 1.0


def trailing_average_basis(count: int, steps: int) -> Basis:
    """The mean of the last `count` deltas: one column of 1 / count.

    Raises:
        ValueError: the window holds fewer checkpoints.
    """
    if count > steps:
        raise ValueError(f"a trailing average of {count} needs {count} checkpoints, the window holds {steps}")
    mixing = np.zeros((steps, 1))
    mixing[steps - count :] = 1.0 / count
    return Basis((average_column(count),), mixing)


def stored_basis(spectrum: Spectrum, steps: Sequence[int], spec: FitSpec) -> Basis | None:
    """Which directions are stored for a tensor with this spectrum; None if it never moved."""
    if not spectrum.moved:
        return None
    main = trend_basis(steps, spec.degree) if spec.basis == "per_parameter" else rank_basis(spectrum)
    return _joined([main, *(trailing_average_basis(count, len(steps)) for count in spec.trailing_averages)])


def _joined(bases: Sequence[Basis]) -> Basis:
    """All columns of several bases."""
    names = tuple(name for basis in bases for name in basis.names)
    return Basis(names, np.concatenate([basis.mixing for basis in bases], axis=1))


def component_lines(spectrum: Spectrum, steps: Sequence[int], degree: int) -> list[Line]:
    """The line of each component's coefficient over the true steps."""
    return [fit_line(steps, coefficient, degree) for coefficient in spectrum.coefficients]
