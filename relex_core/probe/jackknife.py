"""Sampling error of anything that is a function of the Gram matrices: the extended delete-a-group jackknife.

Estimate: Σ over a tensor's n ranges, divided by f, the share of its weights that they hold. Replicate g leaves out
group g. A tensor with fewer ranges than there are groups takes part in n of the G replicates only; so that its variance
comes out whole, its range left out keeps the weight 1 − (n − 1) Z and the others get 1 + Z (Kott 2001, Journal of
Official Statistics 17):

    Z² = G (1 − f) / ((G − 1) n (n − 1))                error² = (G − 1) / G Σ_g (x_g − x)²

It is the error of sampling alone: how far the whole Gram matrices would be. Ranges are drawn one from each part of
a tensor, which makes them differ less than the jackknife thinks; so errors are rather too large than too small.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from relex_core.probe.ranges import GROUPS, Sample


def estimate(grams: np.ndarray, samples: Sequence[Sample]) -> np.ndarray:
    """Whole Gram matrices, "N T T"; grams: "N GROUPS T T", sums over samples."""
    scale = np.array([1.0 / sample.share for sample in samples])
    return np.asarray(grams.sum(axis=1) * scale[:, None, None])


def replicates(grams: np.ndarray, samples: Sequence[Sample]) -> np.ndarray:
    """The estimate without each group, "GROUPS N T T"."""
    weights = np.array([_weights(sample) for sample in samples])
    return np.asarray(np.einsum("ngh,nhij->gnij", weights, grams, optimize=True))


def _weights(sample: Sample) -> np.ndarray:
    """Weights of the tensor's groups in every replicate: "GROUPS (left out) GROUPS"."""
    count = len(sample.ranges)
    weights = np.ones((GROUPS, GROUPS))
    if count > 1:
        step = np.sqrt(GROUPS * (1.0 - sample.share) / ((GROUPS - 1) * count * (count - 1)))
        for part in sample.ranges:
            weights[part.group] = 1.0 + step
            weights[part.group, part.group] = 1.0 - (count - 1) * step
    return np.asarray(weights / sample.share)


def standard_error(whole: float | None, parts: Sequence[float | None]) -> float | None:
    """Standard error of a figure from its replicates; None where one of them is undefined."""
    known = [part for part in parts if part is not None]
    if whole is None or len(known) < len(parts):
        return None
    return float(np.sqrt((GROUPS - 1) / GROUPS * sum((part - whole) ** 2 for part in known)))
