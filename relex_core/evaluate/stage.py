"""The stage's work on one evaluation: generate what is missing, grade, summarise."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from relex_core import layout
from relex_core.errors import CheckpointChanged, ObjectExists, ObjectNotFound
from relex_core.evaluate.candidates import Candidate
from relex_core.evaluate.generate import Sampling, conditions, open_generator
from relex_core.evaluate.grade import Grader, grader_key, open_grader
from relex_core.evaluate.looks import remember_look
from relex_core.evaluate.results import EvalResult, read_result, read_samples, summarise
from relex_core.evaluate.samples import Batch, BatchStore, graded_rows, plan, samples_key, to_jsonl
from relex_core.evaluate.tasks import Split, Task, load_splits, splits_of
from relex_core.events import record_event
from relex_core.manifest import WindowManifest, digest_of
from relex_core.progress import progress
from relex_core.spec import EvaluationSpec, SplitSpec
from relex_core.storage import Store, find, open_store, replace_seen

log = logging.getLogger("relex")

Part = Collection[int] | None
"""Indices of batches; None for all."""

STORE_ATTEMPTS = 10
"""Of storing a result that others store, too."""


@contextmanager
def open_stage(run: str, spec: EvaluationSpec, manifest: WindowManifest) -> Iterator[Stage]:
    """Read and check all tasks; graders live until the end of the block.

    Raises:
        DataError: a task is wrong.
    """
    with ExitStack() as graders:
        tasks = load_splits(spec, manifest.base.uri)
        for warning in dict.fromkeys(
            text for of_split in tasks.values() for task in of_split for text in task.warnings
        ):
            log.warning("%s", warning)
        yield Stage(open_store(run), spec, manifest, tasks, conditions(spec), graders)


@dataclass
class Stage:
    """What all evaluations of one call share."""

    store: Store
    spec: EvaluationSpec
    manifest: WindowManifest
    tasks: Mapping[Split, Sequence[Task]]
    conditions: dict[str, object]
    graders: ExitStack
    _open: dict[str, Grader] = field(default_factory=dict)
    _golds_are_good: bool = False

    def batches(self, index: int) -> int:
        """How many batches the questions of a selection task make."""
        return -(-len(self.tasks["select"][index].questions) // self.spec.select_splits[index].batch_size)

    def measure(
        self, candidates: Sequence[Candidate], split: Split, parts: Sequence[Part] | None = None
    ) -> list[EvalResult]:
        """Measure candidates on every task of a split.

        Args:
            parts: for each task, which of its batches; absent for all.
        """
        of_task = parts or [None] * len(self.tasks[split])
        evaluations = [
            Evaluation(self, candidate, split, task, sampling, part)
            for candidate in candidates
            for task, sampling, part in zip(self.tasks[split], splits_of(self.spec, split), of_task, strict=True)
        ]
        total = sum(len(batch.questions) for evaluation in evaluations for batch in evaluation.plan)
        with progress(f"evaluate {split}", total) as advance:
            return [evaluation.result(advance) for evaluation in evaluations]

    def was_measured(self, candidate: Candidate, split: Split) -> bool:
        """Whether the candidate has results on every task of a split, on some of its questions or on all."""
        for task, sampling in zip(self.tasks[split], splits_of(self.spec, split), strict=True):
            wanted = Evaluation(self, candidate, split, task, sampling, ())._key(())
            result = read_result(self.store, candidate.name, task.name, split)
            if result is None or not covers(result.key, wanted):
                return False
        return True

    def grader(self, name: str) -> Grader:
        if name not in self._open:
            self._open[name] = self.graders.enter_context(open_grader(name, self.spec.grading_seconds))
        return self._open[name]

    def refuse_bad_golds(self) -> None:
        """Check the gold answers of all splits, once, before the first thing is generated."""
        if not self._golds_are_good:
            for split, tasks in self.tasks.items():
                for task, sampling in zip(tasks, splits_of(self.spec, split), strict=True):
                    task.refuse_bad_golds(self.grader(sampling.task.grader))
            self._golds_are_good = True


@dataclass(frozen=True)
class Evaluation:
    """One candidate on one task."""

    stage: Stage
    candidate: Candidate
    split: Split
    task: Task
    sampling: SplitSpec
    part: Part

    @property
    def plan(self) -> list[Batch]:
        return plan(self.task, self.sampling, self.part)

    @property
    def folder(self) -> str:
        return layout.evaluation(self.candidate.name, self.task.name, self.split)

    def result(self, advance: Callable[..., None]) -> EvalResult:
        """The finished evaluation, whatever it takes."""
        stage, key = self.stage, self._key(self.part)
        result = self._stored_result()
        finished = BatchStore(stage.store, self.folder, digest_of(generation_key(key)))
        if result is not None and self._is_measured(result, finished):
            advance(sum(len(batch.questions) for batch in self.plan), self.candidate.name)
        else:
            started = time.monotonic()
            self._generate(finished, advance)
            result = self._grade(finished)
            record_event(
                stage.store.uri,
                "evaluated",
                candidate=self.candidate.name,
                task=self.task.name,
                split=self.split,
                seconds=round(time.monotonic() - started, 3),
            )
        finished.remove(
            plan(self.task, self.sampling)
        )  # also those that an earlier call, killed right after the summary, left behind
        return result if result.key == key else self._restricted(result, key)

    def _key(self, part: Part) -> dict[str, Any]:
        stage = self.stage
        key = evaluation_key(
            self.candidate.digest,
            stage.manifest.digest,
            self.split,
            self.task,
            self.sampling,
            stage.conditions,
            stage.spec.grading_seconds,
        )
        return key if part is None else {**key, "batches": sorted(part)}

    def _generate(self, finished: BatchStore, advance: Callable[..., None]) -> None:
        """Generate the batches that are missing; with none missing the model is not even loaded."""
        stage, split = self.stage, self.sampling
        missing = finished.missing(self.plan)
        there = sum(len(batch.questions) for batch in self.plan) - sum(len(batch.questions) for batch in missing)
        advance(there, self.candidate.name)
        stage.refuse_bad_golds()
        with ExitStack() as stack:
            if missing:
                self.candidate.refuse_if_changed()
                uri, base = self.candidate.uri, stage.manifest.base.uri
                generator = stack.enter_context(open_generator(stage.spec, uri, base))
            for batch in missing:
                sampling = Sampling(split.temperature, split.top_p, split.max_tokens, batch.seed)
                prompts = [question.prompt for question in batch.questions]
                finished.write(batch, generator.generate(prompts, sampling))
                advance(len(prompts), self.candidate.name)

    def _grade(self, finished: BatchStore) -> EvalResult:
        """Grade and store what is asked for.

        Where another process measures the same, none replaces what it has not seen: a result may have been decided on.
        """
        store, split = self.stage.store, self.split
        summary_key = f"{self.folder}/{layout.SUMMARY}"
        for attempts_left in reversed(range(STORE_ATTEMPTS)):
            seen = {key: find(store, key) for key in (samples_key(self.folder), summary_key)}
            latest = self._stored_result()
            finished.look_again()
            if latest is not None and self._is_measured(latest, finished):
                return latest
            if latest is not None and split == "confirm":
                remember_look(store, self.folder, latest)
            samples, result = self._graded(finished)
            stored = samples, result.model_dump_json(indent=1).encode()
            try:
                for (key, info), data in zip(seen.items(), stored, strict=True):
                    replace_seen(store, key, data, info)
                return result
            except (ObjectExists, ObjectNotFound, CheckpointChanged):  # another process was faster: look again
                if not attempts_left:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _graded(self, finished: BatchStore) -> tuple[bytes, EvalResult]:
        """samples.jsonl and its summary: of what is asked for, and of what else samples.jsonl holds of the same
        generation, which must not be lost."""
        part = self.part
        if part is not None:
            everything = plan(self.task, self.sampling)
            held = {batch.index for batch in everything} - {b.index for b in finished.missing(everything)}
            part = {*part, *held}
            part = None if len(part) == len({batch.index for batch in everything}) else part
        grader = self.stage.grader(self.sampling.task.grader)
        rows = graded_rows(plan(self.task, self.sampling, part), finished, grader)
        samples = to_jsonl(rows)
        return samples, summarise(self.candidate.name, self.split, self._key(part), rows, samples, self.task.warnings)

    def _is_measured(self, result: EvalResult, finished: BatchStore) -> bool:
        """Whether a stored result holds what is asked for. A writer that was killed may have left the samples of one
        evaluation beside the summary of another."""
        return covers(result.key, self._key(self.part)) and result.samples_sha256 == finished.samples_sha256

    def _stored_result(self) -> EvalResult | None:
        return read_result(self.stage.store, self.candidate.name, self.task.name, self.split)

    def _restricted(self, result: EvalResult, key: dict[str, Any]) -> EvalResult:
        """The result on this part alone, made of a stored one on more questions. It is not written."""
        asked = {question.id for batch in self.plan for question in batch.questions}
        rows = [row for row in read_samples(self.stage.store, result) if row["id"] in asked]
        return summarise(self.candidate.name, self.split, key, rows, to_jsonl(rows), self.task.warnings)


def evaluation_key(
    candidate: str,
    window: str,
    split: Split,
    task: Task,
    sampling: SplitSpec,
    conditions: dict[str, object],
    seconds: float = 10.0,
) -> dict[str, Any]:
    """Everything that samples and statuses depend on; `candidate` and `window` are digests."""
    return {
        "candidate": candidate,
        "window": window,
        "split": split,
        "task": {"name": task.name, "sha256": task.sha256, "prompts": task.prompts_digest},
        "grader": grader_key(sampling.task.grader, seconds),
        "sampling": sampling.sampling(),
        **conditions,
    }


def generation_key(key: Mapping[str, Any]) -> dict[str, Any]:
    """What of an evaluation's key completions depend on: not the gold answers, the grader, or how many there are."""
    rest = {name: value for name, value in key.items() if name not in ("grader", "batches", "task")}
    return {**rest, "prompts": key["task"]["prompts"]}


def covers(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a stored evaluation holds a wanted one: the same but for the questions, and all of those."""
    if {**stored, "batches": None} != {**wanted, "batches": None}:
        return False
    return "batches" not in stored or set(stored["batches"]) >= set(wanted.get("batches", [-1]))
