"""Is there anything to do? The cheap first step of every scheduled run."""

from typing import NamedTuple

from kfp import dsl

from relex_kfp.components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def gate(
    spec: str,
    summary: dsl.Output[dsl.Markdown],
    base: str = "",
    trajectory: str = "",
    run_root: str = "",
    t_cut: int = 0,
) -> NamedTuple("Outputs", [("ready", bool), ("state", str), ("spec", str), ("run", str)]):
    """Look whether the window is complete and not decided on yet. Reads listings, headers, questions; writes nothing.

    Never cached: the answer changes while the inputs stay.

    Args:
        spec: the run's spec as JSON (docs/spec.md).
        base: the model that the RL run started from; overrides the spec's field, like the next three if they are given.
        trajectory: folder of the step folders.
        run_root: where relex writes.
        t_cut: last optimizer step of the window.
        summary: what was seen.

    Returns:
        ready: go on; else there is nothing to do.
        state: "ready", "not_ready" (wait), or "done" (the outcome of these questions is published already).
        spec: the resolved spec as JSON, for the steps that follow.
        run: URI of the run directory.
    """
    from collections import namedtuple
    from pathlib import Path

    from relex_core.errors import exit_on_error
    from relex_core.gate import gate as look
    from relex_core.spec import spec_from_json

    with exit_on_error():
        resolved = spec_from_json(spec, base=base, trajectory=trajectory, run_root=run_root, t_cut=int(t_cut))
        seen = look(resolved)
    print(f"{seen.state}: {seen.message}")
    Path(summary.path).write_text(f"**{seen.state}**\n\n```\n{seen.message}\n```\n")
    outputs = namedtuple("Outputs", ["ready", "state", "spec", "run"])
    return outputs(seen.state == "ready", seen.state, resolved.model_dump_json(), resolved.run_root)
