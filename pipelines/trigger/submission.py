"""What is submitted, and the key that makes it the same submission wherever it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from relex_core.errors import SpecError
from relex_core.manifest import WindowManifest, short_digest, spec_digest
from relex_core.questions import questions_digest
from relex_core.spec import RunSpec

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C is ten times as fast, and not in every build."""


@dataclass(frozen=True)
class Submission:
    """One run of the compiled pipeline."""

    name: str
    """Of the run; holds the key, so that the run can be found by it."""
    pipeline: Path
    """The compiled YAML."""
    pipeline_spec: dict[str, Any]
    """Its first document."""
    arguments: dict[str, Any]
    run_root: str


def plan_submission(spec: RunSpec, manifest: WindowManifest, pipeline: Path, *, shards: int = 1) -> Submission:
    """The submission of one complete window.

    Its key is a digest of run directory, window, spec, questions and the pipeline's images: the same window is
    submitted once, and again only for another spec, corrected questions or other code. Where the images have no digest,
    their names count.

    Raises:
        SpecError: there is no such file, or it is no compiled pipeline.
        DataError: a file of questions is not there.
    """
    compiled, images = load_compiled(pipeline)
    facts = {"run": spec.run_root, "window": manifest.digest, "spec": spec_digest(spec), "images": images}
    facts |= {"questions": questions_digest(spec)}
    key = short_digest(facts)
    arguments = {"spec": spec.model_dump_json(), "shards": shards}
    return Submission(f"relex-{key}", pipeline, compiled, arguments, spec.run_root)


def load_compiled(pipeline: Path) -> tuple[dict[str, Any], list[str]]:
    """A compiled pipeline, and the images of its pods.

    Raises:
        SpecError: there is no such file, or it is no compiled pipeline.
    """
    try:
        compiled = next(yaml.load_all(pipeline.read_text(encoding="utf-8"), LOADER))
        executors = compiled["deploymentSpec"]["executors"]
        images = sorted({executor["container"]["image"] for executor in executors.values() if "container" in executor})
    except (OSError, ValueError, AttributeError, KeyError, TypeError, StopIteration, yaml.YAMLError) as error:
        raise _not_compiled(pipeline, repr(error)) from None
    if pipeline.suffix not in (".yaml", ".yml"):  # Kubeflow's client goes by the name
        raise _not_compiled(pipeline, f"its name ends in {pipeline.suffix!r}")
    return compiled, images


def _not_compiled(pipeline: Path, why: str) -> SpecError:
    return SpecError(
        f"no compiled pipeline: {why}",
        where=str(pipeline),
        expected="a .yaml file that was compiled without --resources",
        next_step="python -m relex_kfp compile --profile PROFILE --image IMAGE@sha256:DIGEST",
    )
