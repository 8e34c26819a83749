"""Looks: how many finalists have met the same confirmation questions. Each is one more chance for luck.

Counted are weights, not names: a candidate may be written anew under its name (another dtype or rank). Of a summary
that is replaced, looks.json beside it keeps who had met which questions.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from relex_core import layout
from relex_core.errors import ObjectNotFound
from relex_core.evaluate.results import EvalResult, read_result
from relex_core.storage import Store, read_bytes, write_bytes

Look = tuple[str, str]
"""Digests of a candidate and of the questions as it read them."""


def remember_look(store: Store, folder: str, replaced: EvalResult) -> None:
    """Keep the look of a summary; to be called before that is replaced."""
    looks = sorted({*_replaced(store, folder), _look(replaced)})
    write_bytes(store, f"{folder}/{layout.LOOKS}", json.dumps(looks).encode())


def count_looks(store: Store, result: EvalResult, references: Collection[str]) -> int:
    """How many candidates, the one of `result` included, have met its questions.

    Args:
        references: names that are no candidates.
    """
    suffix = f"/{result.task}-{result.split}/{layout.SUMMARY}"
    met: set[Look] = set()
    for info in store.list(layout.EVALUATIONS):
        name = info.name.removeprefix(f"{layout.EVALUATIONS}/").removesuffix(suffix)
        if not info.name.endswith(suffix) or name in references:
            continue
        other = read_result(store, name, result.task, result.split)
        met |= _replaced(store, layout.evaluation(name, result.task, result.split))
        met |= {_look(other)} if other is not None else set()
    questions = _look(result)[1]
    return sum(asked == questions for _, asked in met)


def _look(result: EvalResult) -> Look:
    return result.key["candidate"], result.key["task"]["prompts"]


def _replaced(store: Store, folder: str) -> set[Look]:
    try:
        stored = json.loads(read_bytes(store, f"{folder}/{layout.LOOKS}"))
    except ObjectNotFound:
        return set()
    return {(candidate, questions) for candidate, questions in stored}
