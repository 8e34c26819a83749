"""Probe: what a probe found. Imports neither numpy nor torch."""

from __future__ import annotations

from relex_core.forecast.measures import Record
from relex_core.forecast.results import Forecast


class Figure(Record):
    """One number of the forecast."""

    name: str
    value: float | None
    sampling_error: float | None
    """Standard error of the sampling alone; 0 where everything was read, null where it is undefined."""


class Probe(Record):
    """A forecast from a sample."""

    trajectory: str
    base: str
    steps: tuple[int, ...]
    fraction: float
    """Asked for."""
    share: float
    """Of the weights, really read."""
    ranges: int
    """At every step."""
    bytes_read: int
    seed: int
    figures: tuple[Figure, ...]
    forecast: Forecast
    """From the sample; p values and dimensions are the sample's own."""
