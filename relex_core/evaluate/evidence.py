"""Evidence: the stored evaluations of one run, checked to belong together before anything is concluded from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from relex_core import layout
from relex_core.errors import DataError, WindowNotReady
from relex_core.evaluate.candidates import Candidate, references, written_candidates
from relex_core.evaluate.results import EvalResult, finalist, outcomes, read_result, read_samples
from relex_core.evaluate.statistics import paired_difference
from relex_core.evaluate.tasks import Split
from relex_core.manifest import load_manifest
from relex_core.spec import EvaluationSpec, SplitSpec
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


@dataclass(frozen=True)
class Evidence:
    """Everything that a decision rests on."""

    store: Store
    base: Candidate
    last_observed: Candidate
    finalist: Candidate
    select: tuple[EvalResult, ...]
    """Base, last observed, candidates by name."""
    confirm: tuple[EvalResult, ...]
    """Finalist, last observed, base."""
    looks: int
    """Finalists, this one included, that were measured on these confirmation questions."""
    window_digest: str

    @classmethod
    def load(cls, run: str, spec: EvaluationSpec) -> Evidence:
        """Read and check the evaluations.

        Raises:
            WindowNotReady: one is missing.
            DataError: one belongs to another checkpoint, spec, task file or to other conditions than the rest.
        """
        store, manifest = open_store(run), load_manifest(run)
        base, last = references(manifest)
        written = written_candidates(run)
        if not written:
            raise WindowNotReady("no candidate is written yet", where=run, next_step=f"relex extrapolate {run}")
        select = _results(store, [base, last, *written], "select", spec.select)
        name = finalist(select[2:], {candidate.name: candidate.step for candidate in written}).candidate
        best = next(candidate for candidate in written if candidate.name == name)
        confirm = _results(store, [best, last, base], "confirm", spec.confirm)
        looks = _looks(store, confirm[0], {base.name, last.name})
        return cls(store, base, last, best, tuple(select), tuple(confirm), looks, manifest.digest)

    def compare(self, first: Candidate, second: Candidate, confidence: float) -> Comparison:
        """The paired difference first − second on the confirmation split."""
        by_name = {result.candidate: result for result in self.confirm}
        result = by_name[first.name]
        rows, others = read_samples(self.store, result), read_samples(self.store, by_name[second.name])
        difference = paired_difference(outcomes(rows), outcomes(others), confidence)
        return Comparison(
            candidate=first.name, reference=second.name, task=result.task, split=result.split, **asdict(difference)
        )


def _results(store: Store, candidates: Sequence[Candidate], split: Split, spec: SplitSpec) -> list[EvalResult]:
    found = {c.name: read_result(store, c.name, spec.task.name, split) for c in candidates}
    missing = [name for name, result in found.items() if result is None]
    if missing:
        raise WindowNotReady(
            f"not evaluated on {split} yet: {', '.join(missing)}",
            where=f"{store.uri}/{layout.EVALUATIONS}",
            expected="base, last_observed and candidates on select; finalist, last_observed and base on confirm",
            next_step=f"relex evaluate {store.uri}",
        )
    results = [result for result in found.values() if result is not None]
    for candidate, result in zip(candidates, results, strict=True):
        _check(store, candidate, result, spec, results[0])
    return results


def _check(store: Store, candidate: Candidate, result: EvalResult, spec: SplitSpec, first: EvalResult) -> None:
    wanted: dict[str, Any] = {
        **first.key,
        "candidate": candidate.digest,
        "grader": spec.task.grader,
        "sampling": spec.model_dump(mode="json", exclude={"task"}),
    }
    different = sorted(name for name in wanted.keys() | result.key.keys() if wanted.get(name) != result.key.get(name))
    if different:
        raise DataError(
            f"{candidate.name} was evaluated on {result.split} under another {', '.join(different)}",
            where=f"{store.uri}/{layout.evaluation(candidate.name, result.task, result.split)}",
            expected="the same task, sampling, backend, dtype and versions for all that is compared",
            next_step=f"relex evaluate {store.uri} repeats what is out of date",
        )


def _looks(store: Store, result: EvalResult, references: set[str]) -> int:
    """How many candidates have met the confirmation questions of `result`."""
    suffix = f"/{result.task}-{result.split}/{layout.SUMMARY}"
    names = [
        info.name.removeprefix(f"{layout.EVALUATIONS}/").removesuffix(suffix)
        for info in store.list(layout.EVALUATIONS)
        if info.name.endswith(suffix)
    ]
    others = [read_result(store, name, result.task, result.split) for name in names if name not in references]
    return sum(other is not None and other.key["task"] == result.key["task"] for other in others)
