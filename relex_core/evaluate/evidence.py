"""Evidence: the stored evaluations of one run, checked to belong together before anything is concluded from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from relex_core import layout
from relex_core.errors import DataError, WindowNotReady
from relex_core.evaluate.candidates import Candidate, references, written_candidates
from relex_core.evaluate.harness import HarnessResult, paired_scores, read_harness_results
from relex_core.evaluate.looks import count_looks
from relex_core.evaluate.results import EvalResult, finalist, outcomes, read_result, read_samples
from relex_core.evaluate.search import rounds
from relex_core.evaluate.statistics import p_above, paired_difference
from relex_core.evaluate.tasks import Split, splits_of
from relex_core.manifest import load_manifest
from relex_core.spec import EvaluationSpec, HarnessGuardSpec, SplitSpec
from relex_core.storage import Store, open_store


class Comparison(BaseModel):
    """Two models on the same questions: candidate − reference. Fields as in `statistics.PairedDifference`."""

    model_config = ConfigDict(frozen=True)

    candidate: str
    reference: str
    task: str
    split: Split
    n: int
    k: int
    difference: float
    standard_error: float
    interval: tuple[float, float]
    confidence: float
    p_value: float
    test: str
    better: int
    worse: int
    smallest_detectable: float


Unknown = tuple[float, float]
"""What answers of unknown status count as: of the first model, and of the second. NaN: they are left out."""
LEFT_OUT: Unknown = (math.nan, math.nan)


@dataclass(frozen=True)
class Evidence:
    """Everything that a decision rests on."""

    store: Store
    base: Candidate
    last_observed: Candidate
    written: tuple[Candidate, ...]
    """All that take part, by name."""
    finalist: Candidate
    select: tuple[EvalResult, ...]
    """For each task: base, last observed, candidates by name."""
    confirm: tuple[EvalResult, ...]
    """For each task: finalist, last observed, base."""
    guards: tuple[EvalResult, ...]
    """For each task: finalist, last observed."""
    harness: Mapping[str, Mapping[str, HarnessResult]]
    """What lm-eval found, by candidate (finalist, last observed, base) and task; not all need be there."""
    looks: int
    """Finalists, this one included, that were measured on these confirmation questions."""
    window_digest: str

    @classmethod
    def load(cls, run: str, spec: EvaluationSpec) -> Evidence:
        """Read and check the evaluations.

        Raises:
            WindowNotReady: one is missing, or the search is not finished. Of candidates without weights, which lost an
                earlier decision, none is missing: they stay out if they were not measured like the base is now.
            DataError: one belongs to another checkpoint, spec, task file or to other conditions than the rest.
        """
        store, manifest = open_store(run), load_manifest(run)
        base, last = references(manifest)
        written = [
            candidate
            for candidate in written_candidates(run, manifest.digest)
            if candidate.weights or _measured_alike(store, candidate, base, spec)
        ]
        if not written:
            raise WindowNotReady("no candidate is written yet", where=run, next_step=f"relex extrapolate {run}")
        select = _results(store, [base, last, *written], "select", spec)
        best = _finalist(select, written, spec, store)
        confirm = _results(store, [best, last, base], "confirm", spec)
        guards = _results(store, [best, last], "guard", spec)
        looks = max(
            count_looks(store, result, {base.name, last.name}) for result in confirm if result.candidate == best.name
        )
        harness = {c.name: {r.task: r for r in _harness(store, c, manifest.digest)} for c in (best, last, base)}
        _refuse_missing(store, harness, [best.name, last.name], [guard.task for guard in spec.harness_guards])
        return cls(
            store=store,
            base=base,
            last_observed=last,
            written=tuple(written),
            finalist=best,
            select=tuple(select),
            confirm=tuple(confirm),
            guards=tuple(guards),
            harness=harness,
            looks=looks,
            window_digest=manifest.digest,
        )

    @property
    def results(self) -> tuple[EvalResult, ...]:
        """All of our own evaluations."""
        return (*self.select, *self.confirm, *self.guards)

    def compare(
        self,
        first: Candidate,
        second: Candidate,
        split: Split,
        task: str,
        confidence: float,
        unknown: Unknown = LEFT_OUT,
    ) -> Comparison:
        """The paired difference first − second on one task.

        Raises:
            DataError: of fewer than two questions anything is known of both.
        """
        a, b = self._pair(first, second, split, task, unknown)
        return Comparison(
            candidate=first.name,
            reference=second.name,
            task=task,
            split=split,
            **asdict(paired_difference(a, b, confidence)),
        )

    def p_above(
        self, reference: Candidate, split: Split, task: str, threshold: float, unknown: Unknown = LEFT_OUT
    ) -> float:
        """As `statistics.p_above`, of finalist − reference; errors as for `compare`."""
        return p_above(*self._pair(self.finalist, reference, split, task, unknown), threshold)

    def compare_harness(self, guard: HarnessGuardSpec, confidence: float) -> tuple[Comparison, float]:
        """Finalist − last observed on a task of lm-eval's harness, and `statistics.p_above` at −margin."""
        names = self.finalist.name, self.last_observed.name
        first, second = (self.harness[name][guard.task] for name in names)
        a, b = paired_scores(self.store, first, second, guard.metric)
        comparison = Comparison(
            candidate=names[0],
            reference=names[1],
            task=f"{guard.task} (lm-eval, {first.metric(guard.metric)})",
            split="guard",
            **asdict(paired_difference(a, b, confidence)),
        )
        return comparison, p_above(a, b, -guard.margin)

    def _pair(
        self, first: Candidate, second: Candidate, split: Split, task: str, unknown: Unknown
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The outcomes of two models on one task."""
        stored = self.guards if split == "guard" else self.confirm
        results = [next(r for r in stored if (r.candidate, r.task) == (c.name, task)) for c in (first, second)]
        a, b = (outcomes(read_samples(self.store, r), value) for r, value in zip(results, unknown, strict=True))
        known = np.isfinite(a).any(axis=1) & np.isfinite(b).any(axis=1)
        if known.sum() < 2:
            rates = ", ".join(f"{r.candidate} {r.timeout_rate:.2%}" for r in results)
            raise DataError(
                f"{first.name} and {second.name} cannot be compared: {known.sum()} questions were graded for both",
                where=f"{task}, {split}, {self.store.uri}; not graded: {rates}",
                expected="at least two questions",
                next_step="raise evaluation.grading_seconds, or use another grader, and evaluate again",
            )
        return a, b


def _harness(store: Store, candidate: Candidate, window: str) -> list[HarnessResult]:
    """The results for the weights as they are now; older ones are left out."""
    found = read_harness_results(store, candidate.name)
    return [r for r in found if (r.key["candidate"], r.key["window"]) == (candidate.digest, window)]


def _refuse_missing(
    store: Store, harness: Mapping[str, Mapping[str, HarnessResult]], names: Sequence[str], tasks: Sequence[str]
) -> None:
    for task in tasks:
        missing = [name for name in names if task not in harness[name]]
        if missing:
            raise WindowNotReady(
                f"lm-eval's task {task} has not been run on {', '.join(missing)} yet",
                where=f"{store.uri}/{layout.EVALUATIONS}",
                expected="evaluation.harness_guards measured on the finalist and on last_observed",
                next_step=f"relex evaluate {store.uri} --lm-eval {task} --candidate {names[0]}",
            )


def _results(store: Store, candidates: Sequence[Candidate], split: Split, spec: EvaluationSpec) -> list[EvalResult]:
    return [
        result
        for sampling in splits_of(spec, split)
        for result in _of_task(store, candidates, split, sampling, spec.grading_seconds)
    ]


def _of_task(
    store: Store, candidates: Sequence[Candidate], split: Split, spec: SplitSpec, seconds: float
) -> list[EvalResult]:
    found = {c.name: read_result(store, c.name, spec.task.name, split) for c in candidates}
    missing = [name for name, result in found.items() if result is None]
    if missing:
        raise WindowNotReady(
            f"not evaluated on {split} yet: {', '.join(missing)}",
            where=f"{store.uri}/{layout.EVALUATIONS}",
            expected="base, last_observed and candidates on select; finalist, last_observed and base on confirm; "
            "finalist and last_observed on guards",
            next_step=f"relex evaluate {store.uri}",
        )
    results = [result for result in found.values() if result is not None]
    for candidate, result in zip(candidates, results, strict=True):
        _check(store, candidate, result, spec, seconds, results[0])
    return results


def _measured_alike(store: Store, candidate: Candidate, base: Candidate, spec: EvaluationSpec) -> bool:
    """Whether a candidate was measured on select under the conditions that the base was."""
    for split in spec.select_splits:
        first, result = (read_result(store, one.name, split.task.name, "select") for one in (base, candidate))
        if first is not None and (
            result is None or _differences(candidate, result, split, spec.grading_seconds, first)
        ):
            return False
    return True


def _differences(
    candidate: Candidate, result: EvalResult, spec: SplitSpec, seconds: float, first: EvalResult
) -> list[str]:
    """In what `result` does not belong to this candidate, to the spec, or to the conditions of the first result."""
    wanted: dict[str, Any] = {
        **first.key,
        "candidate": candidate.digest,
        "grader": {**first.key["grader"], "name": spec.task.grader},
        "sampling": spec.sampling(),
    }
    if "seconds" in first.key["grader"]:
        wanted["grader"]["seconds"] = seconds
    names = (wanted.keys() | result.key.keys()) - {"batches"}  # the search asks some candidates fewer questions
    return sorted(name for name in names if wanted.get(name) != result.key.get(name))


def _check(
    store: Store, candidate: Candidate, result: EvalResult, spec: SplitSpec, seconds: float, first: EvalResult
) -> None:
    if different := _differences(candidate, result, spec, seconds, first):
        raise DataError(
            f"{candidate.name} was evaluated on {result.split} under another {', '.join(different)}",
            where=f"{store.uri}/{layout.evaluation(candidate.name, result.task, result.split)}",
            expected="the same task, grader, sampling, backend, dtype and versions for all that is compared",
            next_step=f"relex evaluate {store.uri} repeats what is out of date",
        )


def _finalist(
    select: Sequence[EvalResult], written: Sequence[Candidate], spec: EvaluationSpec, store: Store
) -> Candidate:
    """The best of those that were asked all selection questions."""
    partial = {result.candidate for result in select if "batches" in result.key}
    steps = {candidate.name: candidate.step for candidate in written}
    whole = [result for result in select if result.candidate in steps.keys() - partial]
    batches = min(-(-result.asked // split.batch_size) for result, split in _largest(select, spec))
    expected = rounds(len(written), batches, spec.search)[-1].candidates
    finished = len({result.candidate for result in whole})
    if finished < expected:
        raise WindowNotReady(
            f"the search is not finished: {finished} candidates have answered all selection questions",
            where=store.uri,
            expected=f"{expected}",
            next_step=f"relex evaluate {store.uri}",
        )
    name = finalist(whole, steps).candidate
    return next(candidate for candidate in written if candidate.name == name)


def _largest(select: Sequence[EvalResult], spec: EvaluationSpec) -> Iterator[tuple[EvalResult, SplitSpec]]:
    """For each selection task, a result on all of its questions (the base's)."""
    for split in spec.select_splits:
        yield next(result for result in select if result.task == split.task.name), split
