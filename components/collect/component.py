"""Freeze the observation window."""

from typing import NamedTuple

from kfp import dsl

from relex_kfp.components import BASE_IMAGE


@dsl.component(base_image=BASE_IMAGE, install_kfp_package=False)
def collect(
    spec: str,
    summary: dsl.Output[dsl.Markdown],
    window: dsl.Output[dsl.Artifact],
    shards: int = 1,
) -> NamedTuple("Outputs", [("run", str), ("key", str), ("shards", list), ("candidates", list), ("references", list)]):
    """Find the observation window and freeze it in RUN/window.json: files, sizes, generations. Reads no weights.

    Never cached: it looks at a folder that grows.

    Args:
        spec: the resolved spec as JSON.
        shards: in how many pods the fit is to run.
        summary: steps, tensors and digest.
        window: a copy of window.json.

    Returns:
        run: URI of the run directory.
        key: changes with window, spec, questions and run directory; as an input of later steps it keeps their caches
            honest.
        shards: "1/3", "2/3", "3/3", for the fit.
        candidates: names of the candidates to write and measure.
        references: what is measured, but not written.
    """
    from collections import namedtuple
    from pathlib import Path

    from relex_core.collect import collect as collect_window
    from relex_core.errors import exit_on_error
    from relex_core.spec import spec_from_json
    from relex_core.stages import REFERENCES, plan_work
    from relex_core.tables import window_text

    with exit_on_error():
        resolved = spec_from_json(spec)
        manifest = collect_window(resolved)
        work = plan_work(resolved, manifest, int(shards))
    Path(window.path).write_text(manifest.model_dump_json(indent=1))
    window.metadata |= {"digest": manifest.digest, "run": resolved.run_root}
    Path(summary.path).write_text(f"```\n{window_text(manifest, resolved.run_root)}\n```\n")
    outputs = namedtuple("Outputs", ["run", "key", "shards", "candidates", "references"])
    return outputs(resolved.run_root, work.key, list(work.shards), list(work.candidates), list(REFERENCES))
