"""Completions on their way into samples.jsonl: planned as batches, written one object a batch, merged at the end.

    eval/<candidate>/<task>-<split>/batches/<key>-s0000-b00003.jsonl     while the evaluation runs
    eval/<candidate>/<task>-<split>/samples.jsonl                        all of them, graded

A killed evaluation loses at most the batch it was decoding. A batch's name, and every row of samples.jsonl, carries the
key of its generation, so completions of another checkpoint, prompt or sampling are never taken over, and those of the
same are never generated twice: another grader, or a corrected gold answer, grades them again. Batches and seeds follow
from the plan alone: which of them existed before makes no difference to the bytes of samples.jsonl.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

from relex_core import layout
from relex_core.errors import ObjectExists, ObjectNotFound
from relex_core.evaluate.generate import Completion, batch_seed
from relex_core.evaluate.grade import Grader
from relex_core.evaluate.grading.text import loose_match
from relex_core.evaluate.tasks import Question, Task
from relex_core.spec import SplitSpec
from relex_core.storage import Store, read_bytes

Row = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """Questions that are decoded together."""

    index: int
    sample: int
    """Which of the k completions of these questions."""
    seed: int
    questions: tuple[Question, ...]


def plan(task: Task, split: SplitSpec, part: Collection[int] | None = None) -> list[Batch]:
    """All batches of one evaluation: questions in the order of the file, once for each of the k samples.

    Args:
        part: indices of batches; only these, which are the same batches as in the whole plan.
    """
    size, questions = split.batch_size, task.questions
    return [
        Batch(index, sample, batch_seed(split.seed, index, sample), questions[start : start + size])
        for sample in range(split.samples)
        for start, index in zip(range(0, len(questions), size), count(), strict=False)
        if part is None or index in part
    ]


class BatchStore:
    """The finished batches of one evaluation: those of a killed run, and those that samples.jsonl was made of.

    Args:
        store: the run directory.
        folder: of the evaluation, as `layout.evaluation` gives it.
        key: digest of everything that the completions depend on.
    """

    def __init__(self, store: Store, folder: str, key: str) -> None:
        self._store, self._evaluation, self._folder = store, folder, f"{folder}/batches"
        self.key = key.rpartition(":")[2][:16]
        self.samples_sha256 = ""
        """Of samples.jsonl as it was last read."""
        self._sampled: dict[tuple[str, int], Completion] = {}
        self.look_again()

    def missing(self, batches: Sequence[Batch]) -> list[Batch]:
        """Those that are still to be generated."""
        finished = {info.name for info in self._store.list(self._folder)}
        return [batch for batch in batches if self._name(batch) not in finished and not self._from_samples(batch)]

    def write(self, batch: Batch, completions: Sequence[Completion]) -> None:
        """Keep a batch. Of several processes that generate the same one, the first one's counts."""
        lines = [json.dumps(vars(completion)) for completion in completions]
        with suppress(ObjectExists):
            self._store.create(self._name(batch), "\n".join(lines).encode())

    def read(self, batch: Batch) -> list[Completion]:
        if sampled := self._from_samples(batch):
            return sampled
        try:
            lines = read_bytes(self._store, self._name(batch)).decode().split("\n")
        except ObjectNotFound:  # another process measured the same, was faster, and has merged the batches
            self.look_again()
            if sampled := self._from_samples(batch):
                return sampled
            raise
        return [Completion(**json.loads(line)) for line in lines]

    def remove(self, batches: Sequence[Batch]) -> None:
        """Delete what samples.jsonl holds, and what has another key.

        Args:
            batches: all of the evaluation. Those that samples.jsonl does not hold stay: another process may be about to
                measure more of it.
        """
        if infos := list(self._store.list(self._folder)):
            self.look_again()
            needed = {self._name(batch) for batch in batches if not self._from_samples(batch)}
            for info in infos:
                if info.name not in needed:
                    self._store.delete(info.name)

    def look_again(self) -> None:
        """Read samples.jsonl, which another process may have written."""
        try:
            data = read_bytes(self._store, samples_key(self._evaluation))
        except ObjectNotFound:
            data = b""
        self.samples_sha256 = hashlib.sha256(data).hexdigest()
        rows = [row for row in rows_of(data) if row.get("generation") == self.key]
        fields = ("text", "tokens", "finish_reason")
        self._sampled = {(row["id"], row["sample"]): Completion(*(row[field] for field in fields)) for row in rows}

    def _from_samples(self, batch: Batch) -> list[Completion]:
        """The completions of a batch that samples.jsonl holds; none unless it holds all of them."""
        keys = [(question.id, batch.sample) for question in batch.questions]
        return [self._sampled[key] for key in keys] if all(key in self._sampled for key in keys) else []

    def _name(self, batch: Batch) -> str:
        return f"{self._folder}/{self.key}-s{batch.sample:04d}-b{batch.index:05d}.jsonl"


def graded_rows(
    batches: Sequence[Batch], finished: BatchStore, grader: Grader, advance: Callable[[], None] = lambda: None
) -> list[Row]:
    """The rows of samples.jsonl: question by question in the order of the file, the k samples of each in order."""
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
                "status": grader.grade(completion.text, question.answer),
                "loose": loose_match(completion.text, question.answer),
                "generation": finished.key,
            }
            rows.setdefault(question.id, []).append(row)
            advance()
    return [row for of_question in rows.values() for row in of_question]


def samples_key(folder: str) -> str:
    return f"{folder}/{layout.SAMPLES}"


def to_jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def rows_of(samples: bytes) -> list[Row]:
    """What `to_jsonl` made bytes of."""
    return [json.loads(line) for line in samples.decode().split("\n") if line]
