"""The pods as a cluster would get them: rendered without one, and held strictly against Kubernetes' own schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes.client import ApiClient
from kubernetes.utils.quantity import parse_quantity

from relex_airflow.places import CREDENTIALS, SCRATCH, STARTUP_MINUTES, Pods
from relex_core.stages import STAGES, Stage

STAGE_PODS = [stage for stage in STAGES if stage.name != "gate"]
VERSION = "1.30"
"""Of Kubernetes."""


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A cluster that does not exist: pods are rendered, never sent."""
    path = tmp_path / "kubeconfig"
    cluster = {"name": "none", "cluster": {"server": "http://127.0.0.1:9"}}
    context = {"name": "none", "context": {"cluster": "none", "user": "none"}}
    user = {"name": "none", "user": {}}
    kinds = {"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "none"}
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **kinds}))
    return str(path)


def operator(stage: Stage, config: str, **settings: Any) -> Any:
    given = {"image": "registry.example/relex@sha256:0", "config_file": config, "kubernetes_conn_id": None, **settings}
    arguments = stage.arguments(spec="gs://b/run/spec.json", run="gs://b/run", shard="2/3", candidate="relex-step00500")
    return Pods(**given).task(stage, arguments, task_id=stage.name)


def pod(stage: Stage, config: str, **settings: Any) -> dict[str, Any]:
    rendered = operator(stage, config, **settings).build_pod_request_obj()
    found: dict[str, Any] = ApiClient().sanitize_for_serialization(rendered)
    return found


@pytest.mark.parametrize("stage", STAGE_PODS, ids=lambda stage: stage.name)
def test_kubernetes_takes_it(stage: Stage, config: str) -> None:
    for settings in ({}, {"gpu_count": 0}, {"secret": "google", "service_account": "relex"}):
        kubernetes_validate.validate(pod(stage, config, **settings), VERSION, strict=True)


def test_the_strict_check_is_strict(config: str) -> None:
    wrong = pod(STAGE_PODS[0], config)
    wrong["spec"]["tolerance"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


@pytest.mark.parametrize("stage", STAGE_PODS, ids=lambda stage: stage.name)
def test_it_asks_for_what_the_table_says(stage: Stage, config: str) -> None:
    made = pod(stage, config, gpu_count=2)
    [container] = made["spec"]["containers"]
    needs, gpus = container["resources"], 2 if stage.resources.gpu else 0
    for kind in ("requests", "limits"):
        assert parse_quantity(needs[kind]["cpu"]) == stage.resources.cpu
        assert parse_quantity(needs[kind]["memory"]) == stage.resources.memory * 2**30
    assert parse_quantity(needs["limits"].get("nvidia.com/gpu", "0")) == gpus
    assert bool(made["spec"].get("tolerations")) == bool(gpus)
    sizes = [v["emptyDir"]["sizeLimit"] for v in made["spec"].get("volumes", []) if v["name"] == "scratch"]
    assert [parse_quantity(size) for size in sizes] == [stage.resources.scratch * 2**30] * bool(stage.resources.scratch)
    assert ({"name": "TMPDIR", "value": SCRATCH} in container["env"]) == bool(stage.resources.scratch)
    assert container["command"] == ["relex"]
    assert container["args"][0] == stage.command[0]
    assert made["spec"]["activeDeadlineSeconds"] == 60 * (stage.minutes + STARTUP_MINUTES)
    assert made["metadata"]["name"].startswith(f"relex-{stage.name}".replace("_", "-"))


def test_what_the_operator_does_around_the_pod(config: str) -> None:
    made = operator(STAGE_PODS[0], config)
    assert made.deferrable and not made.do_xcom_push
    assert made.on_finish_action.value == "delete_succeeded_pod"
    assert made.startup_timeout_seconds >= 900


def test_images_nodes_and_credentials(config: str) -> None:
    settings = {"gpu_image": "registry.example/gpu@sha256:1", "gpu_nodes": {"gpu": "l4"}, "secret": "google"}
    for stage in STAGE_PODS:
        made = pod(stage, config, **settings)
        [container] = made["spec"]["containers"]
        assert ("gpu@" in container["image"]) == bool(stage.resources.gpu)
        assert made["spec"]["nodeSelector"] == ({"gpu": "l4"} if stage.resources.gpu else {})
        assert {"name": "google", "mountPath": CREDENTIALS} in container["volumeMounts"]
        assert {"name": "GOOGLE_APPLICATION_CREDENTIALS", "value": f"{CREDENTIALS}/key.json"} in container["env"]
