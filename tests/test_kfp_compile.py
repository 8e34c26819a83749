"""The committed YAML: up to date, accepted by Kubeflow's own protos to the last field, as the stage table says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from google.protobuf import json_format
from kfp.components import load_component_from_file
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PlatformSpec

from relex_core.stages import BY_NAME
from relex_kfp.__main__ import main
from relex_kfp.pipelines.relex_pipeline.compile import COMPILED, DEFAULTS, compile_all, compile_pipeline
from relex_kfp.pipelines.relex_pipeline.profiles import PROFILES, USED_BY, Settings

FILES = sorted(COMPILED.glob("*.yaml"))
PIPELINES = [path for path in FILES if "resources" not in path.name]
IMAGE = "registry.example/relex@sha256:" + "0123456789abcdef" * 4


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def executors(path: Path) -> dict[str, dict[str, Any]]:
    return documents(path)[0]["deploymentSpec"]["executors"]


def strictly(path: Path) -> None:
    """Parse everything into the protos; an unknown field or a wrong type raises."""
    pipeline, *platforms = documents(path)
    json_format.ParseDict(pipeline, PipelineSpec())
    for platform in platforms:
        json_format.ParseDict(platform, PlatformSpec())
        for config in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
            json_format.ParseDict(config, KubernetesExecutorConfig())


def test_the_committed_files_are_what_the_source_compiles_to(tmp_path: Path) -> None:
    again = {path.name: path.read_text() for path in compile_all(tmp_path)}
    assert again.keys() == {path.name for path in FILES}
    stale = [name for name, text in again.items() if text != (COMPILED / name).read_text()]
    assert not stale, f"{stale}: run `make compile`"


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_the_protos_know_every_field(path: Path) -> None:
    strictly(path)


def test_the_strict_check_is_strict(tmp_path: Path) -> None:
    pipeline, platform = documents(COMPILED / "relex-gke.yaml")
    platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-fit"]["tolerance"] = 1
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump_all([pipeline, platform]))
    with pytest.raises(json_format.ParseError, match="tolerance"):
        strictly(path)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_a_pipeline_of_ones_own_can_load_it(path: Path) -> None:
    component = load_component_from_file(str(path))
    assert list(component.component_spec.outputs) == ["checkpoint_uri", "decision", "training_steps_saved"]
    inputs = component.component_spec.inputs
    assert inputs is not None
    assert {name for name, given in inputs.items() if not given.optional} == {"spec"}
    assert set(inputs) == {"spec", "base", "trajectory", "t_cut", "run_root", "shards"}


@pytest.mark.parametrize("profile", ["kubernetes", "gke"])
def test_the_same_pipeline_as_resources(profile: str) -> None:
    pipeline, version = documents(COMPILED / f"relex-{profile}-resources.yaml")
    spec, platform = documents(COMPILED / f"relex-{profile}.yaml")
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == "relex"
    assert (version["spec"]["pipelineSpec"], version["spec"]["platformSpec"]) == (spec, platform)
    for name in (pipeline["metadata"]["name"], version["metadata"]["name"]):
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name)  # what the Kubernetes API takes for a name


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_nothing_is_installed_when_a_pod_starts(path: Path) -> None:
    assert "pip install" not in path.read_text()
    assert {executor["container"]["image"] for executor in executors(path).values()} == {DEFAULTS.image}


def tasks(path: Path) -> dict[str, dict[str, Any]]:
    """Every task of every level that runs a container, by its executor's name."""
    pipeline = documents(path)[0]
    graphs = [pipeline["root"]["dag"], *(c["dag"] for c in pipeline["components"].values() if "dag" in c)]
    every = [task for graph in graphs for task in graph["tasks"].values()]
    labels = {name: c.get("executorLabel") for name, c in pipeline["components"].items()}
    return {label: task for task in every if (label := labels[task["componentRef"]["name"]])}


EXECUTORS = {
    "exec-gate": "gate",
    "exec-collect": "collect",
    "exec-fit": "fit",
    "exec-merge-fit": "merge_fit",
    "exec-forecast": "forecast",
    "exec-extrapolate": "extrapolate",
    "exec-evaluate": "measure",
    "exec-evaluate-2": "measure",
    "exec-evaluate-3": "evaluate",
    "exec-decide": "decide",
    "exec-report": "report",
    "exec-publish": "publish",
    "exec-outcome": "gate",
}


@pytest.mark.parametrize("profile", ["kubernetes", "gke", "vertex"])
def test_every_pod_has_what_the_stage_table_says(profile: str) -> None:
    path = COMPILED / f"relex-{profile}.yaml"
    found, placed = executors(path), tasks(path)
    assert found.keys() == placed.keys() == EXECUTORS.keys()
    assert {*EXECUTORS.values()} == {*BY_NAME}
    for label, name in EXECUTORS.items():
        stage, resources = BY_NAME[name], found[label]["container"]["resources"]
        assert resources["resourceCpuLimit"] == str(stage.resources.cpu)
        assert resources["resourceMemoryLimit"] == f"{stage.resources.memory}Gi"
        assert int(resources.get("accelerator", {}).get("resourceCount", 0)) == stage.resources.gpu
        assert placed[label].get("retryPolicy", {}).get("maxRetryCount", 0) == stage.retries
        cached = placed[label]["cachingOptions"].get("enableCache", False)
        assert cached == (label not in ("exec-gate", "exec-collect", "exec-publish", "exec-outcome"))
        if cached:  # a stale hit needs equal inputs: the key of collect changes with all that later stages read
            assert "key" in placed[label]["inputs"]["parameters"]


@pytest.mark.parametrize("profile", ["kubernetes", "gke"])
def test_pods_on_kubernetes_end_in_time_and_have_scratch(profile: str) -> None:
    configs = documents(COMPILED / f"relex-{profile}.yaml")[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert configs.keys() == EXECUTORS.keys()
    for label, name in EXECUTORS.items():
        stage, config = BY_NAME[name], configs[label]
        assert int(config["activeDeadlineSeconds"]) == 60 * stage.minutes
        mounts = {mount["mountPath"]: mount for mount in config.get("emptyDirMounts", [])}
        assert (mounts.get("/scratch", {}).get("sizeLimit") == f"{stage.resources.scratch}Gi") == bool(
            stage.resources.scratch
        )
        assert ("tolerations" in config) == ("/dev/shm" in mounts) == bool(stage.resources.gpu)
        if profile == "gke":
            labels = config.get("nodeSelector", {}).get("labels", {})
            assert labels == ({"cloud.google.com/gke-accelerator": "nvidia-l4"} if stage.resources.gpu else {})


def test_settings_reach_the_pods(tmp_path: Path) -> None:
    settings = Settings(image=IMAGE, gpu_image=IMAGE.replace("relex", "relex-gpu"), gpu_count=2, secret="bucket-key")
    path = tmp_path / "pipeline.yaml"
    compile_pipeline("kubernetes", settings, path, parallelism=3)
    strictly(path)
    found = executors(path)
    assert found["exec-fit"]["container"]["image"] == IMAGE
    assert found["exec-evaluate"]["container"]["image"] == settings.gpu_image
    assert found["exec-evaluate"]["container"]["resources"]["accelerator"]["resourceCount"] == "2"
    config = documents(path)[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-collect"]
    assert config["secretAsVolume"][0]["secretName"] == "bucket-key"
    assert {"name": "GOOGLE_APPLICATION_CREDENTIALS", "value": "/secrets/google/key.json"} in found["exec-collect"][
        "container"
    ]["env"]
    graphs = [c["dag"] for c in documents(path)[0]["components"].values() if "dag" in c]
    policies = [
        task["iteratorPolicy"] for graph in graphs for task in graph["tasks"].values() if "iteratorPolicy" in task
    ]
    assert policies == [{"parallelismLimit": 3}]


@pytest.mark.parametrize("profile", ["kubernetes", "gke", "vertex"])
def test_without_gpus_nothing_asks_for_one(profile: str, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    compile_pipeline(profile, Settings(image=IMAGE, gpu_count=0), path)
    text = path.read_text()
    assert not {word for word in ("accelerator", "nvidia", "NVIDIA", "/dev/shm") if word in text}


def relex_kfp(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "relex_kfp", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_command_line_compiles(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    done = relex_kfp(
        "compile", "--profile", "vertex", "--image", IMAGE, "--gpu-type", "NVIDIA_A100_80GB", "--out", str(out)
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(out)), done.stderr
    strictly(out)
    accelerator = executors(out)["exec-evaluate"]["container"]["resources"]["accelerator"]
    assert accelerator["resourceType"] == accelerator.get("type", accelerator["resourceType"]) == "NVIDIA_A100_80GB"


@pytest.mark.parametrize("profile", PROFILES)
def test_a_setting_means_something_to_the_profiles_that_are_said_to_use_it(profile: str, tmp_path: Path) -> None:
    def compiled(**settings: Any) -> str:
        compile_pipeline(profile, Settings(image=IMAGE, **settings), tmp_path / "pipeline.yaml")
        return (tmp_path / "pipeline.yaml").read_text()

    plain, settings = compiled(), {"gpu_image": IMAGE[::-1], "gpu_type": "h100", "gpu_count": 2, "secret": "key"}
    assert {*settings} == {*USED_BY} == {field.name for field in fields(Settings)} - {"image"}
    used = {name for name, value in settings.items() if compiled(**{name: value}) != plain}
    assert used == {name for name, profiles in USED_BY.items() if profile in profiles}


@pytest.mark.parametrize(
    ("profile", "options", "message"),
    [
        ("gke", ["--secret", "abc"], "--secret needs --profile kubernetes"),
        ("kubernetes", ["--gpu-type", "nvidia-l4"], "--gpu-type needs --profile gke or vertex"),
        ("processes", ["--gpu-count", "2"], "--gpu-count needs --profile kubernetes or gke or vertex"),
        ("vertex", ["--resources"], "--resources needs --profile kubernetes or gke"),
        ("vertex", ["--out", "relex.txt"], "'relex.txt' does not end in .yaml"),
        ("vertex", ["--out", "relex.json"], "'relex.json' does not end in .yaml"),
        ("vertex", ["--out", "nowhere/relex.yaml"], "there is no folder 'nowhere'"),
    ],
)
def test_an_option_that_would_be_ignored_or_an_output_that_cannot_be_is_bad_usage(
    profile: str, options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["compile", "--profile", profile, "--image", IMAGE, *options])
    assert (done.exit_code, list(tmp_path.iterdir())) == (2, []), done.output
    assert message in done.output


def compiled_to(out: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["compile", "--profile", "gke", "--image", IMAGE, *options, "--out", str(out)])


@pytest.mark.parametrize(
    "text",
    [
        "base: b\ntrajectory: t\nwindow: {t_cut: 8}\n",
        "kind: Pipeline\n",
        "[1]",
        "a: [",
        "\x00",
        "components: {}\n---\n- 1\n",
    ],
)
def test_a_file_that_is_no_compiled_pipeline_is_not_overwritten(text: str, tmp_path: Path) -> None:
    out = tmp_path / "relex.yaml"
    out.write_text(text)
    done = compiled_to(out)
    assert (done.exit_code, out.read_text()) == (2, text), done.output
    assert "no compiled pipeline" in done.output and str(out) in done.output
    assert "give another --out, for example relex-pipeline.yaml" in done.output


def test_a_compiled_pipeline_is_replaced_by_the_next_one(tmp_path: Path) -> None:
    out = tmp_path / "relex-pipeline.yaml"
    out.touch()  # as mktemp leaves it
    for options in ((), ("--resources",), ()):
        done = compiled_to(out, *options)
        assert done.exit_code == 0, done.output
    assert "pipelineInfo" in documents(out)[0]


@pytest.mark.parametrize("image", ["relex:latest", "relex@sha256:0123", ""])
def test_a_floating_image_is_refused(image: str, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    done = relex_kfp("compile", "--profile", "gke", "--image", image, "--out", str(out))
    assert (done.returncode, out.exists()) == (2, False)
    assert "has no digest" in done.stderr


def test_the_profiles_of_the_command_line_are_all_there() -> None:
    from relex_kfp.__main__ import PROFILES as OFFERED

    assert set(OFFERED) == set(PROFILES)


def test_the_parameters_are_explained() -> None:
    """The form of the user interface shows these texts."""
    inputs = documents(COMPILED / "relex-gke.yaml")[0]["root"]["inputDefinitions"]["parameters"]
    assert all(given["description"] for given in inputs.values()), json.dumps(inputs)
