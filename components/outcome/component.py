"""The outcome of a run on which there was nothing to do."""

from typing import NamedTuple

from kfp import dsl

from relex_kfp.components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def outcome(run: str, state: str) -> NamedTuple(
    "Outputs", [("decision", str), ("checkpoint_uri", str), ("training_steps_saved", int)]
):
    """Read RUN/published.json, so that a pipeline has the same outputs whether or not it had anything to do.

    Never cached.

    Args:
        run: URI of the run directory.
        state: of the gate: "done", or "not_ready".

    Returns:
        decision: the published one, or "not_ready".
        checkpoint_uri: the published one, or empty.
        training_steps_saved: the published number, or 0.
    """
    from collections import namedtuple

    from relex_core.errors import exit_on_error
    from relex_core.publish import NOTHING_YET, published

    with exit_on_error():
        found = published(run) if state == "done" else NOTHING_YET
    outputs = namedtuple("Outputs", ["decision", "checkpoint_uri", "training_steps_saved"])
    return outputs(found.decision, found.checkpoint_uri, found.training_steps_saved)
