"""Names of predictors that are more than a key of the table, and the numbers in names. Imports nothing."""

from __future__ import annotations


def number_text(value: float, digits: int = 0) -> str:
    """The shortest text that reads back as `value`, with at least `digits` decimals."""
    fixed = f"{value:.{digits}f}"
    return fixed if float(fixed) == value else repr(value)


def relex_name(scale: float) -> str:
    """The paper's line, times `scale`: another name for every other scale."""
    return f"{_RELEX}{number_text(scale, 2)}"


def relex_scale(name: str) -> float | None:
    """The scale in a name that `relex_name` gave, to the last bit; None for the other predictors."""
    return float(name.removeprefix(_RELEX)) if name.startswith(_RELEX) else None


_RELEX = "relex-scale"
HOLD = "hold"
RELEX = relex_name(1.0)


def extrapolates(name: str) -> bool:
    """Whether the predictor moves with the target step."""
    return name not in (HOLD, "reconstruction") and not name.startswith("trailing_average")
