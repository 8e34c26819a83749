"""The scripted backend, for tests: answers come from script.json in the candidate's folder, no model is involved.

{"12+34=": "46", "1+1=": ["2", "3"]}        of several answers the batch's seed picks one
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from relex_core.errors import DataError, ObjectNotFound
from relex_core.evaluate.generate import Completion, Sampling
from relex_core.storage import join_uri, open_store, read_bytes

SCRIPT = "script.json"


class ScriptedGenerator:
    """Plays one script; a token is a character, and completions are cut at max_tokens."""

    def __init__(self, weights: str) -> None:
        self._where = join_uri(weights, SCRIPT)
        try:
            self._script: dict[str, str | list[str]] = json.loads(read_bytes(open_store(weights), SCRIPT))
        except (ObjectNotFound, ValueError) as error:
            raise DataError(f"no script: {error}", where=self._where, expected="a JSON object of answers") from None

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        return [self._completion(prompt, sampling) for prompt in prompts]

    def _completion(self, prompt: str, sampling: Sampling) -> Completion:
        if prompt not in self._script:
            raise DataError(f"the script has no answer to {prompt!r:.80}", where=self._where)
        answers = self._script[prompt]
        text = answers if isinstance(answers, str) else answers[sampling.seed % len(answers)]
        cut = text[: sampling.max_tokens]
        return Completion(cut, len(cut), "stop" if cut == text else "length")
