"""Where questions come from: a JSONL file, the hub, or reasoning-gym. All give the same thing, checked items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from relex_core.errors import DataError, SpecError, StorageError
from relex_core.extras import install
from relex_core.questions import read_questions
from relex_core.spec import FieldsSpec, GeneratedSpec, HubSpec, TaskSpec

NotBlank = Annotated[str, StringConstraints(pattern=r"\S")]

# reasoning-gym repeats itself; this many times the wanted number is looked at before we give up.
MOST_DRAWS = 20
MOST_KEYS = 10
"""Shown of a line that lacks one."""


class Item(BaseModel):
    """One question as its source has it."""

    model_config = ConfigDict(frozen=True, strict=True)

    prompt: NotBlank
    """The question, before any template."""
    answer: NotBlank
    id: str
    where: str
    """Named in errors."""


def read_items(spec: TaskSpec, taken: Collection[str]) -> tuple[list[Item], str]:
    """All questions of a task, and a digest of where they come from.

    Args:
        taken: questions of earlier splits; generated tasks leave them out.

    Raises:
        DataError: the source is not there, or an item is wrong; the first faulty one is named.
        SpecError: a library is missing.
    """
    if spec.generated is not None:
        return _generated(spec.generated, taken)
    if spec.hub is not None:
        return _from_hub(spec.hub, spec.fields)
    return _from_file(spec)


def _from_file(spec: TaskSpec) -> tuple[list[Item], str]:
    """JSONL; blank lines are skipped."""
    data, digest = read_questions(spec)
    items = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            where = f"{spec.file}, line {number}"
            items.append(_item(_json(line, spec.fields, where), spec.fields, number, where))
    return items, digest


def _from_hub(hub: HubSpec, fields: FieldsSpec) -> tuple[list[Item], str]:
    where = f"hub data set {hub.id}, {hub.split}"
    try:
        from datasets import load_dataset
    except ImportError:
        raise SpecError("tasks from the hub need the library datasets", next_step=install("tasks")) from None
    try:
        rows = load_dataset(hub.id, hub.config, split=hub.split, revision=hub.revision)
    except Exception as error:  # the library raises whatever its transports do
        raise StorageError(
            f"the data set cannot be loaded: {type(error).__name__}: {error}",
            where=where,
            expected="a reachable hub, or its cache (HF_HOME)",
            next_step="where there is no hub, save the rows as JSONL elsewhere and give task.file",
        ) from error
    items = [_item(row, fields, number, f"{where}, row {number}") for number, row in enumerate(rows, start=1)]
    return items, _digest(items)


def _generated(spec: GeneratedSpec, taken: Collection[str]) -> tuple[list[Item], str]:
    """Different questions in the order in which reasoning-gym makes them. Its partial-credit scores are not used."""
    try:
        import reasoning_gym
    except ImportError:
        raise SpecError("generated tasks need reasoning-gym", next_step=install("tasks")) from None
    where = f"reasoning-gym {spec.dataset}, seed {spec.seed}"
    try:
        drawn = reasoning_gym.create_dataset(
            spec.dataset, size=MOST_DRAWS * spec.size, seed=spec.seed, **dict(spec.config)
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise DataError(f"reasoning-gym refuses: {error}", where=where, next_step="correct task.generated") from None
    items: dict[str, Item] = {}
    for row in _rows(drawn):
        question, answer = str(row["question"]).strip(), row["answer"]
        if question in items or question in taken:
            continue
        fields = {"prompt": question, "answer": answer, "id": f"{spec.seed}-{len(items) + 1}"}
        items[question] = _item(fields, FieldsSpec(), len(items) + 1, where)
        if len(items) == spec.size:
            return list(items.values()), _digest(items.values())
    raise DataError(
        f"reasoning-gym made {len(items)} different questions in {MOST_DRAWS * spec.size} draws",
        where=where,
        expected=f"{spec.size} that are in no earlier split",
        next_step="ask for fewer, or for harder ones in task.generated.config",
    )


def _rows(drawn: Any) -> Iterator[dict[str, Any]]:
    return (drawn[index] for index in range(len(drawn)))


def _json(line: bytes, fields: FieldsSpec, where: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise _fault(where, fields, f"the line is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise _fault(where, fields, "the line should be an object")
    return data


def _item(data: dict[str, Any], fields: FieldsSpec, number: int, where: str) -> Item:
    answer = data.get(fields.answer)
    if isinstance(answer, (list, tuple)) and answer:  # OlympiadBench: a list, of which the first counts
        answer = answer[0]
    given = {
        "prompt": data.get(fields.question),
        "answer": answer,
        "id": data.get(fields.id) or str(number),
        "where": where,
    }
    names = {"prompt": fields.question, "answer": fields.answer, "id": fields.id}
    for field, value in given.items():
        if value is None and names[field] in data:
            raise _fault(where, fields, f"{names[field]}: null")
        if value is None:
            raise _lacking(where, fields, names[field], data)
    try:
        return Item.model_validate(given)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        empty = fault["type"] == "string_pattern_mismatch"
        raise _fault(where, fields, f"{names[str(fault['loc'][0])]}: {'empty' if empty else fault['msg']}") from None


def _fault(where: str, fields: FieldsSpec, what: str, next_step: str = "correct the line") -> DataError:
    example = json.dumps({fields.question: "12+34=", fields.answer: "46"}, ensure_ascii=False)
    return DataError(
        what, where=where, expected=f"{example}: not empty, text, and no prompt twice", next_step=next_step
    )


def _lacking(where: str, fields: FieldsSpec, name: str, data: Mapping[str, Any]) -> DataError:
    """Mostly the file is right, and its keys have other names."""
    found = ", ".join(f"{key!r:.40}" for key in islice(data, MOST_KEYS)) or "none"
    more = ", ..." if len(data) > MOST_KEYS else ""
    return _fault(
        where,
        fields,
        f"{name}: Field required; the keys here: {found}{more}",
        "say which keys to read with task.fields: {question: KEY, answer: KEY}, or correct the line",
    )


def _digest(items: Collection[Item]) -> str:
    text = json.dumps([item.model_dump(exclude={"where"}) for item in items])
    return hashlib.sha256(text.encode()).hexdigest()
