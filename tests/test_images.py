"""The pipeline as a cluster runs it, without the cluster: compiled for the built image, every step a container.

`make test-images` builds the CPU image and runs these. kfp.local's DockerRunner starts the containers through podman's
service; base, trajectory and run directory lie in a bucket of a server on loopback, which is all that containers share.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from gcs.server import fake_gcs, new_bucket  # noqa: F401
from kfp_support import download, result_files, scripted_run, sections_on_gcs, spec_data, upload
from support import SMALL

from relex_core import __version__
from relex_core.spec import RunSpec, resolve_spec
from relex_core.storage import open_store, write_bytes

pytestmark = [
    pytest.mark.images,
    pytest.mark.filterwarnings("ignore:Task .* settings .* have no effect in the current local runner"),
]

IMAGE = os.environ.get("RELEX_IMAGE", f"localhost/relex-cpu:{__version__}")
SCRATCH = "/scratch"
"""An emptyDir on a cluster."""


def podman(*arguments: str) -> str:
    """Standard output of a podman command that succeeds."""
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def image() -> Mapping[str, Any]:
    """What podman knows of the built image."""
    if not shutil.which("podman"):
        pytest.fail("podman is not installed; these tests run containers")
    found = subprocess.run(["podman", "image", "inspect", IMAGE], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.fail(f"there is no image {IMAGE}: make image-cpu\n{found.stderr}")
    return dict(json.loads(found.stdout)[0])


@pytest.fixture(scope="module")
def docker_host() -> Iterator[str]:
    """Address of a podman service, which speaks Docker's API."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder, "podman.sock")
        service = subprocess.Popen(["podman", "system", "service", "--time=0", f"unix://{socket}"])
        try:
            for _ in range(600):
                if socket.exists():
                    break
                assert service.poll() is None, "podman system service ended"
                time.sleep(0.05)
            yield f"unix://{socket}"
        finally:
            service.terminate()
            service.wait()


@pytest.fixture(scope="module")
def pipeline(image: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline, compiled as the documentation says, for a cluster without GPUs."""
    path = tmp_path_factory.mktemp("compiled") / "relex-pipeline.yaml"
    name = f"{IMAGE.rpartition(':')[0]}@{image['Digest']}"
    command = [sys.executable, "-m", "relex_kfp", "compile", "--profile", "kubernetes", "--image", name]
    subprocess.run([*command, "--gpu-count", "0", "--out", str(path)], check=True)
    return path


@pytest.fixture
def uri(fake_gcs: str, docker_host: str, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    """A folder of a bucket that this process and the containers see."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs)
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    return f"gs://{new_bucket(fake_gcs)}/rl"


def run_container(client: Any, image: str, command: list[str], volumes: dict[str, Any], **arguments: Any) -> int:
    """Stands in for kfp's own, which lets Docker remove the container and takes one that is gone for a success."""
    container = client.containers.run(image=image, command=command, volumes=volumes, detach=True, **arguments)
    try:
        for line in container.logs(stream=True):
            print(line.decode(), end="")
        return int(container.wait()["StatusCode"])
    finally:
        container.remove(force=True)


def run_pipeline(pipeline: Path, spec: RunSpec, root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Outputs of the pipeline; every step is a container.

    Args:
        root: for Kubeflow's artifacts.
    """
    from kfp import local
    from kfp.components import load_component_from_file
    from kfp.local import docker_task_handler

    monkeypatch.setattr(docker_task_handler, "run_docker_container", run_container)
    root.mkdir()
    root.chmod(0o777)  # the containers' user is not this one
    runner = local.DockerRunner(
        network_mode="host",
        environment={"STORAGE_EMULATOR_HOST": os.environ["STORAGE_EMULATOR_HOST"]},
        tmpfs={SCRATCH: "mode=1777"},
    )
    local.init(runner, pipeline_root=str(root))
    task = load_component_from_file(str(pipeline))(spec=spec.model_dump_json(), shards=2)
    return dict(task.outputs)


def run_command(spec: RunSpec, uri: str, run_root: str) -> None:
    """`relex run` on the same input, in one container."""
    write_bytes(open_store(uri), "spec.json", spec.model_dump_json().encode())
    server = f"STORAGE_EMULATOR_HOST={os.environ['STORAGE_EMULATOR_HOST']}"
    command = ["relex", "run", f"{uri}/spec.json", "--out", run_root]
    podman("run", "--rm", "--network=host", "--env", server, IMAGE, *command)


def spec_on_gcs(uri: str, **sections: Any) -> RunSpec:
    data = {**spec_data(**sections_on_gcs(uri)), **sections}
    return resolve_spec(data, where="spec", folder=Path.cwd(), out=f"{uri}/relex")


def test_the_image_is_what_a_cluster_wants(image: Mapping[str, Any]) -> None:
    config = image["Config"]
    assert not config.get("Entrypoint"), "Kubeflow's command would become its arguments"
    assert config["User"] == "10001:10001"
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert (labels["title"], labels["version"], labels["licenses"]) == ("relex-cpu", __version__, "Apache-2.0")
    assert labels["revision"] != "unknown"


def test_what_runs_in_it_is_not_root_and_finds_relex(image: Mapping[str, Any]) -> None:
    assert podman("run", "--rm", "--network=none", IMAGE).startswith("Usage: relex [OPTIONS]")
    script = "id -u; test -w /opt/relex/bin/relex || echo not writable; touch ~/x /tmp/x; python -m relex_kfp --help"
    said = podman("run", "--rm", "--network=none", IMAGE, "sh", "-c", script).splitlines()
    assert said[:2] == ["10001", "not writable"]
    assert said[2].startswith("Usage: python -m relex_kfp")


def test_every_module_can_be_imported_in_it(image: Mapping[str, Any]) -> None:
    """What the lock file forgets shows here; vLLM and Airflow are not of this image, and _kernels is no module."""
    script = """
import importlib, pkgutil, relex_core, relex_kfp
from relex_core.kernels import compiled_library
assert compiled_library(), "there was no C compiler"
names = [m.name for p in (relex_core, relex_kfp) for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")]
for name in names:
    if not name.endswith(("__main__", "vllm_backend", "lm_eval", "_kernels")):
        importlib.import_module(name)
print(len(names))
"""
    assert int(podman("run", "--rm", "--network=none", IMAGE, "python", "-c", script)) > 50


def test_the_pipeline_in_containers_makes_what_relex_run_makes(
    uri: str, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(scripted_run(tmp_path / "data", candidates=0.9, last_observed=0.3), uri)
    spec = spec_on_gcs(uri)
    outputs = run_pipeline(pipeline, spec, tmp_path / "kfp", monkeypatch)
    assert outputs == {
        "decision": "promote",
        "checkpoint_uri": f"{uri}/relex/candidates/relex-step00020-scale1.00",
        "training_steps_saved": 12,
    }
    run_command(spec, uri, f"{uri}/other")
    mine, theirs = (
        result_files(download(f"{uri}/{run}", tmp_path / run), f"{uri}/{run}") for run in ("relex", "other")
    )
    assert any(name.startswith("fit/direction-") for name in mine)
    assert {"fit/fit.json", "decision.json", "published.json", "window.json"} <= set(mine)
    assert mine == theirs
    assert (tmp_path / "relex/report.html").exists()
    assert run_pipeline(pipeline, spec, tmp_path / "again", monkeypatch) == outputs
    assert {path.name for path in (tmp_path / "again").glob("*/*")} == {"gate", "outcome"}


def test_real_models_answer_in_containers(
    uri: str, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with transformers instead of scripts: the small run's models add numbers, about half of them rightly."""
    upload(SMALL / "run", f"{uri}/trajectory")
    evaluation: dict[str, Any] = {"backend": "transformers", "device": "cpu"}
    for name in ("select", "confirm"):
        pairs = random.Random(name).sample([(a, b) for a in range(100, 1000, 7) for b in range(100, 1000, 7)], 24)
        rows = [{"prompt": f"{a}+{b}=", "answer": f"{a + b:04d}"} for a, b in pairs]
        write_bytes(open_store(uri), f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        evaluation[name] = {"task": {"name": name, "file": f"{uri}/{name}.jsonl"}, "max_tokens": 6}
    spec = spec_on_gcs(uri, evaluation=evaluation, candidates={"target_steps": [20]})
    outputs = run_pipeline(pipeline, spec, tmp_path / "kfp", monkeypatch)
    run_command(spec, uri, f"{uri}/other")
    mine, theirs = (
        result_files(download(f"{uri}/{run}", tmp_path / run), f"{uri}/{run}") for run in ("relex", "other")
    )
    assert mine == theirs
    samples = [text for name, text in mine.items() if name.endswith("samples.jsonl")]
    assert len(samples) == 6, "three models on two splits"
    assert {json.loads(row)["status"] for text in samples for row in text.splitlines()} == {"correct", "wrong"}
    assert outputs["decision"] == json.loads(mine["decision.json"])["decision"]


def test_a_window_that_is_not_complete_ends_green(
    uri: str, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(scripted_run(tmp_path / "data", candidates=0.9, last_observed=0.3), uri)
    spec = spec_on_gcs(uri, window={"t_cut": 40})
    outputs = run_pipeline(pipeline, spec, tmp_path / "kfp", monkeypatch)
    assert outputs == {"decision": "not_ready", "checkpoint_uri": "", "training_steps_saved": 0}
    assert not list(open_store(f"{uri}/relex").list())


def test_a_container_that_fails_fails_the_pipeline(
    uri: str, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = scripted_run(tmp_path / "data", candidates=0.9, last_observed=0.3)
    weights = data / "trajectory/global_step_4/actor/huggingface/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    upload(data, uri)
    with pytest.raises(RuntimeError, match="gate"):
        run_pipeline(pipeline, spec_on_gcs(uri), tmp_path / "kfp", monkeypatch)
    assert "WindowError: incomplete checkpoints below a later one:" in capsys.readouterr().out
    assert not list(open_store(f"{uri}/relex").list())
