"""The files of questions that a spec names, told apart by what they hold. An outcome is one of these very questions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from relex_core.errors import DataError, ObjectNotFound
from relex_core.manifest import digest_of
from relex_core.spec import EvaluationSpec, RunSpec, TaskSpec
from relex_core.storage import open_store, read_bytes, split_uri


def read_questions(task: TaskSpec) -> tuple[bytes, str]:
    """The bytes of a task's file, and their SHA-256.

    Raises:
        DataError: the file is not there, or is not the one whose digest the spec gives.
    """
    file = task.file or ""
    folder, name = split_uri(file)
    try:
        data = read_bytes(open_store(folder), name)
    except ObjectNotFound:
        raise DataError(
            f"the file of task {task.name} is not there", where=file, next_step="correct evaluation.*.task.file"
        ) from None
    digest = hashlib.sha256(data).hexdigest()
    if task.sha256 not in (None, digest):
        raise DataError(
            f"the file of task {task.name} is another one",
            where=file,
            expected=f"sha256 {task.sha256}; it has {digest}",
            next_step="restore the file, or correct evaluation.*.task.sha256",
        )
    return data, digest


def questions_digest(spec: RunSpec) -> str:
    """Tells the questions as they are now from those that something was measured on. The files are small.

    Questions from the hub or from reasoning-gym lie in no file; the spec's own digest covers what it says of them.

    Raises:
        DataError: as for `read_questions`.
    """
    files = question_files(spec.evaluation) if spec.evaluation else {}
    return digest_of({name: read_questions(task)[1] for name, task in files.items()})


def answered_digest(evaluation: EvaluationSpec, answered: Mapping[str, str]) -> str:
    """`questions_digest` of the files that were answered, whatever they hold by now.

    Args:
        answered: SHA-256 of each task's source, by its name and split as in `question_files`.
    """
    return digest_of({name: answered[name] for name in question_files(evaluation)})


def question_files(evaluation: EvaluationSpec) -> dict[str, TaskSpec]:
    """The tasks whose questions lie in files, by "<task>-<split>": both splits usually have the same task name."""
    splits = {"select": evaluation.select_splits, "confirm": evaluation.confirm_splits, "guard": evaluation.guards}
    return {
        f"{one.task.name}-{split}": one.task for split, several in splits.items() for one in several if one.task.file
    }
