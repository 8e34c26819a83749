"""Completions on their way into samples.jsonl: planned as batches, written one object a batch, merged at the end.

    eval/<candidate>/<task>-<split>/batches/<key>-s0000-b00003.jsonl     while the evaluation runs
    eval/<candidate>/<task>-<split>/samples.jsonl                        all of them, graded

A killed evaluation loses at most the batch it was decoding. A batch's name carries the key of its evaluation, so
batches of another checkpoint, task or sampling are never taken over. Batches and seeds follow from the plan alone:
which of them existed before makes no difference to the bytes of samples.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from relex_core import layout
from relex_core.evaluate.generate import Completion, batch_seed
from relex_core.evaluate.grade import GRADERS
from relex_core.evaluate.tasks import Question, Task
from relex_core.spec import SplitSpec
from relex_core.storage import Store, read_bytes, write_bytes

Row = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """Questions that are decoded together."""

    index: int
    sample: int
    """Which of the k completions of these questions."""
    seed: int
    questions: tuple[Question, ...]


def plan(task: Task, split: SplitSpec) -> list[Batch]:
    """All batches of one evaluation: questions in the order of the file, once for each of the k samples."""
    size, questions = split.batch_size, task.questions
    return [
        Batch(index, sample, batch_seed(split.seed, index, sample), questions[start : start + size])
        for sample in range(split.samples)
        for start, index in zip(range(0, len(questions), size), count(), strict=False)
    ]


class BatchStore:
    """The finished batches of one evaluation.

    Args:
        store: the run directory.
        folder: of the evaluation, as `layout.evaluation` gives it.
        key: digest of everything that the completions depend on.
    """

    def __init__(self, store: Store, folder: str, key: str) -> None:
        self._store, self._folder = store, f"{folder}/batches"
        self._key = key.rpartition(":")[2][:16]

    def missing(self, batches: Sequence[Batch]) -> list[Batch]:
        """Those that are still to be generated."""
        finished = {info.name for info in self._store.list(self._folder)}
        return [batch for batch in batches if self._name(batch) not in finished]

    def write(self, batch: Batch, completions: Sequence[Completion]) -> None:
        lines = [json.dumps(vars(completion)) for completion in completions]
        write_bytes(self._store, self._name(batch), "\n".join(lines).encode())

    def read(self, batch: Batch) -> list[Completion]:
        lines = read_bytes(self._store, self._name(batch)).decode().split("\n")
        return [Completion(**json.loads(line)) for line in lines]

    def remove(self) -> None:
        """Delete all batches, those of other keys too."""
        for info in list(self._store.list(self._folder)):
            self._store.delete(info.name)

    def _name(self, batch: Batch) -> str:
        return f"{self._folder}/{self._key}-s{batch.sample:04d}-b{batch.index:05d}.jsonl"


def graded_rows(batches: Sequence[Batch], finished: BatchStore, grader: str) -> list[Row]:
    """The rows of samples.jsonl: question by question in the order of the file, the k samples of each in order."""
    grade = GRADERS[grader]
    rows: dict[str, list[Row]] = {}
    for batch in batches:
        for question, completion in zip(batch.questions, finished.read(batch), strict=True):
            row = {
                "id": question.id,
                "prompt": question.prompt,
                "answer": question.answer,
                "sample": batch.sample,
                "seed": batch.seed,
                **vars(completion),
                "status": grade(completion.text, question.answer),
            }
            rows.setdefault(question.id, []).append(row)
    return [row for of_question in rows.values() for row in of_question]


def samples_key(folder: str) -> str:
    return f"{folder}/{layout.SAMPLES}"


def to_jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
