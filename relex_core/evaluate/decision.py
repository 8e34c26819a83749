"""Decision: the verdict with all its evidence, as decision.json holds it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from relex_core.evaluate.candidates import LAST_OBSERVED
from relex_core.evaluate.evidence import Comparison


class Standing(BaseModel):
    """One model's accuracy on one split."""

    model_config = ConfigDict(frozen=True)

    candidate: str
    n: int
    k: int
    mean: float
    standard_error: float
    interval: tuple[float, float]
    """At 95 %."""


class Cost(BaseModel):
    """What the decision saves."""

    model_config = ConfigDict(frozen=True)

    gpu_hours_per_step: float | None
    gpu_hours_saved: float | None
    """None where the spec gives no cost."""


class Decision(BaseModel):
    """decision.json. It holds no time stamp: the same evidence gives the same bytes."""

    model_config = ConfigDict(frozen=True)

    decision: Literal["promote", "keep_observed"]
    reason: str
    candidate: str
    """What to ship: the finalist, or "last_observed"."""
    method: str
    step: int | None
    """Target step of the candidate, or the step of the last observed checkpoint."""
    scale: float | None
    finalist: str
    """Best on the selection split."""
    evidence: tuple[Comparison, ...]
    """On the confirmation split: finalist against last observed (this one decides), finalist against base, last
    observed against base."""
    select: tuple[Standing, ...]
    confirm: tuple[Standing, ...]
    min_gain: float
    confidence: float
    """As in the spec. The intervals in `evidence` are wider where `looks` > 1."""
    looks: int
    """How many finalists were measured on these confirmation questions so far."""
    last_observed_step: int
    training_steps_saved: int
    """Target step minus last observed step, if promoted. It takes the candidate for what training would have reached
    at its target step; that it is as good as that is the method's claim, not a measurement."""
    cost: Cost
    window_digest: str

    def table(self) -> list[dict[str, str]]:
        """Rows for people: the finalist and the two references first, then the others by their selection mean.

        Accuracies are fractions; ± is one standard error; brackets are intervals. The last two columns compare with
        the last observed checkpoint on the confirmation split, so only what was measured there has them.
        """
        confirmed = {standing.candidate: standing for standing in self.confirm}
        gains = {evidence.candidate: evidence for evidence in self.evidence if evidence.reference == LAST_OBSERVED}
        rest = sorted((s for s in self.select if s.candidate not in confirmed), key=lambda s: (-s.mean, s.candidate))
        selected = {standing.candidate: standing for standing in self.select}
        return [
            {
                "candidate": standing.candidate,
                "select": f"{standing.mean:.3f} ± {standing.standard_error:.3f}",
                "confirm": _bracketed(confirmed[name].mean, confirmed[name].interval) if name in confirmed else "",
                "gain": _bracketed(gains[name].difference, gains[name].interval, "+") if name in gains else "",
                "p": f"{gains[name].p_value:.2g}" if name in gains else "",
            }
            for standing in [*(selected[name] for name in confirmed), *rest]
            for name in [standing.candidate]
        ]


def _bracketed(value: float, interval: tuple[float, float], sign: str = "") -> str:
    return f"{value:{sign}.3f} [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"
