"""Is the window of a run complete? Decided by the code that collect decides with. Knows no Airflow.

    python -m relex_airflow.judgement < spec.json        prints one Judgement as JSON; always exits with 0

The trigger runs it as a process of its own: it reads the storage, may pause between two listings, and can have
credentials that other triggers of the same triggerer must not have. A process can also be ended; a thread cannot.
"""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import BaseModel, ConfigDict

from relex_core import layout
from relex_core.collect import known_window, refuse_other_run
from relex_core.errors import ObjectNotFound, RelexError, StorageError, WindowNotReady
from relex_core.gate import refuse_undecidable
from relex_core.publish import finished_outcome
from relex_core.spec import RunSpec
from relex_core.storage import join_uri

Verdict = Literal["ready", "done", "waiting", "unreachable", "refused"]

Until = Literal["complete", "published"]
"""What is waited for: the window, or the outcome."""


class Judgement(BaseModel):
    """What one look at a run saw. A few hundred bytes, whatever the window's size."""

    model_config = ConfigDict(frozen=True)

    verdict: Verdict
    """`done`: the outcome of this very spec and its questions is published. `waiting`, and `unreachable` (the storage
    failed), may pass; `refused` does not."""
    message: str = ""
    """Why, in relex's own words; empty when the window is complete."""
    digest: str = ""
    """Of the window, once it is complete."""
    manifest: str = ""
    """URI of window.json, where collect leaves the window, or has left it already."""

    def ends(self, until: Until) -> bool:
        """Whether waiting is over: what was waited for is there, or will never be."""
        return self.verdict == "refused" or self.meets(until)

    def meets(self, until: Until) -> bool:
        """Whether what was waited for is there."""
        return self.verdict == "done" or (self.verdict == "ready" and until == "complete")


def judge(spec: RunSpec) -> Judgement:
    """Look once; writes nothing.

    A window that is collected already is complete: its checkpoints may have been deleted since.
    """
    manifest = join_uri(spec.run_root, layout.WINDOW)
    try:
        refuse_other_run(spec)
        if (outcome := finished_outcome(spec)) is not None:
            return Judgement(verdict="done", digest=outcome.window_digest, manifest=manifest)
        try:
            window = known_window(spec)
        except ObjectNotFound:  # a trainer deletes old steps while we read them; what never existed is refused below
            window = known_window(spec)
        refuse_undecidable(spec, window)
    except RelexError as error:
        return Judgement(verdict=verdict_of(error), message=f"{type(error).__name__}: {error}")
    return Judgement(verdict="ready", digest=window.digest, manifest=manifest)


def verdict_of(error: RelexError) -> Verdict:
    """Whether time can cure an error: not lacking permissions, a bucket that does not exist, or wrong data."""
    if isinstance(error, WindowNotReady):
        return "waiting"
    permanent = isinstance(error, (ObjectNotFound, PermissionError)) or not isinstance(error, StorageError)
    return "refused" if permanent else "unreachable"


def main() -> None:
    """Judge the resolved spec on standard input."""
    print(judge(RunSpec.model_validate_json(sys.stdin.read())).model_dump_json())


if __name__ == "__main__":
    main()
