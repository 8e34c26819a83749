"""Measure checkpoints on questions with known answers."""

from kfp import dsl

from relex_kfp.components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def evaluate(
    run: str,
    key: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    candidate: str = "",
    measured: list = [],  # noqa: B006, kfp knows no other default of a list
    references: list = [],  # noqa: B006
) -> str:
    """Measure one candidate as far as the search asks all of them; without a candidate, do all that is left.

    Pods with a candidate run at the same time. The one without finds their answers in the run directory, goes on with
    the search, and measures the finalist, the last observed checkpoint and the base on the confirmation split.

    Args:
        run: URI of the run directory.
        key: of collect; part of the cache key, otherwise unused.
        candidate: a candidate, "base" or "last_observed"; empty for all that is left.
        measured: candidates that have been measured; here only so that Kubeflow waits for them.
        references: likewise.
        metrics: accuracies.
        summary: accuracies with their intervals.

    Returns:
        The candidate.
    """
    from pathlib import Path

    from relex_core.errors import exit_on_error
    from relex_core.evaluate import evaluate as evaluate_run
    from relex_core.evaluate import evaluate_first_round
    from relex_core.tables import results_text

    with exit_on_error():
        results = evaluate_first_round(run, [candidate]) if candidate else evaluate_run(run)
    for result in results:
        metrics.log_metric(f"{result.candidate} {result.task} {result.split}", result.mean)
    Path(summary.path).write_text(f"```\n{results_text(results)}\n```\n")
    return candidate
