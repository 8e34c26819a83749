"""What a run of the DAG is asked for: the form that Airflow shows, and the spec that comes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from airflow.sdk import Param

from relex_core.errors import SpecError
from relex_core.spec import RunSpec, spec_from_json

PLACE = r"^($|/|gs://)"
"""Absolute: the working directory of a worker is nobody's business."""


def params_of(defaults: Mapping[str, Any]) -> dict[str, Param]:
    """The form's fields.

    Args:
        defaults: as much of a spec as every run of this DAG shares; a run may override the fields shown.
    """
    rest = {name: value for name, value in defaults.items() if name not in ("base", "trajectory", "run_root")}
    return {
        "base": _place(defaults, "base", "Folder of the model that the RL run started from."),
        "trajectory": _place(defaults, "trajectory", "The folder that holds the step folders."),
        "t_cut": Param(
            _t_cut(defaults),
            type=["null", "integer"],
            minimum=1,
            title="T_cut",
            description="Last optimizer step of the observation window.",
        ),
        "run_root": _place(defaults, "run_root", "Where relex writes. Empty: TRAJECTORY/relex."),
        "spec": Param(
            rest,
            type="object",
            title="The rest of the spec",
            description="As JSON, with at least `evaluation`; see docs/spec.md.",
            **_schema(),
        ),
        "shards": Param(
            1, type="integer", minimum=1, maximum=1000, title="Shards", description="Tasks that fit at the same time."
        ),
    }


def resolve(params: Mapping[str, Any]) -> RunSpec:
    """The spec of one run of the DAG.

    Raises:
        SpecError: a field is wrong or missing, or there is no evaluation, without which nothing can be decided.
    """
    spec = spec_from_json(
        json.dumps(params["spec"]),
        base=params["base"],
        trajectory=params["trajectory"],
        run_root=params["run_root"],
        t_cut=params["t_cut"] or 0,
        where="params",
    )
    if spec.evaluation is None:
        raise SpecError(
            "the spec has no evaluation section, so nothing could be decided",
            where="params.spec.evaluation",
            expected="evaluation: {select: {task: ...}, confirm: {task: ...}}",
            next_step="add the section; to only write candidates, use relex run",
        )
    return spec


def _t_cut(defaults: Mapping[str, Any]) -> Any:
    """As the spec reads it: 0100 is text in YAML, as relex reads that, and means 100."""
    t_cut = dict(defaults.get("window", {})).get("t_cut")
    return int(t_cut) if isinstance(t_cut, str) and t_cut.isdecimal() else t_cut


def _place(defaults: Mapping[str, Any], name: str, description: str) -> Param:
    title = name.replace("_", " ").capitalize()
    return Param(defaults.get(name, ""), type="string", pattern=PLACE, title=title, description=description)


def _schema() -> dict[str, Any]:
    """The form refuses misspelt sections; `resolve` the rest. Airflow stores it with every task, so it is short."""
    sections = {name: {} for name in RunSpec.model_fields if name not in ("base", "trajectory", "run_root")}
    return {"properties": sections, "additionalProperties": False}
