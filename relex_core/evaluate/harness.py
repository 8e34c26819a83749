"""What lm-eval's harness found: eval/<candidate>/<task>-lm-eval/, read back for the decision.

Its accuracies choose no finalist and confirm nothing; `decide` shows them as evidence, and a task named in
`evaluation.harness_guards` must not fall. `harness_run` writes them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from relex_core import layout
from relex_core.errors import DataError, ObjectNotFound, SpecError
from relex_core.storage import Store, join_uri, read_bytes

SPLIT = "lm-eval"


class Metric(BaseModel):
    """One metric of a task, as the harness reports it."""

    model_config = ConfigDict(frozen=True)

    value: float
    standard_error: float | None
    """None where the harness has none."""


class HarnessResult(BaseModel):
    """summary.json of one candidate on one task of the harness."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidate: str
    task: str
    n: int
    """Documents."""
    shots: int
    version: str
    """Of the task's definition."""
    harness: str
    """Version of lm-eval."""
    higher_is_better: dict[str, bool | None]
    metrics: dict[str, Metric]
    """By the harness's names, for example `acc,none` (metric and filter)."""
    samples_sha256: str
    together: tuple[str, ...]
    """The tasks of one call; it is finished when all of them are there."""
    key: dict[str, Any]

    def metric(self, name: str) -> str:
        """The full name of a metric: `acc` is `acc,none` where that is the only `acc`.

        Raises:
            SpecError: there is none of that name, or several.
        """
        found = [full for full in self.metrics if name in (full, full.partition(",")[0])]
        if len(found) != 1:
            raise SpecError(
                f"lm-eval's task {self.task} has {'several metrics' if found else 'no metric'} {name!r}",
                where="evaluation.harness_guards",
                expected=f"one of {', '.join(self.metrics)}",
            )
        return found[0]


def read_harness_results(store: Store, candidate: str) -> list[HarnessResult]:
    """What the harness found for one candidate, by task.

    Raises:
        DataError: a summary is not one.
    """
    prefix, suffix = f"{layout.EVALUATIONS}/{candidate}", f"-{SPLIT}/{layout.SUMMARY}"
    return [_read(store, info.name) for info in store.list(prefix) if info.name.endswith(suffix)]


def harness_scores(store: Store, result: HarnessResult, metric: str) -> dict[str, float]:
    """One metric of every document, by the document's hash.

    Raises:
        DataError: samples.jsonl is not the one that was summarised, or the metric cannot be paired.
    """
    name, key = result.metric(metric), f"{harness_folder(result.candidate, result.task)}/{layout.SAMPLES}"
    data = read_bytes(store, key)
    if hashlib.sha256(data).hexdigest() != result.samples_sha256:
        raise DataError("the samples are not those of the summary", where=join_uri(store.uri, key))
    rows = [json.loads(line) for line in data.decode().splitlines()]
    scores = {f"{row['id']}/{row['doc']}": row["scores"][name] for row in rows if name in row["scores"]}
    if not scores or any(value is None or not 0 <= value <= 1 for value in scores.values()):
        raise DataError(
            f"{name} of lm-eval's task {result.task} is no score of single documents from 0 to 1",
            where=join_uri(store.uri, key),
            next_step="name another metric in evaluation.harness_guards",
        )
    return scores if result.higher_is_better.get(name.partition(",")[0]) is not False else _negated(scores)


def paired_scores(
    store: Store, first: HarnessResult, second: HarnessResult, metric: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two models' scores on the same documents, as matrices "n 1"; greater is better.

    Raises:
        DataError: the documents are not the same.
    """
    scores = [harness_scores(store, result, metric) for result in (first, second)]
    if scores[0].keys() != scores[1].keys() or _comparable(first) != _comparable(second):
        raise DataError(
            f"{first.candidate} and {second.candidate} were measured under other conditions",
            where=f"lm-eval's task {first.task}",
            expected="the same documents, definitions, versions and dtype for all that is compared",
            next_step="run relex evaluate --lm-eval again",
        )
    a, b = (np.array([[of[key]] for key in sorted(of)]) for of in scores)
    return a, b


def _comparable(result: HarnessResult) -> dict[str, Any]:
    free = ("candidate", "tasks", "include")
    return {**{name: value for name, value in result.key.items() if name not in free}, "version": result.version}


def harness_folder(candidate: str, task: str) -> str:
    """Of one candidate's results on one task."""
    return layout.evaluation(candidate, task.replace("/", "_"), SPLIT)


def _negated(scores: dict[str, float]) -> dict[str, float]:
    return {key: -value for key, value in scores.items()}


def _read(store: Store, key: str) -> HarnessResult:
    try:
        return HarnessResult.model_validate_json(read_bytes(store, key))
    except (ObjectNotFound, ValidationError) as error:
        where = join_uri(store.uri, key)
        raise DataError(f"not a summary of lm-eval: {error}", where=where, next_step="delete it") from None
