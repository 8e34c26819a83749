"""From Gram matrices and their eigenvectors to the numbers of fit.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import numpy as np

from relex_core.fit.artifact import Component, Summary, TensorFit
from relex_core.fit.basis import Spectrum, component_lines
from relex_core.spec import FitSpec


def tensor_fit(
    spectrum: Spectrum, gram: np.ndarray, base_square: float, numel: int, steps: Sequence[int], spec: FitSpec
) -> TensorFit:
    """One tensor's entry.

    Args:
        spectrum: of the Gram matrix; the tensor's directions come from the same one.
        gram: "T T", float64.
        base_square: ‖W_0‖².
    """
    components = [
        Component(coefficients=tuple(c.tolist()), polynomial=line.polynomial, r_squared=line.r_squared)
        for c, line in zip(spectrum.coefficients, component_lines(spectrum, steps, spec.degree), strict=True)
    ]
    first = components[0] if components else None
    return TensorFit(
        numel=numel,
        explained_variance=spectrum.explained_variance(gram),
        singular_values=tuple(spectrum.singular_values.tolist()),
        coefficients=first.coefficients if first else (0.0,) * len(steps),
        slope=first.polynomial[1] if first else 0.0,
        intercept=first.polynomial[0] if first else 0.0,
        r_squared=first.r_squared if first else None,
        components=tuple(components),
        moved=spectrum.moved,
        base_norm=math.sqrt(base_square) if math.isfinite(base_square) else None,
    )


def finite_sum(squares: Iterable[float]) -> float:
    """‖W_0‖² of several tensors, without frozen ones that hold NaN or Inf."""
    return sum(square for square in squares if math.isfinite(square))


def summarise(
    tensors: Mapping[str, TensorFit], traces: Mapping[str, float], gram: np.ndarray, squares: Mapping[str, float]
) -> Summary:
    """The whole model's entry.

    Args:
        traces: of every tensor's Gram matrix.
        gram: "T T", the sum of these matrices.
        squares: ‖W_0‖² of every tensor.
    """
    moved = [tensor for tensor in tensors.values() if tensor.moved]
    explained = sum((tensors[name].explained_variance or 0.0) * trace for name, trace in traces.items())
    shares = [tensor.explained_variance for tensor in moved if tensor.explained_variance is not None]
    r_squared = [tensor.r_squared for tensor in moved if tensor.r_squared is not None]
    update, norm = float(gram[-1, -1]), finite_sum(squares.values())
    return Summary(
        tensors=len(tensors),
        moved=len(moved),
        explained_variance=explained / sum(traces.values()) if moved else None,
        explained_variance_median=median(shares) if shares else None,
        r_squared_median=median(r_squared) if r_squared else None,
        relative_update=float(np.sqrt(update / norm)) if norm else None,
    )
