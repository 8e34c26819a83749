"""The sampled weights of every step -> Gram matrices of the sampled deltas, by tensor and jackknife group.

Ranges are read by many threads at a time, in chunks: memory is THREADS · T · CHUNK weights in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from relex_core.checkpoints.reader import Reader
from relex_core.elements import read_floats
from relex_core.parallel import ordered_map
from relex_core.probe.ranges import GROUPS, Range, Sample
from relex_core.progress import progress

THREADS = 16
CHUNK = 64 * 1024
"""Weights of a range that are held at a time."""


@dataclass(frozen=True)
class SampledGrams:
    """What was read."""

    grams: np.ndarray
    """"N GROUPS T T", float64: sums over the sampled weights of each group, not scaled up."""
    bytes_read: int


def read_grams(base: Reader, steps: Sequence[Reader], samples: Sequence[Sample]) -> SampledGrams:
    """Read the samples from the base and from every step.

    Raises:
        CheckpointChanged, DataError, StorageError: as the readers do.
    """
    rows = {sample.tensor: row for row, sample in enumerate(samples)}
    grams = np.zeros((len(samples), GROUPS, len(steps), len(steps)))
    chunks = [chunk for sample in samples for part in sample.ranges for chunk in _chunks(part)]

    def gram(chunk: Range) -> tuple[Range, np.ndarray]:
        origin = read_floats(base, chunk.tensor, chunk.start, chunk.stop)
        rows = np.stack([read_floats(step, chunk.tensor, chunk.start, chunk.stop) - origin for step in steps])
        return chunk, (rows @ rows.T).astype(np.float64)

    total = sum(chunk.stop - chunk.start for chunk in chunks)
    # Thousands of small products: threads of BLAS would only wait for each other.
    with threadpool_limits(1), ThreadPoolExecutor(THREADS) as pool, progress("probe", total, unit="weights") as advance:
        for chunk, found in ordered_map(pool, gram, chunks, ahead=2 * THREADS):
            grams[rows[chunk.tensor], chunk.group] += found
            advance(chunk.stop - chunk.start)
    return SampledGrams(grams, sum(reader.bytes_read for reader in (base, *steps)))


def _chunks(part: Range) -> Iterator[Range]:
    for start in range(part.start, part.stop, CHUNK):
        yield replace(part, start=start, stop=min(start + CHUNK, part.stop))
