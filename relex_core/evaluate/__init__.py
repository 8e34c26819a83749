"""evaluate: measure every candidate, the base and the last observed checkpoint on questions with known answers.

    results = evaluate("run/")                                     # all on select, the finalist on confirm
    results = evaluate("run/", candidates=["relex-step00500-scale1.00"])      # this one, on select only

    tasks -> batches -> completions (generate) -> statuses (grade) -> samples.jsonl -> mean and interval -> summary.json

All candidates answer the same questions, in the same batches, with the same seeds, dtype and backend; one model is in
memory at a time. Killed at any moment and run again, it generates only the batches that are not there yet, and ends
with the same bytes. The best of many candidates on `select` looks better than it is (winner's curse), so exactly that
one meets the last observed checkpoint and the base again on `confirm`, whose questions chose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relex_core import layout
from relex_core.collect import load_spec_of
from relex_core.errors import SpecError, WindowNotReady
from relex_core.evaluate.candidates import Candidate, choose, observed, references, written_candidates
from relex_core.evaluate.generate import Sampling, conditions, open_generator
from relex_core.evaluate.results import EvalResult, finalist, read_result, summarise
from relex_core.evaluate.samples import BatchStore, graded_rows, plan, samples_key, to_jsonl
from relex_core.evaluate.tasks import Split, Task, load_splits
from relex_core.manifest import WindowManifest, digest_of, load_manifest
from relex_core.progress import progress
from relex_core.spec import EvaluationSpec, RunSpec, SplitSpec
from relex_core.storage import Store, absolute_uri, open_store, write_bytes

__all__ = ["EvalResult", "evaluate", "measure_checkpoints"]


def evaluate(run: str, *, candidates: Sequence[str] = ()) -> list[EvalResult]:
    """Measure candidates; what was measured before under the same key is kept.

    Args:
        run: the run directory (path or URI), with spec.json, window.json and candidates/.
        candidates: names (also "base" and "last_observed"): measure only these, only on the selection split. Empty:
            all of them on the selection split, then the finalist, the last observed checkpoint and the base on the
            confirmation split.

    Returns:
        Selection results in the order base, last observed, candidates by name; then confirmation results.

    Raises:
        SpecError: the spec has no evaluation section, or there is no candidate of a given name.
        WindowNotReady: nothing is collected yet, or no candidate is written yet.
        DataError: a task file, a candidate or an observed checkpoint is wrong.
    """
    run = absolute_uri(run, Path.cwd())
    manifest = load_manifest(run)
    spec = evaluation_of(load_spec_of(run), run)
    stage = _Stage(open_store(run), spec, manifest, load_splits(spec), conditions(spec))
    written = written_candidates(run)
    known = [*references(manifest), *written]
    if candidates:
        return stage.measure(choose(known, candidates), "select")
    if not written:
        raise WindowNotReady("no candidate is written yet", where=run, next_step=f"relex extrapolate {run}")
    selection = stage.measure(known, "select")
    best = finalist(selection[2:], {candidate.name: candidate.step for candidate in written})
    base, last = known[:2]
    return selection + stage.measure([*choose(written, [best.candidate]), last, base], "confirm")


def measure_checkpoints(run: str, folders: Mapping[str, str]) -> list[EvalResult]:
    """Measure checkpoints that are no candidates, such as RL's own later ones, on the confirmation split.

    They take no part in the decision.

    Args:
        run: the run directory (path or URI).
        folders: by name, the folder with config.json and weights; names of candidates cannot be taken.

    Raises:
        SpecError: the spec has no evaluation section, or a name is a candidate's.
        DataError: a task file or a checkpoint is wrong.
    """
    run = absolute_uri(run, Path.cwd())
    manifest = load_manifest(run)
    spec = evaluation_of(load_spec_of(run), run)
    taken = {candidate.name for candidate in (*references(manifest), *written_candidates(run))} & folders.keys()
    if taken:
        raise SpecError(f"{', '.join(sorted(taken))}: these are names of candidates", where=run)
    stage = _Stage(open_store(run), spec, manifest, load_splits(spec), conditions(spec))
    return stage.measure([observed(name, folder) for name, folder in folders.items()], "confirm")


def evaluation_of(spec: RunSpec, run: str) -> EvaluationSpec:
    """The evaluation section.

    Raises:
        SpecError: there is none.
    """
    if spec.evaluation is None:
        raise SpecError(
            "the spec has no evaluation section, so nothing can be measured or decided",
            where=f"{run}/{layout.SPEC}",
            expected="evaluation: {select: {task: ...}, confirm: {task: ...}}",
            next_step="add the section to the spec, then run relex collect and relex evaluate; finished work is kept",
        )
    return spec.evaluation


@dataclass(frozen=True)
class _Stage:
    """What all evaluations of one call share."""

    store: Store
    spec: EvaluationSpec
    manifest: WindowManifest
    tasks: dict[Split, Task]
    conditions: dict[str, object]

    def measure(self, candidates: Sequence[Candidate], split: Split) -> list[EvalResult]:
        sampling: SplitSpec = getattr(self.spec, split)
        total = len(candidates) * len(self.tasks[split].questions) * sampling.samples
        with progress(f"evaluate {split}", total) as advance:
            return [self._measure_one(candidate, split, sampling, advance) for candidate in candidates]

    def _measure_one(
        self, candidate: Candidate, split: Split, sampling: SplitSpec, advance: Callable[..., None]
    ) -> EvalResult:
        task = self.tasks[split]
        key = evaluation_key(candidate.digest, self.manifest.digest, split, task, sampling, self.conditions)
        folder = layout.evaluation(candidate.name, task.name, split)
        batches = BatchStore(self.store, folder, digest_of(key))
        result = read_result(self.store, candidate.name, task.name, split)
        if result is None or result.key != key:
            self.store.delete(f"{folder}/{layout.SUMMARY}")  # before its samples go
            self._generate(candidate, task, sampling, batches, advance)
            rows = graded_rows(plan(task, sampling), batches, sampling.task.grader)
            samples = to_jsonl(rows)
            write_bytes(self.store, samples_key(folder), samples)
            result = summarise(candidate.name, split, key, rows, samples)
            write_bytes(self.store, f"{folder}/{layout.SUMMARY}", result.model_dump_json(indent=1).encode())
        else:
            advance(result.n * result.k, candidate.name)
        batches.remove()  # also those that an earlier call, killed right after the summary, left behind
        return result

    def _generate(
        self, candidate: Candidate, task: Task, split: SplitSpec, finished: BatchStore, advance: Callable[..., None]
    ) -> None:
        """Generate the batches that are missing; with none missing the model is not even loaded."""
        missing = finished.missing(plan(task, split))
        there = len(task.questions) * split.samples - sum(len(batch.questions) for batch in missing)
        advance(there, candidate.name)
        with ExitStack() as stack:
            if missing:
                candidate.refuse_if_changed()
                generator = stack.enter_context(open_generator(self.spec, candidate.uri, self.manifest.base.uri))
            for batch in missing:
                sampling = Sampling(split.temperature, split.top_p, split.max_tokens, batch.seed)
                prompts = [question.prompt for question in batch.questions]
                finished.write(batch, generator.generate(prompts, sampling))
                advance(len(prompts), candidate.name)


def evaluation_key(
    candidate: str, window: str, split: Split, task: Task, sampling: SplitSpec, conditions: dict[str, object]
) -> dict[str, Any]:
    """Everything that samples and statuses depend on; `candidate` and `window` are digests."""
    return {
        "candidate": candidate,
        "window": window,
        "split": split,
        "task": {"name": task.name, "sha256": task.sha256},
        "grader": sampling.task.grader,
        "sampling": sampling.model_dump(mode="json", exclude={"task"}),
        **conditions,
    }
