"""The compiled pipeline in processes on this machine: each step a process, as it is a pod on a cluster.

What kfp.local cannot show: images, GPUs, volumes, secrets and time-outs are ignored here, and at most two branches of a
loop run at the same time.
"""

import tempfile
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from kfp import local
from kfp.components import load_component_from_file

from relex_core.errors import RelexError
from relex_core.spec import RunSpec
from relex_kfp.pipelines.relex_pipeline.compile import COMPILED

PIPELINE = COMPILED / "relex-processes.yaml"


class PipelineFailed(RelexError, RuntimeError):
    """A step of the pipeline failed; its message is in the log above."""


@dataclass(frozen=True)
class LocalRun:
    """The outputs of the pipeline."""

    decision: str
    checkpoint_uri: str
    training_steps_saved: int


def run_local(spec: RunSpec, *, shards: int = 1, pipeline_root: Path | None = None) -> LocalRun:
    """Run the compiled pipeline for one spec.

    Args:
        shards: processes that fit at the same time.
        pipeline_root: keeps Kubeflow's artifacts (tables, metrics, copies of manifests); None: they are dropped. The
            run itself lies in the spec's run directory in any case.

    Raises:
        PipelineFailed: a step failed.
    """
    kept = nullcontext(str(pipeline_root)) if pipeline_root else tempfile.TemporaryDirectory(prefix="relex-kfp-")
    with kept as root, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*non-Python base image", category=RuntimeWarning)
        local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=root)
        pipeline = load_component_from_file(str(PIPELINE))
        try:
            task = pipeline(spec=spec.model_dump_json(), shards=shards)
        except RuntimeError as error:
            raise PipelineFailed(
                f"the pipeline failed: {error}",
                where=spec.run_root,
                next_step="see the step's own message above; when it is repaired, the same command goes on from there",
            ) from None
        outputs = task.outputs
    return LocalRun(outputs["decision"], outputs["checkpoint_uri"], int(outputs["training_steps_saved"]))
