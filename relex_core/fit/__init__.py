"""fit: WindowManifest -> FitArtifact. One direction and one line per weight tensor, in one read of the window.

    artifact = fit("run/")                       # reads RUN/spec.json and RUN/window.json
    artifact.tensors["lm_head.weight"].slope     # change of the coefficient per optimizer step

`loop.py` goes over the tensors; `gram.py`, `basis.py` and `line.py` are the arithmetic. torch and numpy are loaded
by the first call, so that an artifact can be read back without them.
"""

from __future__ import annotations

from relex_core.fit.artifact import FitArtifact, load_fit

__all__ = ["FitArtifact", "fit", "load_fit"]


def fit(run: str) -> FitArtifact:
    """Fit the window of a run directory; a fit that was interrupted goes on with the next tensor group.

    Args:
        run: URI of the run directory.

    Raises:
        WindowNotReady: nothing is collected yet.
        WindowError, DataError: the weights are not those of a training run (checks.py), or changed since collect.
        SpecError: the spec asks for more than this window or machine has.
        StorageError: the storage failed; run again to go on.
    """
    from relex_core.fit.loop import fit_window

    return fit_window(run)
