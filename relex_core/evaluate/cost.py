"""What the pipeline itself has cost so far, from RUN/events.jsonl."""

from __future__ import annotations

import json

from relex_core import layout
from relex_core.errors import ObjectNotFound
from relex_core.evaluate.decision import Cost
from relex_core.spec import CostSpec
from relex_core.storage import Store, read_bytes

STAGES = {"fitted": "fit", "extrapolated": "extrapolate", "evaluated": "evaluate"}


def pipeline_seconds(store: Store) -> dict[str, float]:
    """Seconds by stage, as the finished work recorded them. What a killed process had not finished is not in it."""
    try:
        lines = read_bytes(store, layout.EVENTS).decode().splitlines()
    except ObjectNotFound:
        lines = []
    seconds = dict.fromkeys(STAGES.values(), 0.0)
    for event in map(json.loads, lines):
        if event["event"] in STAGES:
            seconds[STAGES[event["event"]]] += event.get("seconds", 0.0)
    return {stage: round(value, 3) for stage, value in seconds.items()}


def cost_of(spec: CostSpec, steps_saved: int, seconds: dict[str, float]) -> Cost:
    """Training not done minus pipeline run, in GPU hours; without a cost per step, the pipeline's alone."""
    gpus = {"fit": spec.fit_gpus, "extrapolate": spec.fit_gpus, "evaluate": spec.evaluation_gpus}
    pipeline = sum(gpus[stage] * value for stage, value in seconds.items()) / 3600
    per_step = spec.gpu_hours_per_step
    training = None if per_step is None else per_step * steps_saved
    return Cost(
        gpu_hours_per_step=per_step,
        training_gpu_hours_saved=training,
        pipeline_seconds=seconds,
        pipeline_gpu_hours=pipeline,
        gpu_hours_saved=None if training is None else training - pipeline,
    )
