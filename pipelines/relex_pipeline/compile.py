"""Pipeline + profile -> YAML: two compiles of the same source give the same bytes."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

from relex_core import __version__
from relex_core.errors import SpecError
from relex_kfp.components import BASE_IMAGE
from relex_kfp.pipelines.relex_pipeline.pipeline import NAME, build_pipeline
from relex_kfp.pipelines.relex_pipeline.profiles import PROFILES, RESOURCES, Settings
from relex_kfp.pipelines.trigger.submission import LOADER

COMPILED = Path(__file__).parent / "compiled"
"""The pipeline for each profile, with the image's name as `make images` gives it: for reading, and for running it
without a cluster. A cluster needs one compiled for the image that it can pull."""

DEFAULTS = Settings(image=BASE_IMAGE)


def compile_pipeline(
    profile: str, settings: Settings, path: Path, *, resources: bool = False, parallelism: int = 8
) -> None:
    """Write the pipeline as one YAML file.

    Args:
        profile: a name in PROFILES.
        path: of the file.
        resources: as Pipeline and PipelineVersion resources, for clusters that keep pipelines in the Kubernetes API.
        parallelism: candidates at the same time, at most.
    """
    place = PROFILES[profile]
    pipeline = build_pipeline(lambda task, stage: place(task, stage, settings), parallelism=parallelism)
    write = partial(compiler.Compiler().compile, pipeline, str(path))
    if not resources:
        write()
        return
    version = f"{NAME}-{profile}-{__version__}".replace("+", "-")
    options = KubernetesManifestOptions(
        pipeline_name=NAME, pipeline_version_name=version, include_pipeline_manifest=True
    )
    write(kubernetes_manifest_format=True, kubernetes_manifest_options=options)


def compile_all(folder: Path = COMPILED) -> list[Path]:
    """Write every file of compiled/."""
    written = []
    for profile in PROFILES:
        for resources in (False, True) if profile in RESOURCES else (False,):
            path = folder / f"relex-{profile}{'-resources' if resources else ''}.yaml"
            compile_pipeline(profile, DEFAULTS, path, resources=resources)
            written.append(path)
    return written


def refuse_floating_image(image: str) -> None:
    """Images are named by digest: a tag may mean other code tomorrow, while caches and submissions go by the name.

    Raises:
        SpecError: there is no digest.
    """
    if not re.search(r"@sha256:[0-9a-f]{64}$", image):
        raise SpecError(
            f"the image {image!r} has no digest",
            expected="NAME@sha256:DIGEST",
            next_step="podman push prints the digest; so does: skopeo inspect docker://IMAGE",
        )


def refuse_overwriting(path: Path) -> None:
    """A compiled pipeline is replaced by the next one; a spec, also YAML, cannot be compiled again.

    Raises:
        SpecError: there is a file, and it is neither empty nor a compiled pipeline.
    """
    if not path.exists() or not path.stat().st_size:
        return
    try:
        documents = list(yaml.load_all(path.read_text(encoding="utf-8"), LOADER))
    except (OSError, ValueError, yaml.YAMLError):
        documents = []
    if not any(isinstance(one, dict) and _is_pipeline(one) for one in documents):
        raise SpecError(
            "the file is there, and is no compiled pipeline",
            where=str(path),
            expected="no file of this name, or an earlier compiled pipeline",
            next_step="give another --out, for example relex-pipeline.yaml",
        )


def _is_pipeline(document: Mapping[str, Any]) -> bool:
    """As plain YAML, or as one of the resources."""
    return "pipelineInfo" in document or str(document.get("apiVersion")).startswith("pipelines.kubeflow.org/")


if __name__ == "__main__":
    compile_all()
