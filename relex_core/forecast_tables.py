"""Forecast and probe as short tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.filesize import decimal

from relex_core.forecast import Forecast
from relex_core.forecast.names import HOLD
from relex_core.probe import Probe
from relex_core.tables import steps_text, table_text


def forecast_text(forecast: Forecast) -> str:
    advice, null = forecast.advice, forecast.model.null
    explained = f"{_text(null.explained_variance)}, {_text(null.walk_explained_variance)}"
    limit = "none" if advice.horizon_limit is None else f"up to step {advice.horizon_limit}"
    rows = [
        ("is extrapolation worthwhile?", advice.worthwhile),
        ("best extrapolating predictor in the window", advice.predictor),
        ("horizon with measured skill", limit),
        ("drift share φ", _interval(null.drift_share, null.drift_share_interval)),
        ("explained variance, and a walk's", explained),
        ("R², and a walk's", f"{_text(null.r_squared)}, {_text(null.walk_r_squared)}"),
    ]
    parts = [table_text(("forecast", ""), rows), predictors_text(forecast)]
    return "\n\n".join([*parts, _reasons(forecast)])


def predictors_text(forecast: Forecast) -> str:
    """Held-out skill of every predictor, the best first, and what the null model expects of it."""
    found = {name: each for name, each in forecast.model.predictors.items() if name != HOLD}
    best = sorted(found, key=lambda name: -float("inf") if (s := found[name].skill) is None else s, reverse=True)
    ahead = [f"at {step}, expected" for step in forecast.target_steps]
    rows = [(name, _skill(found[name].skill), *map(_skill, found[name].expected)) for name in best]
    choices = forecast.auto.modules if forecast.auto.by_module else {"": forecast.auto.predictor}
    named = f"auto ({', '.join(dict.fromkeys(choices.values()))})"
    chosen = forecast.auto.skill_by_module if forecast.auto.by_module else forecast.auto.skill
    rows.append((named, _skill(chosen), *("" for _ in ahead)))
    return table_text(("predictor, against keeping the last checkpoint", "skill, held out", *ahead), rows)


def probe_text(probe: Probe) -> str:
    advice = probe.forecast.advice
    rows = [
        (figure.name, _text(figure.value), "undefined" if (e := figure.sampling_error) is None else f"± {e:.4f}")
        for figure in probe.figures
    ]
    share = 100 * probe.share
    percent = f"{share:.0f}" if share >= 10 else f"{share:.2g}"
    read = [
        f"A sample of {percent} % of the weights, {decimal(probe.bytes_read)} read: "
        f"{probe.ranges} ranges, the same at every step: {steps_text(probe.steps)}.",
        f"Is extrapolation worthwhile? {advice.worthwhile}",
    ]
    parts = [*read, table_text(("probe", "", "sampling"), rows), _reasons(probe.forecast)]
    return "\n\n".join(parts)


def _reasons(forecast: Forecast) -> str:
    return "\n".join([*(f"- {reason}" for reason in forecast.advice.reasons), forecast.advice.caveat])


def _interval(value: float | None, interval: Sequence[float | None]) -> str:
    low, high = interval
    return _text(value) if low is None or high is None else f"{_text(value)} [{low:.2f}, {high:.2f}]"


def _skill(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
