"""Write one candidate checkpoint."""

from kfp import dsl

from relex_kfp.components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def extrapolate(run: str, key: str, fit_key: str, candidate: str, manifest: dsl.Output[dsl.Artifact]) -> str:
    """Write one candidate as a complete Hugging Face checkpoint below RUN/candidates/.

    The weights go straight from the stored directions to the bucket; Kubeflow sees the manifest alone.

    Args:
        run: URI of the run directory.
        key: of collect; part of the cache key, otherwise unused.
        fit_key: of merge_fit; likewise.
        candidate: its name, as collect gives it.
        manifest: a copy of its relex.json: recipe, digests, the size of every file.

    Returns:
        The candidate.
    """
    from pathlib import Path

    from relex_core.errors import exit_on_error
    from relex_core.extrapolate import extrapolate as write_candidates

    with exit_on_error():
        [written] = write_candidates(run, names=[candidate])
    Path(manifest.path).write_text(written.model_dump_json(indent=1))
    manifest.metadata |= {"checkpoint_uri": f"{run}/candidates/{candidate}", "key": written.key}
    return candidate
