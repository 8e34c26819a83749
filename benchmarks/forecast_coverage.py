"""How often the forecast's interval of the drift share holds the true one, beside momentum of several strengths.

    python benchmarks/forecast_coverage.py [--walks 100] [--lengths 16 24 40 75 150] [--shares 0 0.2 0.5 0.8]

Simulated windows at regular steps. With momentum r: walks of 600 dimensions whose increments are stationary with
correlation r^lag, and a drift that makes the true share φ at the last step. "Adam": Adam (0.9, 0.999) from its first
step on, on gradients that are pure noise. Prints docs/forecast.md's table: the share of the 95 % intervals that hold φ;
in brackets, for φ > 0, of those that lie above 0; *u* where more than half of the windows were called too short to
tell drift from momentum.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from relex_core.forecast.momentum import momentum
from relex_core.forecast.nulls import null_models
from relex_core.forecast.window import increments, window_of
from relex_core.parallel import cores

MOMENTA = (0.0, 0.5, 0.7, 0.8, 0.9)
DIMENSIONS = 600


def walk_with_momentum(length: int, decay: float, share: float, random: np.random.Generator) -> np.ndarray:
    """Deltas "T d"."""
    noise = random.standard_normal((length, DIMENSIONS)) / np.sqrt(DIMENSIONS)
    noise[0] /= np.sqrt(1 - decay**2)
    for row in range(1, length):
        noise[row] += decay * noise[row - 1]
    drift = random.standard_normal(DIMENSIONS)
    drift *= np.sqrt(share / (1 - share) / length) / (1 - decay) / np.linalg.norm(drift)
    return np.asarray((noise + drift).cumsum(axis=0))


def adam_on_noise(length: int, random: np.random.Generator) -> np.ndarray:
    """Deltas "T d"."""
    first, second, rows = np.zeros(DIMENSIONS), np.zeros(DIMENSIONS), []
    for step in range(1, length + 1):
        gradient = random.standard_normal(DIMENSIONS)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        rows.append(first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8))
    return np.cumsum(rows, axis=0)


@dataclass(frozen=True)
class Judged:
    """One simulated window."""

    holds: bool
    above_zero: bool
    resolved: bool


def judged(rows: np.ndarray, share: float, seed: int) -> Judged:
    """What the forecast makes of deltas "T d" whose true drift share is known."""
    gram, length = rows @ rows.T, len(rows)
    moves = increments(gram[None], np.arange(1.0, length + 1))
    found = momentum(replace(moves, inner=moves.inner[0]))
    null = null_models(window_of({"a": gram}, range(1, length + 1)), np.ones((1, 1)), found, seed).of(0)
    low, high = null.drift_share_interval
    return Judged(low <= share <= high, low > 0, found.resolved)


def cell(length: int, decay: float | None, share: float, walks: int) -> str:
    """One cell of the table; decay: None for Adam."""
    random, windows = np.random.default_rng([length, int(1000 * (decay or 0)), int(1000 * share)]), []
    with threadpool_limits(1):
        for seed in range(walks):
            rows = adam_on_noise(length, random) if decay is None else walk_with_momentum(length, decay, share, random)
            windows.append(judged(rows, share, seed))

    def rate(of: Callable[[Judged], bool]) -> float:
        return sum(map(of, windows)) / walks

    text = f"{rate(lambda window: window.holds):.2f}"
    if rate(lambda window: window.resolved) < 0.5:
        return text + " *u*"
    return text + (f" ({rate(lambda window: window.above_zero):.2f})" if share else "")


def table(lengths: Sequence[int], shares: Sequence[float], walks: int) -> None:
    print("| r | φ | " + " | ".join(f"T = {length}" for length in lengths) + " |\n" + "|---" * (2 + len(lengths)) + "|")
    with ProcessPoolExecutor(cores()) as pool:
        rows = [(decay, share) for share in shares for decay in (*MOMENTA, *([None] if share == 0 else []))]
        cells = [[pool.submit(cell, length, decay, share, walks) for length in lengths] for decay, share in rows]
        for (decay, share), of_row in zip(rows, cells, strict=True):
            name = "Adam" if decay is None else f"{decay:g}"
            print(f"| {name} | {share:g} | " + " | ".join(cell.result() for cell in of_row) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--walks", type=int, default=100, help="windows a cell")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 24, 40, 75, 150])
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.2, 0.5, 0.8])
    arguments = parser.parse_args()
    table(arguments.lengths, arguments.shares, arguments.walks)


if __name__ == "__main__":
    main()
