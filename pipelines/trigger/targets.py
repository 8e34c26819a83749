"""What `relex watch --then kfp|vertex` does with a complete window. Settings come from the environment.

RELEX_PIPELINE          the YAML that was compiled for the cluster (required)
RELEX_SHARDS            pods that fit
RELEX_SERVICE_ACCOUNT   of the pods
RELEX_PIPELINE_ROOT     where the orchestrator keeps its artifacts (required on Vertex AI)
KF_PIPELINES_ENDPOINT, KF_PIPELINES_NAMESPACE, KF_PIPELINES_TOKEN      Kubeflow
GOOGLE_CLOUD_PROJECT, GOOGLE_CLOUD_REGION                              Vertex AI
RELEX_VERTEX_ENDPOINT   another address of Vertex AI's API; unset: the region's
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from relex_core.errors import SpecError
from relex_core.manifest import WindowManifest
from relex_core.spec import RunSpec

if TYPE_CHECKING:
    from relex_kfp.pipelines.trigger.kfp_api import Cluster
    from relex_kfp.pipelines.trigger.state import RunState
    from relex_kfp.pipelines.trigger.vertex import Project

log = logging.getLogger("relex")


@dataclass(frozen=True)
class Target:
    """Where a pipeline is submitted to, once for each window."""

    submit: Callable[[RunSpec, WindowManifest], str]
    """Returns the id of the run."""
    settings: Callable[[], object]
    """Reads the environment.

    Raises:
        SpecError: a variable is missing or wrong.
    """

    def __call__(self, spec: RunSpec, manifest: WindowManifest) -> str:
        return self.submit(spec, manifest)

    def check(self) -> None:
        """Look at all settings before anybody waits for a window.

        Raises:
            SpecError: one is missing or wrong.
        """
        self.settings()
        _pipeline()
        _shards()


def _kfp(spec: RunSpec, manifest: WindowManifest) -> str:
    from relex_kfp.pipelines.trigger.kfp_api import submit_kfp

    run = submit_kfp(spec, manifest, _pipeline(), cluster(), shards=_shards())
    log.info("submitted as run %s", run)
    return run


def _vertex(spec: RunSpec, manifest: WindowManifest) -> str:
    from relex_kfp.pipelines.trigger.vertex import submit_vertex

    there = project()
    job = submit_vertex(spec, manifest, _pipeline(), there, shards=_shards())
    log.info("submitted as %s", job)
    return job


def state_of(target: str, run: str) -> RunState:
    """What became of a run that was submitted to `target`, "kfp" or "vertex"."""
    if target == "kfp":
        from relex_kfp.pipelines.trigger.kfp_api import kfp_state

        return kfp_state(run, cluster())
    from relex_kfp.pipelines.trigger.vertex import vertex_state

    return vertex_state(run, project())


def cluster() -> Cluster:
    """The Kubeflow cluster that the environment names."""
    from relex_kfp.pipelines.trigger.kfp_api import Cluster

    return Cluster(
        host=_needed("KF_PIPELINES_ENDPOINT"),
        namespace=os.environ.get("KF_PIPELINES_NAMESPACE", ""),
        service_account=os.environ.get("RELEX_SERVICE_ACCOUNT", ""),
        pipeline_root=os.environ.get("RELEX_PIPELINE_ROOT", ""),
        token=os.environ.get("KF_PIPELINES_TOKEN", ""),
    )


def project() -> Project:
    """The project of Google Cloud that the environment names."""
    from relex_kfp.pipelines.trigger.vertex import Project

    return Project(
        project=_needed("GOOGLE_CLOUD_PROJECT"),
        region=_needed("GOOGLE_CLOUD_REGION"),
        pipeline_root=_needed("RELEX_PIPELINE_ROOT"),
        service_account=os.environ.get("RELEX_SERVICE_ACCOUNT", ""),
        endpoint=os.environ.get("RELEX_VERTEX_ENDPOINT", ""),
    )


kfp = Target(_kfp, cluster)
"""Kubeflow Pipelines; returns the run's id."""

vertex = Target(_vertex, project)
"""Vertex AI Pipelines; returns the job's resource name."""


def _pipeline() -> Path:
    path = Path(_needed("RELEX_PIPELINE"))
    if not path.is_file():
        raise SpecError(
            "RELEX_PIPELINE is not a file",
            where=str(path),
            next_step="python -m relex_kfp compile --out FILE writes one",
        )
    return path


def _shards() -> int:
    text = os.environ.get("RELEX_SHARDS", "1")
    if not text.isdigit() or int(text) < 1:
        raise SpecError(f"RELEX_SHARDS is {text!r}", expected="a number of pods")
    return int(text)


def _needed(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise SpecError(f"the environment variable {name} is not set", next_step="see docs/kubeflow.md")
    return value
