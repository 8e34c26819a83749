"""What the fit of a LoRA window holds in memory. Pure arithmetic on shapes and ranks; imports no numpy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from relex_core.checkpoints.contents import Adapter
from relex_core.errors import SpecError
from relex_core.spec import FitSpec

WHOLE_TILE = 64 * 1024
"""Columns of a tile "T m" of a tensor that was trained whole."""


def total_rank(weight: str, adapters: Sequence[Adapter]) -> int:
    """K: the ranks of one weight's deltas at all steps together."""
    return sum(adapter.targets[weight].rank for adapter in adapters)


def stored_numbers(name: str, adapters: Sequence[Adapter], numel: int) -> int:
    """Numbers of one stored direction of a tensor, at most."""
    target = adapters[0].targets.get(name)
    if target is None:
        return numel
    return min(total_rank(name, adapters), *target.shape) * sum(target.shape)


def tensor_bytes(name: str, adapters: Sequence[Adapter]) -> int:
    """Bytes that the fit of one tensor holds at most, all of it float64: the factors side by side, twice while they are
    put there; their orthogonal bases, with LAPACK's copies; and the core with its singular vectors."""
    target = adapters[0].targets.get(name)
    if target is None:
        return 8 * 3 * len(adapters) * WHOLE_TILE
    (rows, columns), rank = target.shape, total_rank(name, adapters)
    p, q = min(rows, rank), min(columns, rank)
    numbers = 2 * rank * (rows + columns) + 2 * (rows * p + columns * q) + 4 * p * q + 2 * rank * (p + q)
    return 9 * numbers  # 8 bytes each; measured: 87 to 100 % of that, and an eighth is left for the rest


def workers_within(
    spec: FitSpec, budget: int, names: Iterable[str], adapters: Sequence[Adapter], workers: int, resident: int
) -> tuple[int, int]:
    """(tensors that are fitted at the same time, bytes that this takes at most, interpreter included).

    Args:
        budget: bytes that the process may hold.
        resident: bytes that the process holds before.

    Raises:
        SpecError: the budget does not hold a single one.
    """
    largest = max((tensor_bytes(name, adapters) for name in names), default=0)
    kept = 2 * int(spec.group_size)
    # One more than there are threads waits, finished, for its turn.
    fitting = (budget - resident - kept) // largest - 1 if largest else workers
    if fitting < 1:
        needed = resident + kept + 2 * largest
        raise SpecError(
            f"fit.memory_budget of {budget / 2**20:.0f} MiB is too small for {len(adapters)} adapters",
            expected=f"at least {-(-needed // 2**20)} MiB",
            next_step="raise fit.memory_budget",
        )
    used = min(workers, fitting)
    return used, resident + kept + (used + 1) * largest
