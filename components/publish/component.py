"""Delete the losers, and say which checkpoint to use."""

from typing import NamedTuple

from kfp import dsl

from relex_kfp.components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def publish(run: str, key: str, decision: str, page: str, outcome: dsl.Output[dsl.Artifact]) -> NamedTuple(
    "Outputs", [("decision", str), ("checkpoint_uri", str), ("training_steps_saved", int)]
):
    """Delete the losing candidates' weights and write RUN/published.json, the last object of a run.

    Never cached: it deletes. The winner is not copied: it is published where it lies.

    Args:
        run: URI of the run directory.
        key: of collect; unused.
        decision: of decide; here only so that Kubeflow waits for it.
        page: of report; likewise.
        outcome: a copy of published.json.

    Returns:
        decision: "promote", "keep_observed" or "not_ready".
        checkpoint_uri: folder of the checkpoint to use: the winner, or the last observed one; empty while nothing is
            decided.
        training_steps_saved: target step minus last observed step if promoted, else 0.
    """
    from collections import namedtuple
    from pathlib import Path

    from relex_core.errors import exit_on_error
    from relex_core.publish import publish as publish_run

    with exit_on_error():
        found = publish_run(run)
    Path(outcome.path).write_text(found.model_dump_json(indent=1))
    outcome.metadata |= found.model_dump()
    outputs = namedtuple("Outputs", ["decision", "checkpoint_uri", "training_steps_saved"])
    return outputs(found.decision, found.checkpoint_uri, found.training_steps_saved)
