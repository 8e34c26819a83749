"""The ready DAG. Copy this file into Airflow's folder of DAGs and say with environment variables where stages run.

RELEX_AIRFLOW_PLACE   pods (default) or local
RELEX_IMAGE, RELEX_GPU_IMAGE, RELEX_GPU_COUNT, RELEX_NAMESPACE, RELEX_SERVICE_ACCOUNT      pods
RELEX_PYTHON          local: interpreter of the environment with relex and torch
RELEX_GCP_CONN_ID     connection for the sensor and the checks; unset: application-default credentials
RELEX_POKE_SECONDS    seconds between the first looks of the sensor; unset: 60
RELEX_SPEC            file with as much of the spec as all runs share (YAML or JSON)
"""

from __future__ import annotations

import os
from pathlib import Path

from relex_airflow.dag import build_dag
from relex_airflow.places import Local, Place, Pods
from relex_core.yaml_text import parse_yaml

IMAGE = "relex-cpu:0.1.0"
"""As `make images` names it; a cluster needs one that it can pull, named by its digest."""


def place() -> Place:
    if os.environ.get("RELEX_AIRFLOW_PLACE", "pods") == "local":
        return Local(python=os.environ.get("RELEX_PYTHON", "python3"))
    return Pods(
        image=os.environ.get("RELEX_IMAGE", IMAGE),
        gpu_image=os.environ.get("RELEX_GPU_IMAGE", ""),
        gpu_count=int(os.environ.get("RELEX_GPU_COUNT", "0")),
        namespace=os.environ.get("RELEX_NAMESPACE", "default"),
        service_account=os.environ.get("RELEX_SERVICE_ACCOUNT", ""),
    )


shared = os.environ.get("RELEX_SPEC")
dag = build_dag(
    "relex",
    place(),
    spec=parse_yaml(Path(shared).read_text(encoding="utf-8")) if shared else None,
    gcp_conn_id=os.environ.get("RELEX_GCP_CONN_ID") or None,
    poke_seconds=float(os.environ.get("RELEX_POKE_SECONDS", "60")),
)
