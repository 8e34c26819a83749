"""The provider: what Airflow reads from it is valid, and everything that it names is there."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import airflow
import jsonschema
import pytest

from relex_airflow.provider_info import get_provider_info

SCHEMA = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())


def test_the_entry_point_gives_what_airflows_schema_takes() -> None:
    [entry] = [e for e in entry_points(group="apache_airflow_provider") if e.value.startswith("relex_airflow.")]
    assert entry.load() is get_provider_info
    jsonschema.validate(get_provider_info(), SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**get_provider_info(), "operators": "relex_airflow.operators"}, SCHEMA)


def test_everything_named_is_there() -> None:
    info = get_provider_info()
    for kind in ("operators", "sensors", "triggers"):
        for module in info[kind][0]["python-modules"]:
            import_module(module)
    for link in info["extra-links"]:
        module, _, name = link.rpartition(".")
        assert getattr(import_module(module), name).name == "Report"


def test_airflow_finds_the_provider() -> None:
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    assert manager.providers["relex"].data["name"] == "RELEX"
    assert "relex_airflow.links.ReportLink" in manager.extra_links_class_names
