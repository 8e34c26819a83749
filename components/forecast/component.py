"""What extrapolation can be expected to do."""

from kfp import dsl

from relex_kfp.components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def forecast(run: str, key: str, fit_key: str, summary: dsl.Output[dsl.Markdown]) -> str:
    """Measure skill held out inside the window, and write RUN/forecast.json. Reads Gram matrices alone.

    Args:
        run: URI of the run directory.
        key: of collect; part of the cache key, otherwise unused.
        fit_key: of merge_fit; likewise.
        summary: advice and its reasons.

    Returns:
        Whether extrapolation looks worthwhile: an advice; only the evaluation decides.
    """
    from pathlib import Path

    from relex_core.errors import exit_on_error
    from relex_core.forecast import forecast as forecast_fit
    from relex_core.forecast_tables import forecast_text

    with exit_on_error():
        found = forecast_fit(run)
    Path(summary.path).write_text(f"```\n{forecast_text(found)}\n```\n")
    return str(found.advice.worthwhile)
