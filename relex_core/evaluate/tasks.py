"""Tasks: questions with verifiable answers, checked before anything is generated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from relex_core.errors import DataError
from relex_core.evaluate.grade import Grader
from relex_core.evaluate.sources import Item, read_items
from relex_core.spec import EvaluationSpec, PromptSpec, SplitSpec, TaskSpec

Split: TypeAlias = Literal["select", "confirm", "guard"]


@dataclass(frozen=True)
class Question:
    """One question as it is asked and graded."""

    prompt: str
    """What the model reads, literally, special tokens included."""
    answer: str
    """The gold answer."""
    id: str
    """Names the question in samples.jsonl; the line number where the source gives none."""
    text: str = ""
    """The question without any template: what must not be in two splits."""


@dataclass(frozen=True)
class Task:
    """The questions of one task."""

    name: str
    source: str
    questions: tuple[Question, ...]
    sha256: str
    """Of the source: the file's bytes, or all items."""

    @cached_property
    def prompts_digest(self) -> str:
        """Of what the model reads: completions of other prompts are never mixed in, those of other golds may stay."""
        prompts = [[question.id, question.prompt] for question in self.questions]
        return "sha256:" + hashlib.sha256(json.dumps(prompts).encode()).hexdigest()

    def refuse_bad_golds(self, grader: Grader) -> None:
        """Ask the grader about every gold answer.

        Raises:
            DataError: it cannot grade against some; the first are named.
        """
        faults = [(q, fault) for q in self.questions if (fault := grader.gold_fault(q.answer)) is not None]
        if faults:
            shown = "; ".join(f"{q.id}: {q.answer!r:.60} ({fault})" for q, fault in faults[:5])
            raise DataError(
                f"{len(faults)} gold answers of task {self.name} cannot be graded against: {shown}",
                where=self.source,
                next_step="correct or remove these questions, or use another grader",
            )


def splits_of(spec: EvaluationSpec, split: Split) -> Sequence[SplitSpec]:
    """The tasks of one split, in the order of the spec."""
    return {"select": spec.select_splits, "confirm": spec.confirm_splits, "guard": spec.guards}[split]


def load_splits(spec: EvaluationSpec, base: str = "") -> dict[Split, list[Task]]:
    """Read all tasks of all splits.

    Args:
        base: folder of the base, whose tokenizer may have to render a chat template.

    Raises:
        DataError: as for `load_task`, or a question lies in two splits: what selects must never confirm.
    """
    tasks: dict[Split, list[Task]] = {}
    seen: dict[str, tuple[Split, Question]] = {}
    order: tuple[Split, ...] = ("select", "confirm", "guard")
    for split in order:
        tasks[split] = [load_task(one.task, base, taken=seen) for one in splits_of(spec, split)]
        for task in tasks[split]:
            _refuse_shared(split, task, seen)
        seen |= {_plain(q): (split, q) for task in tasks[split] for q in task.questions}
    return tasks


def _refuse_shared(split: Split, task: Task, seen: dict[str, tuple[Split, Question]]) -> None:
    shared = [question for question in task.questions if _plain(question) in seen]
    if shared:
        other, question = seen[_plain(shared[0])]
        raise DataError(
            f"{other} and {split} share {len(shared)} questions, for example {shared[0].text!r:.80} "
            f"(id {question.id} in {other}, {shared[0].id} in {split})",
            where=task.source,
            expected="no question in both: the winner of a selection looks too good on the questions that selected it",
            next_step="remove the shared questions from one of them",
        )


def _plain(question: Question) -> str:
    return question.text.strip()


def load_task(spec: TaskSpec, base: str = "", taken: Collection[str] = ()) -> Task:
    """Read one task and put its questions into their prompts.

    Raises:
        DataError: the source is missing or has fewer than two questions; an item lacks a field, has an empty gold
            answer, or repeats a prompt or an id. The first faulty one is named.
    """
    items, digest = read_items(spec, taken)
    source = spec.file or str(spec.hub or spec.generated)
    _refuse_repeated(items)
    if len(items) < 2:  # one question has no standard error
        raise DataError(
            f"task {spec.name} has {len(items)} questions",
            where=source,
            expected="at least 2, and hundreds for error bars of a few points",
            next_step="add questions, one JSON object a line",
        )
    render = _renderer(spec.prompt, base)
    questions = tuple(Question(render(item.prompt), item.answer, item.id, item.prompt) for item in items)
    return Task(spec.name, source, questions, digest)


def _refuse_repeated(items: Sequence[Item]) -> None:
    prompts: dict[str, Item] = {}
    ids: set[str] = set()
    for item in items:
        first = prompts.setdefault(item.prompt.strip(), item)
        if item.id in ids:
            raise _repeated(f"the id {item.id!r} is taken by an earlier question", item)
        if first is not item:
            raise _repeated(f"the prompt {item.prompt!r:.80} is already in {first.where}", item)
        ids.add(item.id)


def _repeated(what: str, item: Item) -> DataError:
    return DataError(what, where=item.where, expected="no prompt and no id twice", next_step="remove one of them")


def _renderer(prompt: PromptSpec | None, base: str) -> Callable[[str], str]:
    """From a question to what the model reads."""
    if prompt is None:
        return lambda question: question
    template = prompt.template or "{question}"

    def literal(question: str) -> str:
        return template.replace("{question}", question)

    if not prompt.chat:
        return literal
    from relex_core.evaluate.loading import chat_renderer

    render = chat_renderer(base, prompt.system)
    return lambda question: render(literal(question))
