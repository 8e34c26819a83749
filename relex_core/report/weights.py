"""What the weights did: coefficients with their lines, explained variance and R² by layer and module, the spectrum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from rich.filesize import decimal

from relex_core.fit.artifact import Component, FitArtifact, TensorFit
from relex_core.forecast.modules import layer_number, module_type
from relex_core.report.artifacts import Artifacts
from relex_core.report.text import compact, number, percent, plural
from relex_core.report.view import Fact, Plot, Row, Section, Table

MOST_NUMBERS = 40_000
"""Coefficients in the page: 500 tensors of 80 checkpoints; of larger models those that moved most."""
MOST_TENSORS = 500
OUTSIDE = "outside"
"""Column of the heat maps for tensors that belong to no layer."""
COMPONENTS = 12


def weights_section(run: Artifacts) -> Section:
    """Figures of the fit."""
    title = "How the weights moved"
    if run.fit is None:
        return Section("weights", title, ("Nothing is fitted yet: relex fit measures how the weights move.",))
    fit = run.fit
    summary = fit.summary
    null = run.forecast.model.null if run.forecast else None
    walk = (percent(null.walk_explained_variance), number(null.walk_r_squared)) if null else ("unknown", "unknown")
    facts = (
        Fact("Tensors that moved", f"{summary.moved} of {summary.tensors}"),
        Fact(
            "Explained variance",
            percent(_whole(fit)),
            f"along each tensor’s first direction; a pure random walk: {walk[0]}",
        ),
        Fact("R² of the line", number(summary.r_squared_median), f"median over tensors; a pure random walk: {walk[1]}"),
        Fact("Relative update", percent(summary.relative_update, 3), "‖W_T − W_0‖ / ‖W_0‖"),
    )
    if not summary.moved:
        text = "No tensor moved in the window, so there is no direction, no line and no spectrum to show."
        return Section("weights", title, (text,), facts)
    plots = (coefficients_plot(run, fit), *heat_maps(run, fit), spectrum_plot(fit))
    return Section("weights", title, facts=facts, plots=plots)


def _whole(fit: FitArtifact) -> float | None:
    """σ_1² over all σ², summed over tensors."""
    squares = [np.square(tensor.singular_values) for tensor in fit.tensors.values() if tensor.moved]
    total = sum(float(each.sum()) for each in squares)
    return sum(float(each[0]) for each in squares) / total if total > 0 else None


def energy(tensor: TensorFit) -> float:
    """Squared deltas of one tensor, summed over steps."""
    return float(np.square(tensor.singular_values).sum())


def _share(tensor: TensorFit) -> float | None:
    total = energy(tensor)
    return tensor.singular_values[0] ** 2 / total if tensor.moved and total > 0 else None


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def coefficients_plot(run: Artifacts, fit: FitArtifact) -> Plot:
    """One tensor's coefficient at every step and its line, drawn on to the farthest target."""
    moved = {name: tensor for name, tensor in fit.tensors.items() if tensor.moved}
    limit = max(1, min(MOST_TENSORS, MOST_NUMBERS // len(fit.steps)))
    largest = sorted(moved, key=lambda name: -energy(moved[name]))
    chosen = set(largest[:limit])
    shown = {name: tensor for name, tensor in moved.items() if name in chosen}
    far = max([fit.steps[-1], *(candidate.step or 0 for candidate in run.candidates)])
    rows: tuple[Row, ...] = tuple(
        {
            "tensor": name,
            "step": list(fit.steps),
            "coefficient": [_rounded(value) for value in tensor.coefficients],
            "line": [float(f"{power:.9g}") for power in _line(tensor).polynomial],
            "share": _rounded(_share(tensor) or 0.0),
            "r2": tensor.r_squared,
        }
        for name, tensor in shown.items()
    )
    left_out = len(moved) - len(shown)
    note = f"The {len(shown)} tensors that moved most; {left_out} more are in {'fit/fit.json'}." if left_out else ""
    return Plot(
        id="coefficients",
        kind="coefficients",
        title="Coefficient along the first direction, and its line",
        caption="Dots: observed. Line: fitted to them and drawn on to the farthest target step. Below the chart, "
        "choose the tensor and how far to look. Drag to move, pinch or scroll with Ctrl to zoom, double-click to go "
        f"back. {note}".strip(),
        rows=rows,
        table=_tensor_table(fit, list(shown), note),
        constants={"start": largest[0], "t_cut": fit.steps[-1], "far": far},
    )


def _line(tensor: TensorFit) -> Component:
    """The first component; a line for every weight has none, but a slope and an intercept all the same."""
    if tensor.components:
        return tensor.components[0]
    line = (tensor.intercept, tensor.slope)
    return Component(coefficients=tensor.coefficients, polynomial=line, r_squared=tensor.r_squared)


def _tensor_table(fit: FitArtifact, names: Sequence[str], note: str) -> Table:
    count = min(5, len(fit.steps))
    picked = sorted({round(k * (len(fit.steps) - 1) / max(count - 1, 1)) for k in range(count)})
    headings = ("tensor", "weights", "explained variance", "R²", "slope", "intercept")
    rows = tuple(
        (
            name,
            f"{tensor.numel:,}",
            number(_share(tensor)),
            number(tensor.r_squared),
            compact(tensor.slope),
            compact(tensor.intercept),
            *(compact(tensor.coefficients[row]) for row in picked),
        )
        for name in names
        for tensor in [fit.tensors[name]]
    )
    return Table((*headings, *(f"c at step {fit.steps[row]}" for row in picked)), rows, note=note)


def heat_maps(run: Artifacts, fit: FitArtifact) -> Iterator[Plot]:
    """Explained variance and R² by layer and module type; the middle of the colours is what a pure walk shows."""
    null = run.forecast.model.null if run.forecast else None
    shares = {name: _share(tensor) for name, tensor in fit.tensors.items()}
    lines = {name: tensor.r_squared for name, tensor in fit.tensors.items()}
    yield _heat_map("explained-variance", "Explained variance", shares, null.walk_explained_variance if null else None)
    if any(value is not None for value in lines.values()):
        yield _heat_map("r-squared", "R² of the line", lines, null.walk_r_squared if null else None)


def _heat_map(id: str, title: str, values: Mapping[str, float | None], walk: float | None) -> Plot:
    cells: dict[tuple[int | None, str], list[float | None]] = {}
    for name, value in values.items():
        cells.setdefault((layer_number(name), module_type(name)), []).append(value)
    rows, table = [], []
    for (layer, module), inside in sorted(cells.items(), key=lambda cell: (cell[0][0] is None, cell[0][0] or 0)):
        known = [value for value in inside if value is not None]
        mean = _rounded(sum(known) / len(known)) if known else None
        where = OUTSIDE if layer is None else str(layer)
        rows.append({"layer": where, "module": module, "value": mean, "tensors": len(inside), "moved": len(known)})
        table.append((where, module, number(mean, 4), str(len(inside)), str(len(known))))
    compare = (
        f"A pure random walk of this length shows {walk:.3f} by itself: only cells above it (see the colours’ middle) "
        "say anything."
        if walk is not None
        else "A random walk shows high values too; relex forecast says how high."
    )
    return Plot(
        id=id,
        kind="heat_map",
        title=f"{title}, by layer and module",
        caption=f"{compare} Crossed-out cells never moved. Tensors of one kind in one layer are averaged.",
        rows=tuple(rows),
        table=Table(("layer", "module", title.lower(), "tensors", "of which moved"), tuple(table)),
        constants={
            "layers": list(dict.fromkeys(row["layer"] for row in rows)),
            "modules": list(dict.fromkeys(module for _, module in cells)),
            "walk": walk,
            "name": title,
        },
    )


def spectrum_plot(fit: FitArtifact) -> Plot:
    """Share of the squared deltas along each component: the whole model beside a driftless walk at the same steps."""
    count = min(COMPONENTS, len(fit.steps))
    moved = [np.square(tensor.singular_values)[:count] for tensor in fit.tensors.values() if tensor.moved]
    total = sum(energy(tensor) for tensor in fit.tensors.values())
    model = np.sum(moved, axis=0) / total
    walk = walk_spectrum(fit.steps)[:count]
    rows: tuple[Row, ...] = tuple(
        {"component": index + 1, "share": _rounded(float(share)), "of": name}
        for name, shares in (("this run", model), ("pure random walk", walk))
        for index, share in enumerate(shares)
        if share > 0
    )
    table = tuple(
        (str(index + 1), percent(float(one), 2), percent(float(other), 2), percent(float(model[: index + 1].sum()), 2))
        for index, (one, other) in enumerate(zip(model, walk, strict=True))
    )
    return Plot(
        id="spectrum",
        kind="spectrum",
        title="Spectrum of the deltas",
        caption="Share of the squared deltas along each component, all tensors together, on a logarithmic scale. A "
        "walk without drift or momentum, in very many dimensions and at the same steps, has the other line.",
        rows=rows,
        table=Table(("component", "this run", "pure random walk", "this run, up to here"), table),
    )


def walk_spectrum(steps: Sequence[int]) -> np.ndarray:
    """Expected shares of a driftless walk's components, "T", descending: eigenvalues of min(t_i, t_j)."""
    times = np.asarray(steps, dtype=np.float64)
    eigenvalues = np.linalg.eigvalsh(np.minimum.outer(times, times))[::-1]
    return np.asarray(np.maximum(eigenvalues, 0.0) / eigenvalues.sum())


def fit_cost(fit: FitArtifact) -> tuple[tuple[str, str], ...]:
    """What the fit took, for the cost table."""
    return (
        ("read by the fit", decimal(fit.bytes_read)),
        ("peak memory of the fit", decimal(fit.peak_rss_bytes)),
        ("fitted on", f"{fit.device}, {plural(len(fit.steps), 'checkpoint')}"),
    )
