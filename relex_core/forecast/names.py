"""Names of predictors that are more than a key of the table. Imports nothing."""

from __future__ import annotations

HOLD = "hold"
RELEX = "relex-scale1.00"


def extrapolates(name: str) -> bool:
    """Whether the predictor moves with the target step."""
    return name not in (HOLD, "reconstruction") and not name.startswith("trailing_average")
