"""Matrices of low rank as products of thin ones: sums, compression, truncation. Pure: arrays in, arrays out.

    L R,  L "m k", R "k n"                          the matrix
    Σ a_i L_i R_i = [a_1 L_1 ...] [R_1; ...]        a sum: factors side by side; the rank bound adds up
    L = Q_l T_l,  Rᵀ = Q_r T_r,  T_l T_rᵀ = U Σ Vᵀ  compression: L R = (Q_l U Σ) (Q_r V)ᵀ, its singular data

Only the core T_l T_rᵀ is decomposed: k × k for thin factors, never m × n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relex_core.shapes import Float

# Factors are stored in float32 at most, so what lies below its rounding is no part of the matrix.
ROUNDING = float(np.finfo(np.float32).eps) / 2


@dataclass(frozen=True)
class LowRank:
    """A matrix "m n" as a product."""

    left: Float[np.ndarray, "m k"]
    right: Float[np.ndarray, "k n"]
    compressed: bool = False
    """Whether the terms are singular ones, descending: orthogonal columns on the left, orthogonal rows on the right."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """k: an upper bound of the matrix's rank."""
        return len(self.right)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.left).all() and np.isfinite(self.right).all())

    def transposed(self) -> LowRank:
        return LowRank(self.right.T, self.left.T, self.compressed)

    def scaled(self, factor: float) -> LowRank:
        return LowRank(factor * self.left, self.right, self.compressed)

    def cut(self, rank: int | None) -> LowRank:
        """The first terms of the product (None: all); of a compressed matrix, its best approximation of that rank."""
        return LowRank(self.left[:, :rank], self.right[:rank], self.compressed)

    def astype(self, dtype: np.dtype) -> LowRank:
        return LowRank(self.left.astype(dtype), self.right.astype(dtype), self.compressed)

    def elements(self, start: int, stop: int) -> Float[np.ndarray, " n"]:
        """Elements `start` to `stop` of the flattened matrix."""
        columns = self.right.shape[1]
        first, last = start // columns, -(-stop // columns)
        rows: np.ndarray = (self.left[first:last] @ self.right).reshape(-1)
        return rows[start - first * columns : stop - first * columns]


def nothing(shape: tuple[int, int]) -> LowRank:
    """The zero matrix."""
    return LowRank(np.zeros((shape[0], 0)), np.zeros((0, shape[1])))


def added(terms: Sequence[LowRank]) -> LowRank:
    """The sum of at least one matrix."""
    if len(terms) == 1:
        return terms[0]
    return LowRank(np.hstack([term.left for term in terms]), np.vstack([term.right for term in terms]))


@dataclass(frozen=True)
class Triangles:
    """Both factors of a sum, orthogonalised once; every mix of its terms is then a small core."""

    left: Float[np.ndarray, "m p"]
    """Q_l."""
    left_triangle: Float[np.ndarray, "p k"]
    right: Float[np.ndarray, "n q"]
    """Q_r."""
    right_triangle: Float[np.ndarray, "q k"]

    def mixed(self, weights: Float[np.ndarray, " k"]) -> LowRank:
        """L diag(weights) R, compressed: left = U Σ, right = Vᵀ, to the numerical rank.

        What is left out is, in the Frobenius norm, at most ROUNDING times the whole.
        """
        core = (self.left_triangle * weights) @ self.right_triangle.T
        u, sigma, vt = np.linalg.svd(core, full_matrices=False)
        kept = numerical_rank(sigma)
        return LowRank(self.left @ (u[:, :kept] * sigma[:kept]), vt[:kept] @ self.right.T, True)


def triangles(matrix: LowRank) -> Triangles:
    """The QR decompositions of both factors."""
    left, left_triangle = np.linalg.qr(matrix.left)
    right, right_triangle = np.linalg.qr(matrix.right.T)
    return Triangles(left, left_triangle, right, right_triangle)


def compress(matrix: LowRank) -> LowRank:
    """The same matrix at its numerical rank, as U Σ and Vᵀ."""
    if matrix.compressed or not matrix.rank:
        return matrix
    return triangles(matrix).mixed(np.ones(matrix.rank))


def numerical_rank(sigma: Float[np.ndarray, " k"]) -> int:
    """How many of the descending singular values are needed for all but a share ROUNDING of the Frobenius norm."""
    tails = np.sqrt(np.cumsum(np.square(sigma)[::-1]))[::-1]
    return int(np.count_nonzero(tails > ROUNDING * tails[0])) if len(sigma) else 0


def balanced(compressed: LowRank, rank: int) -> tuple[Float[np.ndarray, "m r"], Float[np.ndarray, "r n"]]:
    """(B, A) of exactly `rank` columns and rows with B A = the first terms of a compressed matrix, or of its transpose:
    B = U √Σ, A = √Σ Vᵀ. A matrix of lower rank leaves columns and rows of zeros.
    """
    kept = compressed.cut(rank)
    lefts, rights = np.linalg.norm(kept.left, axis=0), np.linalg.norm(kept.right, axis=1)
    b, a = np.zeros((compressed.shape[0], rank)), np.zeros((rank, compressed.shape[1]))
    b[:, : kept.rank] = kept.left * np.sqrt(rights / lefts)
    a[: kept.rank] = kept.right * np.sqrt(lefts / rights)[:, None]
    return b, a
