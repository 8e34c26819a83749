"""FitArtifact: what a fit leaves in RUN/fit/fit.json."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from relex_core import layout
from relex_core.storage import Store
from relex_core.stored_json import load_stored


class Component(BaseModel):
    """One singular component of one tensor."""

    model_config = ConfigDict(frozen=True)

    coefficients: tuple[float, ...]
    """c_i at the T observed steps."""
    polynomial: tuple[float, ...]
    """The line over the true steps, powers ascending: (intercept, slope, ...)."""
    r_squared: float | None
    """None where it is undefined: a constant coefficient."""

    def at(self, step: int) -> float:
        """The line's value at an optimizer step."""
        value = 0.0
        for power in reversed(self.polynomial):
            value = value * step + power
        return value


class TensorFit(BaseModel):
    """The fit of one tensor. For a tensor that never moved, shares and R² are undefined (null)."""

    model_config = ConfigDict(frozen=True)

    numel: int
    explained_variance: float | None
    """Share of the squared deltas along the fitted components."""
    singular_values: tuple[float, ...]
    """"T", descending."""
    coefficients: tuple[float, ...]
    """Of the first component, at the T observed steps."""
    slope: float
    intercept: float
    r_squared: float | None
    components: tuple[Component, ...]
    """All fitted components, the first one included."""
    moved: bool
    base_norm: float | None
    """‖W_0‖; None where it is not finite in float32: a frozen mask of infinities, or of the least number."""


class Summary(BaseModel):
    """The fit over the whole model."""

    model_config = ConfigDict(frozen=True)

    tensors: int
    moved: int
    explained_variance: float | None
    """Of all tensors together: squared deltas along the components / all squared deltas."""
    explained_variance_median: float | None
    """Over the tensors that moved."""
    r_squared_median: float | None
    """Over the tensors whose coefficient varies."""
    relative_update: float | None
    """‖W_T − W_0‖ / ‖W_0‖."""


class FitArtifact(BaseModel):
    """RUN/fit/fit.json; its existence means that the fit is complete."""

    model_config = ConfigDict(frozen=True)

    window_digest: str
    fit_key: str
    """Digest of everything the result depends on."""
    steps: tuple[int, ...]
    t_cut: int
    basis: str
    rank: int
    degree: int
    columns: tuple[str, ...]
    """Stems of the stored files; of one that no tensor has there is no file."""
    tensors: dict[str, TensorFit]
    changed_state: tuple[str, ...]
    """Integer tensors whose last observed values are stored, in fit/state-*, because they are not the base's."""
    summary: Summary
    seconds: float
    bytes_read: int
    peak_rss_bytes: int
    device: str


def delete_group_results(store: Store) -> None:
    """Delete what a complete fit needs no more."""
    for info in list(store.list("fit")):
        if info.name.startswith(layout.GROUP_GRAMS):
            store.delete(info.name)


def load_fit(run: str) -> FitArtifact:
    """Read RUN/fit/fit.json.

    Raises:
        WindowNotReady: nothing is fitted yet.
        DataError: the file was changed by hand, or an incompatible version of relex wrote it.
    """
    return load_stored(FitArtifact, run, layout.FIT, absent="nothing is fitted yet", make=f"relex fit {run}")
