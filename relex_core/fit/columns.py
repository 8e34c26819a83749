"""Names of the stored columns; each is the stem of the files fit/<column>-*.safetensors."""

from __future__ import annotations

from relex_core.spec import FitSpec


def stored_columns(spec: FitSpec) -> tuple[str, ...]:
    """All columns that a fit may store; a tensor of lower rank has fewer."""
    main = trend_columns(spec.degree) if spec.basis == "per_parameter" else rank_columns(spec.rank)
    return (*main, *map(average_column, spec.trailing_averages))


def rank_columns(rank: int) -> tuple[str, ...]:
    """Unit singular directions: "direction", "direction_2", ..."""
    return ("direction", *(f"direction_{i}" for i in range(2, rank + 1)))[:rank]


def trend_columns(degree: int) -> tuple[str, ...]:
    """Basis `per_parameter`: "trend0", "trend1", ..."""
    return tuple(f"trend{i}" for i in range(degree + 1))


def average_column(count: int) -> str:
    """The mean of the last `count` deltas."""
    return f"trailing_average_{count}"


STATE_COLUMN = "state"
"""Integer tensors that changed during the run, as last observed."""
