"""What a fit costs at least: its window mapped, and the arithmetic on it, on all cores; nothing else.

    python benchmarks/floor.py [--data bench-data/62000000-24] [--turns 7]

Every thread takes stripes of 512 Ki neighbouring weights of a trajectory that bench.py has made, whatever tensors they
belong to, and computes their Gram matrices and one direction. No eigenvectors, no checks, nothing stored. Beside it the
plain reads that bench.py compares the fit with, in turns.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import ml_dtypes
import numpy as np
from measuring import plain_read

from relex_core.kernels import Kernels, compiled_library
from relex_core.mapped import PAGE, MappedRows, mapping_library
from relex_core.parallel import cores
from relex_core.plan import MAX_STRIPE_COLUMNS
from relex_core.stripes import BLOCK_COLUMNS

STRIPE_BYTES = MAX_STRIPE_COLUMNS * 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("bench-data/62000000-24"))
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    base = arguments.data / "base" / "model.safetensors"
    window = sorted((arguments.data / "run").rglob("*.safetensors"))
    plain_read([*window, base])
    turns = [(plain_read([*window, base]).seconds, arithmetic(window, base)) for _ in range(arguments.turns)]
    read, least = (median(column) for column in zip(*turns, strict=True))
    print(f"plain pread, one thread                 {read:6.2f} s")
    print(f"map, Gram matrices, one direction       {least:6.2f} s on {cores()} cores")
    print(f"  {median(b / a for a, b in turns):.2f} x plain pread")


def arithmetic(window: list[Path], base: Path) -> float:
    """Seconds."""
    files = [os.open(path, os.O_RDONLY) for path in (*window, base)]
    stripes = iter(range(base.stat().st_size // STRIPE_BYTES))  # threads take from it one after the other
    started = time.perf_counter()
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(lambda _: _thread(files, stripes), range(cores())))
    seconds = time.perf_counter() - started
    for file in files:
        os.close(file)
    return seconds


def _thread(files: list[int], stripes: Iterable[int]) -> None:
    library, mapping = compiled_library(), mapping_library()
    assert library and mapping, "without a C compiler there is nothing to measure"
    rows = MappedRows(mapping, len(files), STRIPE_BYTES + PAGE)
    kernels, weights = Kernels(library, len(files) - 1), np.ones((1, len(files) - 1), np.float32)
    for stripe in stripes:
        rows.map(files, [stripe * STRIPE_BYTES] * len(files), STRIPE_BYTES)
        values = np.asarray(rows)[:, :STRIPE_BYTES].view(ml_dtypes.bfloat16)
        kernels.block_grams(values[:-1], values[-1], BLOCK_COLUMNS)
        kernels.mix(values[:-1], values[-1], weights)


if __name__ == "__main__":
    main()
