"""What tells one fit from another."""

from __future__ import annotations

from relex_core import __version__
from relex_core.manifest import WindowManifest, digest_of
from relex_core.spec import RunSpec


def fit_key(spec: RunSpec, manifest: WindowManifest) -> str:
    """Digest of everything the result of a fit depends on."""
    return digest_of({"window": manifest.digest, "fit": spec.identity()["fit"], "version": __version__})
