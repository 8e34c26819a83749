"""Make one fit of its shards."""

from kfp import dsl

from relex_kfp.components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def merge_fit(
    run: str,
    key: str,
    shards: list,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    """Make RUN/fit/fit.json of all shards. Reads Gram matrices, no weights; refuses a fit with a shard missing.

    Args:
        run: URI of the run directory.
        key: of collect; part of the cache key, otherwise unused.
        shards: the fitted shards; here only so that Kubeflow waits for all of them.
        metrics: explained variance and the like.
        summary: the same as a table.

    Returns:
        Digest of the fit.
    """
    from pathlib import Path

    from relex_core.errors import exit_on_error
    from relex_core.fit import merge
    from relex_core.tables import fit_text

    with exit_on_error():
        artifact = merge(run)
    for name, value in artifact.summary.model_dump().items():
        if value is not None:
            metrics.log_metric(name, float(value))
    Path(summary.path).write_text(f"```\n{fit_text(artifact)}\n```\n")
    return artifact.fit_key
