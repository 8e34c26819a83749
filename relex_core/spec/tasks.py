"""What is asked, and how answers are graded."""

from __future__ import annotations

import difflib
import re
from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue, model_validator

from relex_core.spec.sections import Location, Section


class HubSpec(Section):
    """A data set on the Hugging Face hub, read by the `datasets` library where a hub can be reached."""

    id: str
    """For example `TianHongZXY/MATH`."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """The commit to read. Give one: without it the newest is taken, and two evaluations may see other questions."""
    split: str = "test"
    """In the syntax of `datasets`, for example `test` or `train[:500]`."""
    config: str | None = None


class GeneratedSpec(Section):
    """Questions that reasoning-gym makes: no download, any number. What an earlier split holds is left out."""

    dataset: str
    """Name in reasoning-gym, for example `chain_sum`."""
    size: Annotated[int, Field(ge=2, le=1_000_000)]
    """Different questions."""
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    config: dict[str, JsonValue] = Field(default_factory=dict)
    """Parameters of the data set."""


class PromptSpec(Section):
    """How a question becomes what the model reads. Absent: the question as it is."""

    template: str | None = None
    """Literal text around `{question}`, special tokens included."""
    chat: bool = False
    """Use the chat template of the base's tokenizer, with the (templated) question as the user's message."""
    system: str | None = None
    """System message of the chat."""

    @model_validator(mode="after")
    def _complete(self) -> PromptSpec:
        if self.template is not None and "{question}" not in self.template:
            raise ValueError("template lacks {question}")
        if self.template is None and not self.chat:
            raise ValueError("give a template, or chat: true, or leave prompt out")
        if self.system is not None and not self.chat:
            raise ValueError("system needs chat: true; with a template alone, write it into the template")
        return self


class FieldsSpec(Section):
    """Where a line or row has what is needed."""

    question: str = "prompt"
    answer: str = "answer"
    id: str = "id"
    """Optional in the data: else the line number."""


GRADERS = ("exact", "choice", "math", "paper")


def _known_grader(grader: str) -> str:
    """A pattern's fault would show a regular expression."""
    if grader in GRADERS or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", grader):
        return grader
    match = difflib.get_close_matches(grader.lower(), GRADERS, n=1)
    hint = f"; did you mean {match[0]!r}?" if match else ""
    raise ValueError(f"expected {', '.join(GRADERS)} or module:function{hint}")


Grader = Annotated[str, AfterValidator(_known_grader)]


class TaskSpec(Section):
    """Questions with verifiable answers, from one of: a JSONL file, the hub, reasoning-gym."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    file: Location | None = None
    """JSONL, one object a line with `prompt` and `answer` (and `id` if you like): a path or gs:// URI."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the file; another file is refused."""
    hub: HubSpec | None = None
    generated: GeneratedSpec | None = None
    fields: FieldsSpec = FieldsSpec()
    prompt: PromptSpec | None = None
    grader: Grader = "exact"
    """`exact`: the stripped completion equals the answer. `math`: the last boxed answer is equal in meaning.
    `choice`: a letter. `paper`: the laxer conventions of the RELEX authors' script. `package.module:function`: your
    own, (completion, answer) -> bool or a status."""

    @model_validator(mode="after")
    def _one_source(self) -> TaskSpec:
        sources = [name for name in ("file", "hub", "generated") if getattr(self, name) is not None]
        if len(sources) != 1:
            raise ValueError(f"a task needs one of file, hub, generated; it has {', '.join(sources) or 'none'}")
        if self.sha256 and not self.file:
            raise ValueError("sha256 belongs to a file")
        return self
