"""Plain numbers for JSON: six significant digits, None where undefined."""

from __future__ import annotations

import math
from collections.abc import Iterable

DIGITS = 6


def number(value: float) -> float | None:
    """One number; None for NaN and infinity."""
    return float(f"{float(value):.{DIGITS}g}") if math.isfinite(value) else None


def numbers(values: Iterable[float]) -> tuple[float | None, ...]:
    """Many numbers."""
    return tuple(number(value) for value in values)
