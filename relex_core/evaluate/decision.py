"""Decision: the verdict with all its evidence, as decision.json holds it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from relex_core.evaluate.candidates import LAST_OBSERVED
from relex_core.evaluate.evidence import Comparison
from relex_core.evaluate.harness import Metric
from relex_core.evaluate.tasks import Split

Require = Literal["shown", "not_refuted"]


class Standing(BaseModel):
    """One model's accuracy on one task of one split."""

    model_config = ConfigDict(frozen=True)

    candidate: str
    task: str
    asked: int
    """Questions; fewer for candidates that the search left behind early."""
    n: int
    """Those of which something is known: without the grader's time-outs."""
    k: int
    mean: float
    standard_error: float
    interval: tuple[float, float]
    """At 95 %."""
    truncation_rate: float
    no_answer_rate: float
    timeout_rate: float
    mean_tokens: float


class HarnessStanding(BaseModel):
    """One model's result on one task of lm-eval's harness."""

    model_config = ConfigDict(frozen=True)

    candidate: str
    task: str
    n: int
    shots: int
    version: str
    """Of the task's definition."""
    harness: str
    """Version of lm-eval."""
    metrics: dict[str, Metric]


class Condition(BaseModel):
    """One condition of the verdict: the interval of finalist − last observed (or base) against a threshold."""

    model_config = ConfigDict(frozen=True)

    task: str
    split: Split
    threshold: float
    """The interval must lie above it (`shown`), or not wholly below it (`not_refuted`)."""
    require: Require
    comparison: Comparison
    p_above: float
    """Smallest 1 − confidence at which the interval would still lie above the threshold."""
    held: bool


class Cost(BaseModel):
    """What the decision saves, and what making it has cost."""

    model_config = ConfigDict(frozen=True)

    gpu_hours_per_step: float | None
    training_gpu_hours_saved: float | None
    """None where the spec gives no cost per step."""
    pipeline_seconds: dict[str, float]
    """Measured, by stage."""
    pipeline_gpu_hours: float
    gpu_hours_saved: float | None
    """Training saved minus pipeline; negative where nothing was promoted."""


class Decision(BaseModel):
    """decision.json. It holds no time stamp: the same evidence gives the same bytes."""

    model_config = ConfigDict(frozen=True)

    decision: Literal["promote", "keep_observed", "not_ready"]
    """`not_ready`: the evidence is there, but time-outs of the grader could turn the verdict."""
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
    """On the confirmation split, for each task: finalist against last observed (these decide), finalist against base,
    last observed against base."""
    tests: tuple[Condition, ...]
    """The conditions of the verdict: one for each confirmation task, one for each guard."""
    base_tests: tuple[Condition, ...]
    """Finalist against base, one for each confirmation task; empty where `decision.beat_base` is off."""
    select: tuple[Standing, ...]
    confirm: tuple[Standing, ...]
    guards: tuple[Standing, ...]
    harness: tuple[HarnessStanding, ...]
    """What `relex evaluate --lm-eval` found for finalist, last observed and base; decides only through
    `evaluation.harness_guards`, whose tests are among `tests`."""
    warnings: tuple[str, ...]
    """Of all evaluations: what makes their numbers less than repeatable."""
    rule: Literal["superior", "non_inferior"]
    min_gain: float
    margin: float
    confidence: float
    """As in the spec. The intervals in `evidence` are wider where `looks` > 1, or where there are several tasks."""
    looks: int
    """How many finalists were measured on these confirmation questions so far."""
    last_observed_step: int
    training_steps_saved: int
    """Target step minus last observed step, if promoted. It takes the candidate for what training would have reached
    at its target step; that it is as good as that is the method's claim, not a measurement."""
    cost: Cost
    window_digest: str
    rules_digest: str
    """Of the spec's sections evaluation, decision and cost."""
    questions_digest: str
    """Of the files of questions that were answered."""
    candidates: dict[str, str]
    """All that took part, by name: digest of their relex.json, and so of their weights."""

    def table(self) -> list[dict[str, str]]:
        """Rows for people: the finalist and the two references first, then the others by their selection mean.

        Accuracies are fractions; ± is one standard error; brackets are intervals. The last two columns compare with
        the last observed checkpoint on the confirmation split, so only what was measured there has them. Of several
        tasks the first is shown.
        """
        first = self.select[0].task, self.confirm[0].task
        selected = {standing.candidate: standing for standing in self.select if standing.task == first[0]}
        confirmed = {standing.candidate: standing for standing in self.confirm if standing.task == first[1]}
        gains = {e.candidate: e for e in self.evidence if e.reference == LAST_OBSERVED and e.task == first[1]}
        # Candidates that the search left behind early come last: their means are of fewer questions.
        rest = sorted(selected.keys() - confirmed.keys(), key=lambda c: (-selected[c].asked, -selected[c].mean, c))
        return [
            {
                "candidate": standing.candidate,
                "select": f"{standing.mean:.3f} ± {standing.standard_error:.3f}",
                "confirm": _bracketed(confirmed[name].mean, confirmed[name].interval) if name in confirmed else "",
                "gain": _bracketed(gains[name].difference, gains[name].interval, "+") if name in gains else "",
                "p": p_text(gains[name].p_value).removeprefix("= ") if name in gains else "",
            }
            for name in [*confirmed, *rest]
            for standing in [selected[name]]
        ]


def p_text(p: float) -> str:
    """A p-value for people: below double precision its digits mean nothing."""
    return "< 1e-15" if p < 1e-15 else f"= {p:.2g}"


def _bracketed(value: float, interval: tuple[float, float], sign: str = "") -> str:
    return f"{value:{sign}.3f} [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"
