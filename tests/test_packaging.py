"""What `pip install` would install: every package of the tree, and no torch in the bare install."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    pytest.skip("tomllib came with Python 3.11", allow_module_level=True)

ROOT = Path(__file__).parents[1]
AIRFLOW = "pipelines.relex_airflow"
"""Installed as `relex_airflow`: an Airflow environment has no kfp."""
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_installed() -> None:
    """An editable install hides a package that pyproject.toml forgets."""
    roots = {"relex_core": "", "relex_kfp": "", "components": "relex_kfp.", "pipelines": "relex_kfp."}
    found = {
        prefix + ".".join(path.parent.relative_to(ROOT).parts)
        for root, prefix in roots.items()
        for path in (ROOT / root).rglob("__init__.py")
    }
    found -= {name for name in found if name.startswith(f"relex_kfp.{AIRFLOW}")}
    found |= {
        ".".join(path.parent.relative_to(ROOT / "pipelines").parts)
        for path in (ROOT / "pipelines/relex_airflow").rglob("__init__.py")
    }
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == found


def test_the_extra_kfp_takes_no_older_version_than_the_pipelines_are_compiled_and_run_with() -> None:
    compiled = (ROOT / "pipelines/relex_pipeline/compiled/relex-processes.yaml").read_text()
    version = re.search(r"^sdkVersion: kfp-(\d+\.\d+)\.", compiled, re.MULTILINE)
    assert version
    needs = PYPROJECT["project"]["optional-dependencies"]["kfp"]
    assert needs == [f"{name}>={version[1]},<3" for name in ("kfp", "kfp-kubernetes")]


def test_the_bare_install_is_light() -> None:
    heavy = {"torch", "numpy", "transformers", "scipy", "kfp", "apache-airflow", "vllm"}
    assert not heavy & {re.split(r"[<>=\[]", need)[0] for need in PYPROJECT["project"]["dependencies"]}
    assert {"fit", "cuda", "eval", "vllm", "kfp", "airflow", "dev"} <= set(
        PYPROJECT["project"]["optional-dependencies"]
    )
