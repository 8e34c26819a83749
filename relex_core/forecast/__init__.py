"""forecast: Gram matrices -> Forecast. What extrapolating this run can be expected to do, before anything is spent.

    forecast("run/").advice.worthwhile                        # reads RUN/fit/, writes RUN/forecast.json
    forecast_from_grams(grams, steps).model.null.drift_share  # the same, pure

No weight is read and torch is not imported: held-out skill, geometry, the null model and every predictor are functions
of the Gram matrices and the steps. numpy is loaded by the first call. In the order of the data:

    window, modules       Gram matrices, increments, module types
    null_model, bootstrap, walk        random walk with drift; its interval; what a pure walk would show
    eigen, cut, predictors, held_out   fits on the first k checkpoints, and their errors on the later ones
    skill, auto, expected, geometry, incidents
    groups, advice, build, results     the Forecast
    figures                            its main numbers alone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from relex_core.forecast.results import Forecast

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Forecast", "forecast", "forecast_from_grams"]


def forecast(run: str) -> Forecast:
    """Forecast a fitted run, and write RUN/forecast.json; an up-to-date one is read back.

    Args:
        run: URI of the run directory.

    Raises:
        WindowNotReady: nothing is fitted yet.
        DataError: the Gram matrices do not belong to the fit.
        StorageError: the storage failed.
    """
    from relex_core.forecast.files import forecast_run

    return forecast_run(run)


def forecast_from_grams(
    grams: Mapping[str, np.ndarray],
    steps: Sequence[int],
    *,
    targets: Sequence[int] = (),
    scales: Sequence[float] | None = None,
    averages: Sequence[int] | None = None,
    seed: int = 0,
) -> Forecast:
    """Forecast from Gram matrices; a pure function.

    Args:
        grams: by Hugging Face tensor name, ⟨Δ_i, Δ_j⟩ of the deltas to the base, "T T".
        steps: T true optimizer steps, ascending; at least 2 after step 0.
        targets: steps to look ahead to; by default 2, 4 and 6 times the last one.
        scales: of the paper's line; by default 1, 0.75, 0.5 and 0.25.
        averages: lengths of trailing averages; by default 5, 10, 20 and 40.
        seed: of the simulations and the bootstrap.

    Raises:
        WindowError: too few steps, or steps that do not ascend.
        DataError: a matrix of another shape, or one that is not finite.
    """
    from relex_core.forecast.build import build
    from relex_core.forecast.predictors import AVERAGES, SCALES

    own_scales = SCALES if scales is None else tuple(scales)
    own_averages = AVERAGES if averages is None else tuple(averages)
    return build(grams, steps, targets=targets, scales=own_scales, averages=own_averages, seed=seed)
