"""probe: a trajectory -> Forecast, from a sample of its weights. What `relex forecast` would say, before any fit.

    probe("gs://rl-runs/math-17", "gs://models/base").forecast.advice.worthwhile

    ranges      which bytes are read: about 1 % of every tensor, the same at every step
    reading     base and every step, range by range, in parallel -> Gram matrices of the sample
    jackknife   the same sample with a part left out, weighted so that the spread is that of sampling
    figures     what comes back: the forecast, and its main figures with their sampling error

Nothing is written, and torch is not imported; numpy is loaded by the first call.
"""

from __future__ import annotations

from relex_core.probe.figures import Figure, Probe
from relex_core.probe.ranges import FRACTION, RANGE_BYTES
from relex_core.spec import LayoutSpec

__all__ = ["Figure", "Probe", "probe"]


def probe(
    trajectory: str,
    base: str,
    *,
    fraction: float = FRACTION,
    seed: int = 0,
    layout: LayoutSpec | None = None,
    range_bytes: int = RANGE_BYTES,
) -> Probe:
    """Forecast a trajectory up to its newest complete step from a sample of its weights.

    Args:
        trajectory, base: URIs. Incomplete steps are left out.
        fraction: of every tensor's bytes, in (0, 1]; small tensors are read more fully, or whole (ranges.py).
        seed: of the choice of ranges.
        layout: how step folders are laid out; None: as one of the known trainers does.
        range_bytes: of the shortest range.

    Raises:
        SpecError: fraction is out of range.
        WindowNotReady: fewer than two complete steps.
        WindowError, DataError: base or steps do not belong together, or are not finite.
        StorageError: the storage failed.
    """
    from relex_core.probe.stage import probe_trajectory

    return probe_trajectory(trajectory, base, fraction, seed, layout, range_bytes)
