"""What the forecast reads and writes: fit/gram.safetensors without torch, and RUN/forecast.json."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
from pydantic import ValidationError
from threadpoolctl import threadpool_limits

from relex_core import __version__, layout
from relex_core.checkpoints.safetensors_file import read_header
from relex_core.errors import DataError, ObjectNotFound, WindowNotReady
from relex_core.fit.artifact import load_fit
from relex_core.fit.group_results import gram_matrices
from relex_core.fit.key import FIT_KEY, refuse_another_fit
from relex_core.forecast.build import build
from relex_core.forecast.predictors import AVERAGES, SCALES
from relex_core.forecast.results import Forecast
from relex_core.manifest import digest_of, load_manifest
from relex_core.spec import RunSpec, load_spec_of
from relex_core.storage import Store, absolute_uri, join_uri, open_store, read_bytes, write_bytes
from relex_core.stored_json import load_stored


def forecast_run(run: str) -> Forecast:
    """See `relex_core.forecast.forecast`."""
    run = absolute_uri(run, Path.cwd())
    spec, artifact, store = load_spec_of(run), load_fit(run), open_store(run)
    refuse_another_fit(run, spec, load_manifest(run), artifact)
    options = _options(spec)
    key = digest_of({"fit": artifact.fit_key, "options": options, "version": __version__})
    finished = _finished(store, key)
    if finished is not None:
        return finished
    grams = read_grams(store, artifact.fit_key)
    digests = (artifact.window_digest, artifact.fit_key, key)
    with threadpool_limits(1):  # thousands of small products: threads only wait for each other
        forecast = build(grams, artifact.steps, **options, digests=digests)
    write_bytes(store, layout.FORECAST, (forecast.model_dump_json() + "\n").encode())
    return forecast


class Options(TypedDict):
    """What a forecast takes from the spec."""

    targets: tuple[int, ...]
    scales: tuple[float, ...]
    averages: tuple[int, ...]


def _options(spec: RunSpec) -> Options:
    return {
        "targets": spec.candidates.targets(spec.window.t_cut),
        "scales": tuple(dict.fromkeys((*spec.candidates.scales, *SCALES))),
        "averages": tuple(sorted({*spec.fit.trailing_averages, *AVERAGES})),
    }


def _finished(store: Store, key: str) -> Forecast | None:
    """The forecast of an earlier run, if nothing has changed since."""
    try:
        found = Forecast.model_validate_json(read_bytes(store, layout.FORECAST))
    except (ObjectNotFound, ValidationError):
        return None
    return found if found.key == key else None


def read_grams(store: Store, fit_key: str) -> dict[str, np.ndarray]:
    """The Gram matrices of a finished fit, by tensor: "T T", float64.

    Raises:
        WindowNotReady: there are none.
        DataError: they belong to another fit than fit.json.
    """
    where = join_uri(store.uri, layout.GRAM)
    try:
        info = store.stat(layout.GRAM)
    except ObjectNotFound:
        raise WindowNotReady("there are no Gram matrices", where=where, next_step=f"relex fit {store.uri}") from None
    header = read_header(store, info)
    if header.metadata.get(FIT_KEY) != fit_key:
        raise DataError("the Gram matrices belong to another fit", where=where, next_step=f"relex fit {store.uri}")
    return gram_matrices(store, info, header)


def load_forecast(run: str) -> Forecast:
    """Read RUN/forecast.json.

    Raises:
        WindowNotReady: nothing is forecast yet.
        DataError: the file was changed by hand, or an incompatible version of relex wrote it.
    """
    return load_stored(Forecast, run, layout.FORECAST, absent="nothing is forecast yet", make=f"relex forecast {run}")
