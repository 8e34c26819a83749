"""What Airflow reads from the entry point `apache_airflow_provider`; an invalid one breaks every airflow command."""

from __future__ import annotations

from typing import Any

from relex_core import __version__

INTEGRATION = "RELEX"
PAPER = "https://arxiv.org/abs/2605.21468"


def get_provider_info() -> dict[str, Any]:
    """Held against Airflow's own schema by tests/airflow/test_provider.py."""
    return {
        "package-name": "relex",
        "name": "RELEX",
        "description": "Extrapolate RLVR checkpoints, and promote one only when it is shown to help.",
        "versions": [__version__],
        "integrations": [{"integration-name": INTEGRATION, "external-doc-url": PAPER, "tags": ["service"]}],
        "operators": [{"integration-name": INTEGRATION, "python-modules": ["relex_airflow.operators"]}],
        "sensors": [{"integration-name": INTEGRATION, "python-modules": ["relex_airflow.sensors"]}],
        "triggers": [{"integration-name": INTEGRATION, "python-modules": ["relex_airflow.triggers"]}],
        "extra-links": ["relex_airflow.links.ReportLink"],
    }
