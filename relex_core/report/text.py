"""Numbers and names as people read them. Accuracies are percentages, differences of accuracies are points."""

from __future__ import annotations

from collections.abc import Sequence

from relex_core.evaluate.candidates import BASE, LAST_OBSERVED, Candidate

NONE = "–"


def percent(value: float | None, digits: int = 1) -> str:
    """0.9075 -> "90.8 %"; None -> "–"."""
    return NONE if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def points(value: float, digits: int = 1) -> str:
    """0.67 -> "+67.0"; in percentage points."""
    return f"{100 * value:+.{digits}f}".replace("-", "−")


def points_interval(interval: Sequence[float]) -> str:
    return f"{points(interval[0])} to {points(interval[1])}"


def percent_interval(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}\N{NO-BREAK SPACE}%"


def number(value: float | None, digits: int = 3) -> str:
    """A plain decimal; None -> "–"."""
    return NONE if value is None else f"{value:.{digits}f}".replace("-", "−")


def compact(value: float | None) -> str:
    """Four significant digits, for figures of any size."""
    return NONE if value is None else f"{value:.4g}".replace("-", "−")


def interval_words(interval: Sequence[float]) -> str:
    """What an interval of a difference says: "between 2.0 points worse and 7.1 points better"."""
    low, high = (round(100 * end, 1) for end in interval)
    if low >= 0:
        return f"between {low:.1f} and {high:.1f} points better"
    if high <= 0:
        return f"between {-high:.1f} and {-low:.1f} points worse"
    return f"anywhere from {-low:.1f} points worse to {high:.1f} points better"


def p_value(p: float) -> str:
    """Below double precision its digits mean nothing."""
    return "< 1e-15" if p < 1e-15 else f"{p:.2g}"


def seconds_text(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def plural(count: int, noun: str) -> str:
    """ "1 question", "2 questions"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def label_of(candidate: Candidate) -> str:
    """A candidate's name for a chart: "relex 300, scale 0.5" for relex-step00300-scale0.50."""
    if candidate.name == BASE:
        return "base"
    if candidate.name == LAST_OBSERVED:
        return f"observed {candidate.step}"
    if candidate.step is None:
        return candidate.name.replace("_", " ").replace("-", " ")
    scale = "" if candidate.scale in (None, 1.0) else f", scale {candidate.scale:g}"
    cut = "" if candidate.spatial_rank is None else f", spatial rank {candidate.spatial_rank}"
    return f"{candidate.method.replace('_', ' ')} {candidate.step}{scale}{cut}"


def unique(labels: Sequence[str], names: Sequence[str]) -> list[str]:
    """The labels, or where two are the same, the names: a chart would draw them as one."""
    return [name if labels.count(label) > 1 else label for label, name in zip(labels, names, strict=True)]
