"""The parts of a spec about measuring and deciding: splits, guards, the decision's rule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, model_validator

from relex_core.spec.sections import Section
from relex_core.spec.tasks import TaskSpec
from relex_core.storage.uri import absolute_uri


class SplitSpec(Section):
    """One set of questions and how they are sampled."""

    task: TaskSpec
    samples: Annotated[int, Field(ge=1)] = 1
    """Completions a question."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """Longest completion, in tokens."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Prompts a batch; part of the result, because decoding is not exactly batch-invariant."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="before")
    @classmethod
    def _from_definition(cls, data: Any, info: ValidationInfo) -> Any:
        """`tasks/math.yaml`, or `{definition: tasks/math.yaml, batch_size: 64}`: the file's fields, then these."""
        data = {"definition": data} if isinstance(data, str) else data
        if not isinstance(data, dict) or "definition" not in data:
            return data
        own = dict(data)
        return {**_definition(own.pop("definition"), info), **own}

    @model_validator(mode="after")
    def _greedy_once(self) -> SplitSpec:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"samples={self.samples} at temperature 0 would repeat one answer {self.samples} times")
        return self

    def sampling(self) -> dict[str, Any]:
        """What completions depend on, besides the questions."""
        return self.model_dump(mode="json", include=set(SplitSpec.model_fields) - {"task"})


def _definition(name: object, info: ValidationInfo) -> dict[str, Any]:
    from relex_core.yaml_text import parse_yaml

    folder = info.context["folder"] if info.context else Path.cwd()
    path = Path(folder, str(name))
    try:
        loaded = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"the task definition {path} cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"the task definition {path} is not a mapping")
    task = loaded.get("task")
    if isinstance(task, dict) and isinstance(task.get("file"), str):  # relative to the definition, not to the spec
        loaded = {**loaded, "task": {**task, "file": absolute_uri(task["file"], path.resolve().parent)}}
    return loaded


class GuardSpec(SplitSpec):
    """A task that must not get worse."""

    margin: Annotated[float, Field(ge=0, le=1)] = 0.02
    """By more than this it must not fall (0.02 = two points)."""
    require: Literal["shown", "not_refuted"] = "shown"
    """`shown`: the whole interval lies above -margin, so few questions block a promotion. `not_refuted`: the interval
    does not lie wholly below it."""


class HarnessGuardSpec(Section):
    """A task of lm-eval's harness that must not get worse; measured by `relex evaluate RUN --lm-eval TASK`."""

    task: str
    """The harness's name for it."""
    metric: str
    """One with a score from 0 to 1 for every document, for example `acc` or `exact_match,strict-match`."""
    margin: Annotated[float, Field(ge=0, le=1)] = 0.02
    require: Literal["shown", "not_refuted"] = "shown"


def _one_or_several(data: Any) -> str:
    return SEVERAL if isinstance(data, (list, tuple)) else ONE


ONE, SEVERAL = "one task", "several tasks"
Splits = Annotated[
    Annotated[SplitSpec, Tag(ONE)] | Annotated[tuple[SplitSpec, ...], Tag(SEVERAL), Field(min_length=1)],
    Discriminator(_one_or_several),
]


class EvaluationSpec(Section):
    """How candidates are measured. The same questions never select and confirm."""

    backend: Literal["transformers", "vllm", "scripted"] = "transformers"
    """`vllm`: an offline engine in a process of its own for each candidate. `scripted`: answers from script.json in
    the candidate's folder, for tests."""
    device: str = "auto"
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """GPUs that one model is spread over (vllm)."""
    gpu_memory: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of each GPU's memory that the engine may take (vllm)."""
    select: Splits
    """Chooses the finalist among all candidates. Of several tasks the mean of their accuracies counts."""
    confirm: Splits
    """Untouched until then: finalist against the last observed checkpoint."""
    guards: tuple[GuardSpec, ...] = ()
    """Tasks that must not fall by more than their margins; measured like `confirm`, decide nothing else."""
    harness_guards: tuple[HarnessGuardSpec, ...] = ()
    """Like `guards`, by lm-eval's harness."""
    search: Literal["auto", "halving", "full"] = "auto"
    """`full`: every candidate on all selection questions. `halving`: all on a part, the better quarter on four times as
    many, and so on. `auto`: halving for more than 8 candidates, if there are at least 4 batches of questions."""
    grading_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """Processor time that grading one answer may take (graders math, paper and your own); then it is a time-out."""

    @property
    def select_splits(self) -> tuple[SplitSpec, ...]:
        return self.select if isinstance(self.select, tuple) else (self.select,)

    @property
    def confirm_splits(self) -> tuple[SplitSpec, ...]:
        return self.confirm if isinstance(self.confirm, tuple) else (self.confirm,)

    @model_validator(mode="after")
    def _names_differ(self) -> EvaluationSpec:
        for what, splits in (("select", self.select_splits), ("confirm", self.confirm_splits), ("guards", self.guards)):
            names = [split.task.name for split in splits]
            if len(set(names)) != len(names):
                raise ValueError(f"{what} names a task twice: {', '.join(names)}")
        return self


class DecisionSpec(Section):
    """When a candidate is promoted. All of it can be changed and decided anew without generating anything."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of the interval on the confirmed gain."""
    rule: Literal["superior", "non_inferior"] = "superior"
    """`superior`: on a confirmation task the whole interval lies above min_gain (of several tasks: one, after Holm's
    correction, and none lies wholly below min(min_gain, 0)). `non_inferior`: on every task it lies above -margin."""
    min_gain: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """The whole interval must lie above this difference in accuracy (0.01 = one point)."""
    margin: Annotated[float, Field(ge=0, le=1)] = 0.01
    """How much worse than the last observed checkpoint is still as good (rule non_inferior)."""
    beat_base: bool = True
    """Promote only what is also shown to be better than the base: where RL made the model worse, undoing that is no
    progress."""
