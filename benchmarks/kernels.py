"""Gram matrices and directions by the compiled kernels beside numpy, on one core, from data in memory.

    python benchmarks/kernels.py [--turns 9]

Prints G weights a second: medians of several turns, in which the two take turns.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from statistics import median

import ml_dtypes
import numpy as np
from threadpoolctl import threadpool_limits

from relex_core.fit.gram import Tiles, block_grams, mix
from relex_core.fit.memory import HostMemory
from relex_core.mapped import PAGE

COLUMNS = 512 * 1024
CASES = (  # steps, dtype, share of the weights that ever change
    (8, ml_dtypes.bfloat16, 1.0),
    (16, ml_dtypes.bfloat16, 1.0),
    (24, ml_dtypes.bfloat16, 1.0),
    (75, ml_dtypes.bfloat16, 1.0),
    (24, ml_dtypes.bfloat16, 0.05),
    (24, np.float16, 1.0),
    (24, np.float32, 1.0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    turns = parser.parse_args().turns
    memories = {"numpy": HostMemory(compiled=False), "kernel": HostMemory()}
    kinds = [(what, by) for what in ("Gram", "mix") for by in memories]
    print("| T | dtype | changed | " + " | ".join(map(", ".join, kinds)) + " |")
    print("|---" * 7 + "|")
    with threadpool_limits(1):
        for steps, dtype, changed in CASES:
            window = walk(steps, dtype, changed)
            rates = defaultdict(list)
            for _ in range(turns):
                for by, memory in memories.items():
                    for what, rate in zip(("Gram", "mix"), measured(*window, memory), strict=True):
                        rates[what, by].append(rate)
            figures = (f"{median(rates[kind]):.2f}" for kind in kinds)
            print(f"| {steps} | {np.dtype(dtype)} | {changed:.2f} | " + " | ".join(figures) + " |", flush=True)


def walk(steps: int, dtype: type, changed: float) -> tuple[np.ndarray, np.ndarray]:
    """A window "T n" and its base "n"."""
    generator = np.random.default_rng(0)
    base = (0.02 * generator.standard_normal(COLUMNS, np.float32)).astype(dtype)
    moves = np.cumsum(5e-5 * generator.standard_normal((steps, COLUMNS), np.float32), axis=0)
    moves[:, generator.random(COLUMNS) >= changed] = 0
    rows = np.empty((steps, COLUMNS + PAGE), dtype)[:, :COLUMNS]  # as in a stripe: a power of two apart is slower
    rows[...] = base.astype(np.float32) + moves
    return rows, base


def measured(slices: np.ndarray, base: np.ndarray, memory: HostMemory) -> tuple[float, float]:
    """G weights a second of (Gram matrix, one direction)."""
    tiles = Tiles(len(slices), memory)
    started = time.perf_counter()
    block_grams(slices, base, tiles)
    between = time.perf_counter()
    mix(slices, base, np.ones((len(slices), 1)), tiles)
    done = time.perf_counter()
    return slices.size / (between - started) / 1e9, slices.size / (done - between) / 1e9


if __name__ == "__main__":
    main()
