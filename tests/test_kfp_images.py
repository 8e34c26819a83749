"""The images' definitions. What runs in them is tested by test_images.py (`make test-images`)."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    pytest.skip("tomllib came with Python 3.11", allow_module_level=True)

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
KINDS = ("cpu", "gpu")


@pytest.mark.parametrize("kind", KINDS)
def test_kubeflow_can_start_it_and_it_is_not_root(kind: str) -> None:
    lines = (ROOT / "images" / kind / "Dockerfile").read_text().splitlines()
    instructions = [line.split(" ", 1)[0] for line in lines if re.match(r"[A-Z]+ ", line)]
    assert "ENTRYPOINT" not in instructions, "Kubeflow's command would become its arguments"
    assert instructions.count("FROM") == 3
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER 10001:10001"
    assert not [line for line in lines if line.startswith("ADD ")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_requirement_is_pinned_to_its_bytes(kind: str) -> None:
    lock = (ROOT / "images" / kind / "requirements.lock").read_text().replace("\\\n", " ")
    requirements = [line for line in lock.splitlines() if line.strip()]
    for line in requirements:
        assert re.match(r"[A-Za-z0-9._-]+==\S+( ;.*?)? +(--hash=sha256:[0-9a-f]{64} *)+$", line), line
    names = {line.partition("==")[0] for line in requirements}
    assert names >= needed("report", "kfp", "vllm" if kind == "gpu" else "eval") | {"setuptools"}
    assert ("vllm" in names) == (kind == "gpu")
    torch = next(line.split()[0] for line in requirements if line.startswith("torch=="))
    assert torch.endswith("+cpu") == (kind == "cpu"), "the GPU image has torch with CUDA"


def needed(*extras: str) -> set[str]:
    """Names of what relex with these extras asks for itself."""
    project = PYPROJECT["project"]
    needs = [*project["dependencies"], *(need for extra in extras for need in project["optional-dependencies"][extra])]
    own = [need for need in needs if need.startswith("relex[")]
    names = {re.split(r"[<>=\[]", need)[0] for need in needs if need not in own}
    return names.union(*(needed(*need[len("relex[") : -1].split(",")) for need in own))


@pytest.mark.parametrize("kind", KINDS)
def test_the_build_context_holds_what_is_copied(kind: str) -> None:
    text = (ROOT / "images" / kind / "Dockerfile").read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if re.match(r"COPY (?!--from)", line)]
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in (name for names in copied for name in names):
        assert (ROOT / name).exists()
        assert any(Path(name).match(pattern) for pattern in sent), f"{name} is not in the build context"


def test_they_differ_in_their_dependencies_only() -> None:
    texts = [(ROOT / "images" / kind / "Dockerfile").read_text().replace(f"relex-{kind}", "relex") for kind in KINDS]
    cpu, gpu = (text.partition("WORKDIR /src")[2] for text in texts)  # before it, the compiler
    assert cpu and cpu == gpu


@pytest.mark.parametrize("kind", KINDS)
def test_hadolint_has_nothing_to_say(kind: str) -> None:
    hadolint = Path(sysconfig.get_path("scripts"), "hadolint")
    subprocess.run([hadolint, str(ROOT / "images" / kind / "Dockerfile")], check=True)
