"""What became of a submitted run, asked of the orchestrator."""

from __future__ import annotations

from dataclasses import dataclass

from relex_core.errors import DataError

ENDED = frozenset({"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED", "CANCELLED"})


@dataclass(frozen=True)
class RunState:
    """Of a run of the pipeline."""

    run: str
    """Its id, as `submit` gave it."""
    state: str
    """In the API's words, without its prefix: RUNNING, SUCCEEDED, FAILED, ..."""
    message: str = ""
    """What the API says about a failure."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it by itself."""
        return self.state in ENDED


def run_is_gone(run: str, host: str) -> DataError:
    """The error for a run that the API does not know any more."""
    return DataError(f"there is no run {run}", where=host, next_step="was it deleted? Submit again")
