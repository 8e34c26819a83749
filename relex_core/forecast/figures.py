"""The forecast's main figures of the whole model, without simulations: for whoever needs them many times over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from relex_core.forecast.auto import choose
from relex_core.forecast.held_out import held_out
from relex_core.forecast.modules import membership
from relex_core.forecast.names import HOLD
from relex_core.forecast.null_model import displacement_exponent
from relex_core.forecast.numbers import number
from relex_core.forecast.predictors import AVERAGES, applies, predictors
from relex_core.forecast.skill import fair_pairs, pooled_line, pooled_skill, window_bins
from relex_core.forecast.walk import shape
from relex_core.forecast.window import window_of


def figures(grams: Mapping[str, np.ndarray], steps: Sequence[int]) -> dict[str, float | None]:
    """Figures by name, each as `forecast_from_grams` has it; skills are held out and pooled.

    Args:
        grams: by tensor, "T T".
        steps: T true optimizer steps.

    Raises:
        WindowError, DataError: as `forecast_from_grams`.
    """
    window = window_of(grams, steps)
    _, members = membership(window.names)
    table = predictors()
    held = held_out(window, members, table, AVERAGES)
    whole, model = held.fits[-1], window.pooled(members[-1:])
    explained, r_squared = shape(model, window.steps)
    found = {
        "drift share φ": float(whole.drift.share[-1]),
        "displacement exponent": float(displacement_exponent(model, window.steps)[0]),
        "explained variance": float(explained[0]),
        "R² of the line": float(r_squared[0]),
    }
    last = slice(len(members) - 1, len(members))
    for low, high, pairs in window_bins(held):
        name = f"best scale, {low:g} to {high:g} windows ahead"
        found[name] = float(pooled_line(held, pairs, last).best_scale[0])
    for name in table:
        if name != HOLD and applies(name, whole):
            found[f"skill of {name}"] = float(pooled_skill(held, name, fair_pairs(held))[-1])
    found["skill of auto"] = choose(held).skill
    return {name: number(value) for name, value in found.items()}
