"""The line (or polynomial) of a coefficient over the true optimizer steps: least squares.

c(t) ≈ intercept + slope · t          Boyd & Vandenberghe, Introduction to Applied Linear Algebra, ch. 13
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relex_core.shapes import Float64

# The products of a Gram matrix are float32: what its eigenvectors say is certain to about that.
NOISE = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Line:
    """A least-squares polynomial of the step; degree 1 is the paper's line."""

    polynomial: tuple[float, ...]
    """Powers ascending: (intercept, slope, ...)."""
    r_squared: float | None
    """1 − residual / total sum of squares; None where the coefficient is constant and R² undefined: see `varies`."""

    @property
    def intercept(self) -> float:
        return self.polynomial[0]

    @property
    def slope(self) -> float:
        return self.polynomial[1]

    def __call__(self, step: int) -> float:
        """The fitted coefficient at an optimizer step."""
        value = 0.0
        for power in reversed(self.polynomial):
            value = value * step + power
        return value


def varies(squares: np.ndarray | float, coefficients: Float64[np.ndarray, "... T"]) -> np.ndarray:
    """Whether a sum of T squared deviations is more than the rounding of the Gram matrix the coefficients are from.

    Deviations below float32's eps of the largest coefficient are rounding: a tensor that moved once, before the first
    checkpoint, has a constant coefficient but for that.

    Args:
        squares: "...", of the coefficients' deviations from their mean, or from a line.
        coefficients: a series for each sum.
    """
    level = NOISE * np.abs(coefficients).max(axis=-1, initial=0.0)
    return np.asarray(squares > coefficients.shape[-1] * np.square(level))


def fit_line(steps: Sequence[int], coefficient: Float64[np.ndarray, " T"], degree: int = 1) -> Line:
    """Fit c(t) by least squares.

    Args:
        steps: T true optimizer steps, ascending and distinct.
        coefficient: at these steps.
        degree: of the polynomial; needs T > degree.

    Raises:
        ValueError: too few steps for the degree.
    """
    if len(set(steps)) <= degree:
        raise ValueError(f"a polynomial of degree {degree} needs {degree + 1} distinct steps, got {len(set(steps))}")
    t = np.asarray(steps, dtype=np.float64)
    # Centred and scaled, 10, 20, ..., 10^6 is as well conditioned as −1 ... 1.
    middle, spread = float(t.mean()), float(np.ptp(t)) or 1.0
    powers = np.vander((t - middle) / spread, degree + 1, increasing=True)
    fitted, *_ = np.linalg.lstsq(powers, coefficient, rcond=None)
    residual = coefficient - powers @ fitted
    total = float(np.square(coefficient - coefficient.mean()).sum())
    r_squared = 1.0 - float(np.square(residual).sum()) / total if varies(total, coefficient) else None
    polynomial = np.zeros(1)
    for power in fitted[::-1]:  # Horner's rule, with the scaled step as a polynomial of the step
        polynomial = np.convolve(polynomial, [-middle / spread, 1.0 / spread])
        polynomial[0] += power
    return Line(tuple(polynomial[: degree + 1].tolist()), r_squared)
