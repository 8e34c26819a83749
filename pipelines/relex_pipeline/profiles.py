"""Profiles: where the pods of the pipeline run, and with what. One plain function for each kind of cluster.

The stage table (relex_core.stages) says what a stage needs; a profile says how this cluster spells it. Another cluster
is another function of the same form.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kfp import dsl, kubernetes

from relex_core.stages import Stage

SCRATCH = "/scratch"
CREDENTIALS = "/secrets/google"
KEY_FILE = "key.json"


@dataclass(frozen=True)
class Settings:
    """What differs between clusters of one kind."""

    image: str
    """With its digest, so that a pipeline that is run again runs the same code."""
    gpu_image: str = ""
    """For stages with GPUs; empty: `image`."""
    gpu_type: str = ""
    """As the cluster spells it: `nvidia-l4` on GKE, `NVIDIA_L4` on Vertex AI. Empty: the profile's usual one."""
    gpu_count: int = 1
    """For each stage that uses GPUs; 0 for a cluster without."""
    secret: str = ""
    """Kubernetes secret with `key.json` of a Google service account; empty where pods have an identity of their own."""


Profile = Callable[[dsl.PipelineTask, Stage, Settings], dsl.PipelineTask]


def generic(task: dsl.PipelineTask, stage: Stage, settings: Settings) -> dsl.PipelineTask:
    """Any Kubernetes cluster: credentials come from a secret where pods have no identity of their own."""
    _kubernetes(task, stage, settings)
    if gpus(stage, settings):
        task.set_accelerator_type("nvidia.com/gpu")
    if settings.secret:
        kubernetes.use_secret_as_volume(task, secret_name=settings.secret, mount_path=CREDENTIALS)
        task.set_env_variable("GOOGLE_APPLICATION_CREDENTIALS", f"{CREDENTIALS}/{KEY_FILE}")
    return task


def gke(task: dsl.PipelineTask, stage: Stage, settings: Settings) -> dsl.PipelineTask:
    """Google Kubernetes Engine: GPU nodes by label, Workload Identity instead of keys."""
    _kubernetes(task, stage, settings)
    if gpus(stage, settings):
        task.set_accelerator_type("nvidia.com/gpu")
        label = "cloud.google.com/gke-accelerator"
        kubernetes.add_node_selector(task, label_key=label, label_value=settings.gpu_type or "nvidia-l4")
    return task


def vertex(task: dsl.PipelineTask, stage: Stage, settings: Settings) -> dsl.PipelineTask:
    """Vertex AI Pipelines: machines chosen by limits, an identity from the job, the machine's own disk as scratch."""
    _common(task, stage, settings)
    if gpus(stage, settings):
        task.set_accelerator_type(settings.gpu_type or "NVIDIA_L4")
    return task


def processes(task: dsl.PipelineTask, stage: Stage, settings: Settings) -> dsl.PipelineTask:
    """kfp.local on one machine: nothing to place, and an attempt that failed would only fail again."""
    return task.set_container_image(settings.image)


PROFILES: Mapping[str, Profile] = {"kubernetes": generic, "gke": gke, "vertex": vertex, "processes": processes}
USED_BY: Mapping[str, tuple[str, ...]] = {
    "gpu_image": ("kubernetes", "gke", "vertex"),
    "gpu_type": ("gke", "vertex"),
    "gpu_count": ("kubernetes", "gke", "vertex"),
    "secret": ("kubernetes",),
}
"""Profiles that a setting means something to; `image` does to all."""
RESOURCES = ("kubernetes", "gke")
"""Profiles of clusters that may keep pipelines as resources of the Kubernetes API."""


def gpus(stage: Stage, settings: Settings) -> int:
    return settings.gpu_count if stage.resources.gpu else 0


def _common(task: dsl.PipelineTask, stage: Stage, settings: Settings) -> None:
    resources, count = stage.resources, gpus(stage, settings)
    task.set_container_image((settings.gpu_image or settings.image) if count else settings.image)
    task.set_cpu_limit(str(resources.cpu)).set_memory_limit(f"{resources.memory}Gi")
    if count:
        task.set_accelerator_limit(count)
    if stage.retries:
        task.set_retry(stage.retries, backoff_duration="60s", backoff_factor=2, backoff_max_duration="900s")


def _kubernetes(task: dsl.PipelineTask, stage: Stage, settings: Settings) -> None:
    _common(task, stage, settings)
    resources = stage.resources
    task.set_cpu_request(str(resources.cpu)).set_memory_request(f"{resources.memory}Gi")
    kubernetes.set_timeout(task, seconds=60 * stage.minutes)
    if gpus(stage, settings):
        kubernetes.add_toleration(task, key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
        # Engines that spread a model over processes need more shared memory than the 64 MiB of a pod.
        kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory")
    if resources.scratch:  # an emptyDir: a volume of its own would belong to root, and pods here do not run as root
        size = f"{resources.scratch}Gi"
        kubernetes.empty_dir_mount(task, volume_name="scratch", mount_path=SCRATCH, size_limit=size)
        task.set_env_variable("TMPDIR", SCRATCH)
