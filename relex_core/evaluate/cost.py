"""What the pipeline itself has cost so far, from RUN/events.jsonl."""

from __future__ import annotations

from relex_core.evaluate.decision import Cost
from relex_core.events import read_events
from relex_core.spec import CostSpec
from relex_core.storage import Store

STAGES = {"fitted": "fit", "extrapolated": "extrapolate", "evaluated": "evaluate"}


def pipeline_seconds(store: Store) -> dict[str, float]:
    """Seconds by stage, as the finished work recorded them. What a killed process had not finished is not in it."""
    seconds = dict.fromkeys(STAGES.values(), 0.0)
    for event in read_events(store):
        stage, spent = STAGES.get(str(event.get("event"))), event.get("seconds", 0.0)
        if stage and isinstance(spent, float | int):
            seconds[stage] += spent
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
