"""Promote, or keep what was observed."""

from kfp import dsl

from relex_kfp.components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def decide(
    run: str,
    key: str,
    evaluated: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    """Decide from the stored evaluations, and write RUN/decision.json. "Keep what you have" is a normal outcome.

    Args:
        run: URI of the run directory.
        key: of collect; part of the cache key, otherwise unused.
        evaluated: output of evaluate; here only so that Kubeflow waits for it.
        metrics: the confirmed gain over the last observed checkpoint, and its interval.
        summary: the table behind the decision.

    Returns:
        "promote", "keep_observed" or "not_ready".
    """
    from pathlib import Path

    from relex_core.decide import decide as decide_run
    from relex_core.errors import exit_on_error
    from relex_core.tables import decision_text

    with exit_on_error():
        decision = decide_run(run)
    gain = decision.evidence[0]
    metrics.log_metric("gain over last observed", gain.difference)
    metrics.log_metric("gain, lower end", gain.interval[0])
    metrics.log_metric("gain, upper end", gain.interval[1])
    metrics.log_metric("training steps saved", float(decision.training_steps_saved))
    Path(summary.path).write_text(f"**{decision.decision}**\n\n```\n{decision_text(decision)}\n```\n")
    return decision.decision
