"""The Gram matrix of low-rank deltas, from their factors: "T T" out of products no larger than a row of "r K".

    ⟨Δ_t, Δ_u⟩ = tr(A_tᵀ B_tᵀ B_u A_u) = Σ (B_tᵀ B_u ∘ A_t A_uᵀ)        K: all ranks together; all of it in float64

Nothing cancels but what cancels in the deltas themselves: the scale of a small delta is in its factor B.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from relex_core.lora.factors import LowRank
from relex_core.shapes import Float64


def low_rank_gram(stack: LowRank, ranks: Sequence[int]) -> Float64[np.ndarray, "T T"]:
    """Inner products of the deltas of one tensor.

    Args:
        stack: the factors of all T deltas side by side (`factors.added`), float64.
        ranks: of each delta; they may differ, but none is 0.
    """
    starts = np.cumsum([0, *ranks])
    gram = np.empty((len(ranks), len(ranks)))
    for t, (start, stop) in enumerate(pairwise(starts)):
        left = stack.left[:, start:stop].T @ stack.left[:, start:]
        right = stack.right[start:stop] @ stack.right[start:].T
        gram[t, t:] = np.add.reduceat((left * right).sum(axis=0), starts[t:-1] - start)
        gram[t:, t] = gram[t, t:]
    return gram
