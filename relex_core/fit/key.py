"""What tells one fit from another."""

from __future__ import annotations

from relex_core import __version__
from relex_core.errors import WindowNotReady
from relex_core.fit.artifact import FitArtifact
from relex_core.manifest import WindowManifest, digest_of
from relex_core.spec import RunSpec

FIT_KEY = "fit_key"
"""Name under which every safetensors file of a fit tells, in its metadata, which fit it belongs to."""


def fit_key(spec: RunSpec, manifest: WindowManifest) -> str:
    """Digest of everything the result of a fit depends on."""
    return digest_of({"window": manifest.digest, "fit": spec.identity()["fit"], "version": __version__})


def refuse_another_fit(run: str, spec: RunSpec, manifest: WindowManifest, artifact: FitArtifact) -> None:
    """Refuse a fit that is not of this window and spec.

    Raises:
        WindowNotReady: it has to be fitted again.
    """
    if artifact.fit_key != fit_key(spec, manifest):
        raise WindowNotReady(
            "the fit is of another window, spec or version of relex", where=run, next_step=f"relex fit {run}"
        )
