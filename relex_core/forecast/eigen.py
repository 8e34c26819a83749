"""The first eigenvectors of many Gram matrices at once: block subspace iteration, checked, with LAPACK to fall back on.

Held-out forecasts need the first direction at every cut of every tensor, some ten thousand of them; a full
decomposition of each would take minutes. Golub & Van Loan, Matrix Computations, section 8.2.4.
"""

from __future__ import annotations

import numpy as np

BLOCK = 4
PRODUCTS, ROUNDS = 4, 3
"""Products with G between two looks at the residual, and how many looks before LAPACK takes over."""
TOLERANCE = 1e-8
"""Of the residual ‖G u − λ u‖, in units of λ: far below what the float32 products in G leave certain."""


def first_eigenvectors(grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalue and its vector, signed so that the coefficients sum to at least 0 (as the fit does).

    Args:
        grams: "N T T", symmetric, positive semidefinite.

    Returns:
        λ_1 "N", exactly 0 for a matrix of zeros, and u_1 "N T", 0 there.
    """
    count, length = grams.shape[:2]
    if not count:
        return np.zeros(0), np.zeros((0, length))
    size = np.einsum("nii->n", grams)
    values, vectors = _lapack(grams) if length <= 2 * BLOCK else _subspace(grams, size)
    values = np.where(size > 0, np.maximum(values, 0.0), 0.0)
    signs = np.where(vectors.sum(axis=1) < 0, -1.0, 1.0)
    return values, np.where(values[:, None] > 0, vectors * signs[:, None], 0.0)


def _lapack(grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh(grams)
    return values[:, -1], vectors[:, :, -1]


def _subspace(grams: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaled = grams / np.where(size > 0, size, 1.0)[:, None, None]
    block = np.broadcast_to(_start(grams.shape[1]), (*grams.shape[:2], BLOCK))
    for _ in range(ROUNDS):
        for _ in range(PRODUCTS):
            block = np.linalg.qr(scaled @ block)[0]
        values, vectors, residual = _ritz(scaled, block)
        poor = (residual > TOLERANCE * values) & (size > 0)
        if not poor.any():
            return values * size, vectors
    values[poor], vectors[poor] = _lapack(scaled[poor])
    return values * size, vectors


def _ritz(grams: np.ndarray, block: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest eigenvalue and its vector within the block, and the residual ‖G u − λ u‖."""
    image = grams @ block
    small, rotation = np.linalg.eigh(block.transpose(0, 2, 1) @ image)
    values, vectors = small[:, -1], (block @ rotation)[:, :, -1]
    residual = np.linalg.norm((image @ rotation)[:, :, -1] - values[:, None] * vectors, axis=1)
    return values, vectors, residual


def _start(length: int) -> np.ndarray:
    """The first eigenvectors of a random walk, which a trajectory's are close to: "T BLOCK"."""
    rows = np.arange(1, length + 1)[:, None]
    return np.sin((2 * np.arange(BLOCK) + 1) * np.pi * rows / (2 * length + 1))
