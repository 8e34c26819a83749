"""EvalResult: what one candidate did on one split; and the finalist, which the selection split alone decides."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from relex_core import layout
from relex_core.errors import DataError, ObjectNotFound
from relex_core.evaluate.grade import UNKNOWN
from relex_core.evaluate.samples import Row, rows_of, samples_key
from relex_core.evaluate.statistics import accuracy
from relex_core.evaluate.tasks import Split
from relex_core.manifest import digest_of
from relex_core.storage import Store, join_uri, read_bytes
from relex_core.stored_json import read_stored

CONFIDENCE = 0.95
FEW_CORRECT, MANY_LOOSE = 0.1, 0.2
"""Mean below and `loose_rate` above which the grader is held to be the wrong one; random numbers reach 0.07 loosely."""


class EvalResult(BaseModel):
    """summary.json of one candidate on one split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidate: str
    task: str
    split: Split
    n: int
    """Questions of which something is known."""
    k: int
    """Completions a question."""
    mean: float
    """Share of correct completions."""
    standard_error: float
    """Clustered by question."""
    interval: tuple[float, float]
    """Of the mean, at `confidence`."""
    confidence: float
    statuses: dict[str, int]
    """How many completions got which status."""
    truncation_rate: float
    """Share of completions that were cut at max_tokens."""
    no_answer_rate: float
    """Share in which the grader found no answer, such as no \\boxed{}; they count as not correct."""
    timeout_rate: float
    """Share of which nothing is known, because grading took too long (or the gold answer cannot be read); they are
    left out of `mean`."""
    loose_rate: float
    """Share whose last number is the gold number: a diagnostic of answers in a wrong form, no accuracy."""
    mean_tokens: float
    warnings: tuple[str, ...] = ()
    """What makes these numbers less than repeatable, such as a data set without a pinned revision, or less than
    meaningful: a grader that does not read the form of the answers."""
    samples_sha256: str
    """Of samples.jsonl: the summary belongs to these samples and no others."""
    key: dict[str, Any]
    """Everything that the samples depend on; an evaluation with another key is done again."""
    key_digest: str

    @property
    def asked(self) -> int:
        """Questions, with those of which grading found out nothing: `n` leaves them out."""
        return sum(self.statuses.values()) // self.k


def summarise(
    candidate: str,
    split: Split,
    key: dict[str, Any],
    rows: Sequence[Row],
    samples: bytes,
    warnings: tuple[str, ...] = (),
) -> EvalResult:
    """Count the graded rows of one evaluation; `samples` are the bytes of its samples.jsonl.

    Raises:
        DataError: nearly all gradings timed out.
    """
    task, grader = key["task"]["name"], key["grader"]["name"]
    statuses = Counter(str(row["status"]) for row in rows)
    try:
        estimate = accuracy(outcomes(rows), CONFIDENCE)
    except ValueError as error:
        raise DataError(
            f"{candidate} cannot be summarised: {error}",
            where=f"{task}, {split}: {dict(statuses)}",
            next_step="raise evaluation.grading_seconds, or use another grader",
        ) from None
    loose_rate = sum(bool(row.get("loose")) for row in rows) / len(rows)
    if estimate.mean < FEW_CORRECT and loose_rate > MANY_LOOSE:
        warnings = (*warnings, _wrong_grader(task, grader))
    return EvalResult(
        candidate=candidate,
        task=task,
        split=split,
        n=estimate.n,
        k=estimate.k,
        mean=estimate.mean,
        standard_error=estimate.standard_error,
        interval=estimate.interval,
        confidence=CONFIDENCE,
        statuses=dict(sorted(statuses.items())),
        truncation_rate=sum(row["finish_reason"] == "length" for row in rows) / len(rows),
        no_answer_rate=statuses["no_answer"] / len(rows),
        timeout_rate=sum(statuses[status] for status in UNKNOWN) / len(rows),
        loose_rate=loose_rate,
        mean_tokens=sum(row["tokens"] for row in rows) / len(rows),
        warnings=warnings,
        samples_sha256=hashlib.sha256(samples).hexdigest(),
        key=key,
        key_digest=digest_of(key),
    )


def _wrong_grader(task: str, grader: str) -> str:
    """Without rates and model, so that a run of many candidates warns once."""
    remedy = "ask in the prompt for the form that it reads, or set another grader"
    if grader == "exact":
        remedy = "set grader: math, which reads \\boxed{}, or ask in the prompt for the bare answer"
    return (
        f"{task}: hardly any answer of a model counts as correct, though many end with the gold number; the grader "
        f"{grader} seems to be the wrong one: {remedy}"
    )


def outcomes(rows: Sequence[Row], unknown: float = math.nan) -> NDArray[np.float64]:
    """Graded rows as a matrix "n k": 1.0 where correct, 0.0 where not, `unknown` where grading gave no answer."""
    by_question: dict[str, list[float]] = {}
    for row in rows:
        outcome = unknown if row["status"] in UNKNOWN else float(row["status"] == "correct")
        by_question.setdefault(row["id"], []).append(outcome)
    return np.array(list(by_question.values()))


def read_result(store: Store, candidate: str, task: str, split: Split) -> EvalResult | None:
    """The summary of an evaluation; None while it is not complete.

    Raises:
        DataError: summary.json is not one.
    """
    key = f"{layout.evaluation(candidate, task, split)}/{layout.SUMMARY}"
    return read_stored(EvalResult, store, key, repair="delete it, then run relex evaluate")


def read_samples(store: Store, result: EvalResult) -> list[Row]:
    """The graded rows that a summary was made of.

    Raises:
        DataError: samples.jsonl is gone, or is not the one that was summarised.
    """
    key = samples_key(layout.evaluation(result.candidate, result.task, result.split))
    try:
        data = read_bytes(store, key)
    except ObjectNotFound:
        data = b""
    if hashlib.sha256(data).hexdigest() != result.samples_sha256:
        raise DataError(
            "the samples are not those that summary.json was made of",
            where=join_uri(store.uri, key),
            expected=f"sha256 {result.samples_sha256}",
            next_step=f"relex evaluate {store.uri}",
        )
    return rows_of(data)


def finalist(results: Iterable[EvalResult], steps: Mapping[str, int | None]) -> EvalResult:
    """The candidate with the best mean on the selection split; it alone goes on to the confirmation split.

    The best of many means is too high on average, the more so the more candidates there are (winner's curse): the
    maximum picks luck along with skill. So its selection score is evidence of nothing, and this function refuses
    results of the confirmation split, which would carry the same curse into the verdict.

    Args:
        results: of the candidates; not of the base or the last observed checkpoint. Of several tasks the mean counts.
        steps: target step by name. Of equal means the smallest step wins (none counts as smallest: an average
            extrapolates nothing), then the first name.

    Returns:
        A result of the finalist (of its first task).

    Raises:
        ValueError: there is no result, or one is not of the selection split.
    """
    results = list(results)
    best = ranking(results, steps)[0]
    return next(result for result in results if result.candidate == best)


def ranking(results: Sequence[EvalResult], steps: Mapping[str, int | None]) -> list[str]:
    """Names of candidates, best on the selection split first; order and errors as for `finalist`."""
    if any(result.split != "select" for result in results):
        raise ValueError("the confirmation split must not select")
    means: dict[str, list[float]] = {}
    for result in results:
        means.setdefault(result.candidate, []).append(result.mean)
    if not means:
        raise ValueError("there is no result to choose from")
    score = {name: sum(values) / len(values) for name, values in means.items()}
    return sorted(means, key=lambda name: (-score[name], _or_smallest(steps[name]), name))


def _or_smallest(step: int | None) -> int:
    return -1 if step is None else step
