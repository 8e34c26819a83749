"""Where the stages of the DAG run: pods of a cluster, or processes of this machine.

The stage table (relex_core.stages) says what a stage runs and needs; a place says how that becomes a task. Another kind
of cluster is another class with the same method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import BaseOperator
from kubernetes.client import models as k8s

from relex_airflow.operators import LocalStage
from relex_core.stages import Stage

STARTUP_MINUTES = 20
"""For a node to appear and pull an image of several GB; the operator's own default is two minutes."""
SCRATCH = "/scratch"
CREDENTIALS = "/secrets/google"
KEY_FILE = "key.json"
GPU = "nvidia.com/gpu"


class Place(Protocol):
    """Turns a stage into a task."""

    def task(self, stage: Stage, arguments: Sequence[Any], **options: Any) -> BaseOperator:
        """The task that runs `relex ARGUMENTS`; `options` are for its operator."""


@dataclass(frozen=True)
class Local:
    """Processes in another virtual environment of the worker's machine."""

    python: str
    """Interpreter of the environment in which relex is installed with torch."""
    environment: dict[str, str] = field(default_factory=dict)
    """More environment variables of the processes."""
    gcp_conn_id: str | None = None
    """Connection whose account they work as; None: application-default credentials."""

    def task(self, stage: Stage, arguments: Sequence[Any], **options: Any) -> BaseOperator:
        return LocalStage(
            python=self.python,
            arguments=arguments,
            environment=self.environment,
            gcp_conn_id=self.gcp_conn_id,
            execution_timeout=timedelta(minutes=stage.minutes),
            **_retries(stage),
            **options,
        )


@dataclass(frozen=True)
class Pods:
    """Pods of a Kubernetes cluster."""

    image: str
    """With its digest, so that a DAG that is run again runs the same code."""
    namespace: str = "default"
    gpu_image: str = ""
    """For stages with GPUs; empty: `image`."""
    gpu_count: int = 1
    """For each stage that uses GPUs; 0 for a cluster without."""
    gpu_nodes: dict[str, str] = field(default_factory=dict)
    """Labels of the nodes with GPUs, for example {"cloud.google.com/gke-accelerator": "nvidia-l4"}."""
    service_account: str = ""
    """Of the pods: what may read and write the buckets. Empty: the namespace's default."""
    secret: str = ""
    """Kubernetes secret with `key.json` of a Google service account; empty where pods have an identity of their own."""
    kubernetes_conn_id: str | None = "kubernetes_default"
    in_cluster: bool | None = None
    """None: as the connection says."""
    config_file: str | None = None

    def task(self, stage: Stage, arguments: Sequence[Any], **options: Any) -> BaseOperator:
        gpus = self.gpu_count if stage.resources.gpu else 0
        return KubernetesPodOperator(
            name=f"relex-{stage.name}".replace("_", "-"),
            namespace=self.namespace,
            image=(self.gpu_image or self.image) if gpus else self.image,
            cmds=["relex"],
            arguments=list(arguments),
            labels={"app.kubernetes.io/name": "relex", "app.kubernetes.io/component": stage.name},
            env_vars=self._environment(stage),
            container_resources=_resources(stage, gpus),
            volumes=self._volumes(stage, gpus)[0],
            volume_mounts=self._volumes(stage, gpus)[1],
            node_selector=self.gpu_nodes if gpus else {},
            tolerations=[k8s.V1Toleration(key=GPU, operator="Exists", effect="NoSchedule")] if gpus else [],
            service_account_name=self.service_account or None,
            kubernetes_conn_id=self.kubernetes_conn_id,
            in_cluster=self.in_cluster,
            config_file=self.config_file,
            deferrable=True,
            do_xcom_push=False,  # results lie in the run directory; a sidecar would only add another way to fail
            on_finish_action="delete_succeeded_pod",  # one that failed stays, to be looked at
            startup_timeout_seconds=60 * STARTUP_MINUTES,
            active_deadline_seconds=60 * (stage.minutes + STARTUP_MINUTES),
            execution_timeout=timedelta(minutes=stage.minutes + STARTUP_MINUTES),
            poll_interval=30,
            **_retries(stage),
            **options,
        )

    def _environment(self, stage: Stage) -> dict[str, str]:
        scratch = {"TMPDIR": SCRATCH} if stage.resources.scratch else {}
        return {**scratch, **({"GOOGLE_APPLICATION_CREDENTIALS": f"{CREDENTIALS}/{KEY_FILE}"} if self.secret else {})}

    def _volumes(self, stage: Stage, gpus: int) -> tuple[list[k8s.V1Volume], list[k8s.V1VolumeMount]]:
        """Scratch for models that are evaluated, shared memory for GPUs, the key of a service account."""
        sources: dict[str, tuple[str, dict[str, Any]]] = {}
        if stage.resources.scratch:
            size = f"{stage.resources.scratch}Gi"
            sources["scratch"] = (SCRATCH, {"empty_dir": k8s.V1EmptyDirVolumeSource(size_limit=size)})
        if gpus:  # engines that spread a model over processes need more than the 64 MiB of a pod
            sources["shm"] = ("/dev/shm", {"empty_dir": k8s.V1EmptyDirVolumeSource(medium="Memory")})
        if self.secret:
            sources["google"] = (CREDENTIALS, {"secret": k8s.V1SecretVolumeSource(secret_name=self.secret)})
        volumes = [k8s.V1Volume(name=name, **source) for name, (_, source) in sources.items()]
        return volumes, [k8s.V1VolumeMount(name=name, mount_path=path) for name, (path, _) in sources.items()]


def _resources(stage: Stage, gpus: int) -> k8s.V1ResourceRequirements:
    needs = {"cpu": str(stage.resources.cpu), "memory": f"{stage.resources.memory}Gi"}
    return k8s.V1ResourceRequirements(requests=needs, limits={**needs, **({GPU: str(gpus)} if gpus else {})})


def _retries(stage: Stage) -> dict[str, Any]:
    return {
        "retries": stage.retries,
        "retry_delay": timedelta(seconds=60),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=15),
    }
