"""Tasks: questions with verifiable answers, read from JSONL and checked before anything is generated."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from relex_core.errors import DataError, ObjectNotFound
from relex_core.spec import EvaluationSpec, TaskSpec
from relex_core.storage import open_store, read_bytes, split_uri

Split: TypeAlias = Literal["select", "confirm"]
NotBlank = Annotated[str, StringConstraints(pattern=r"\S")]


class Question(BaseModel):
    """One line of a task file. Other fields of the line are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)

    prompt: NotBlank
    """What the model reads, literally: no chat template, no special tokens."""
    answer: NotBlank
    """The gold answer."""
    id: str = ""
    """Names the question in samples.jsonl; the line number where the file gives none."""


@dataclass(frozen=True)
class Task:
    """The questions of one file."""

    name: str
    file: str
    questions: tuple[Question, ...]
    sha256: str
    """Of the file's bytes: evaluations of another file are never mixed in."""


def load_splits(spec: EvaluationSpec) -> dict[Split, Task]:
    """Read both splits.

    Raises:
        DataError: as for `load_task`, or a question lies in both: what selects must never confirm.
    """
    select, confirm = load_task(spec.select.task), load_task(spec.confirm.task)
    seen = {question.prompt.strip(): question.id for question in select.questions}
    shared = [question for question in confirm.questions if question.prompt.strip() in seen]
    if shared:
        first = shared[0]
        raise DataError(
            f"select and confirm share {len(shared)} questions, for example {first.prompt!r:.80} "
            f"(id {seen[first.prompt.strip()]} in select, {first.id} in confirm)",
            where=f"{select.file} and {confirm.file}",
            expected="no question in both: the winner of a selection looks too good on the questions that selected it",
            next_step="remove the shared questions from one of the files",
        )
    return {"select": select, "confirm": confirm}


def load_task(spec: TaskSpec) -> Task:
    """Read one task file: JSONL with `prompt`, `answer` and optionally `id`; blank lines are skipped.

    Raises:
        DataError: the file is missing or has fewer than two questions; a line is not JSON, lacks a field, has an
            empty gold answer, or repeats a prompt or an id. The first faulty line is named.
    """
    folder, name = split_uri(spec.file)
    try:
        data = read_bytes(open_store(folder), name)
    except ObjectNotFound:
        raise DataError(
            f"the file of task {spec.name} is not there", where=spec.file, next_step="correct evaluation.*.task.file"
        ) from None
    questions: dict[str, Question] = {}
    lines_by_prompt: dict[str, int] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        question = _question(line, number, spec.file)
        first = lines_by_prompt.setdefault(question.prompt.strip(), number)
        if first != number:
            raise _fault(spec.file, number, f"the prompt {question.prompt!r:.80} is already on line {first}")
        if question.id in questions:
            raise _fault(spec.file, number, f"the id {question.id!r} is taken by an earlier line")
        questions[question.id] = question
    if len(questions) < 2:  # one question has no standard error
        raise DataError(
            f"task {spec.name} has {len(questions)} questions",
            where=spec.file,
            expected="at least 2, and hundreds for error bars of a few points",
            next_step="add questions, one JSON object a line",
        )
    return Task(spec.name, spec.file, tuple(questions.values()), hashlib.sha256(data).hexdigest())


def _question(line: bytes, number: int, file: str) -> Question:
    try:
        question = Question.model_validate_json(line)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in fault["loc"])
        empty = fault["type"] == "string_pattern_mismatch"
        raise _fault(file, number, f"{field or 'the line'}: {'empty' if empty else fault['msg']}") from None
    return question if question.id else question.model_copy(update={"id": str(number)})


def _fault(file: str, number: int, what: str) -> DataError:
    return DataError(
        what,
        where=f"{file}, line {number}",
        expected='{"prompt": "12+34=", "answer": "46"}: not empty, text, and no prompt twice',
        next_step="correct the line",
    )
