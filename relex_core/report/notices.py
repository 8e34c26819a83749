"""What weakens the numbers, and must be read before they are believed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from relex_core.evaluate.decision import Decision, Standing
from relex_core.report.artifacts import Artifacts
from relex_core.report.text import percent
from relex_core.report.view import Notice

FEW_QUESTIONS = 100
COARSE = 0.05
"""A smallest detectable difference above this hides gains that matter."""
MANY_TRUNCATED = 0.05
MANY_UNANSWERED = 0.10
MUCH_LOST = 0.05
"""Relative Frobenius norm."""


def notices(run: Artifacts) -> Iterator[Notice]:
    """What weakens the numbers, most important first."""
    if run.stale:
        shown = ", ".join(run.stale[:5]) + (f" and {len(run.stale) - 5} more" if len(run.stale) > 5 else "")
        yield Notice(
            "Some files are out of date", f"They belong to another state of the run and are left out: {shown}."
        )
    if warnings := dict.fromkeys(text for result in run.results for text in result.warnings):
        yield Notice("The evaluation warns", f"{'. '.join(warnings)}.")
    if run.decision is not None:
        yield from _weak_evidence(run.decision)
    if run.fit is not None and run.fit.summary.moved == 0:
        yield Notice("No weight moved", "All tensors are frozen in the window: every candidate equals the base.")
    cut = [candidate for candidate in run.candidates if (candidate.truncation_error or 0.0) > MUCH_LOST]
    if cut:
        listed = ", ".join(f"{candidate.name} {percent(candidate.truncation_error)}" for candidate in cut[:4])
        text = f"Of their displacement they lose: {listed}. What is measured is what was written."
        yield Notice("Adapters were cut", f"{text} Raise candidates.adapter_rank, or use write: merged.")
    if len(run.window.steps) < 8:
        yield Notice("Few checkpoints", f"{len(run.window.steps)} observed: a line and its R² mean little below 8.")


def _weak_evidence(decision: Decision) -> Iterator[Notice]:
    confirm = [test for test in decision.tests if test.split == "confirm"]
    fewest = min(confirm, key=lambda test: test.comparison.n).comparison
    if fewest.n < FEW_QUESTIONS:
        text = f"{fewest.task} confirms on {fewest.n} only: a few lucky answers can move this result. Use hundreds."
        yield Notice("Few questions", text)
    coarse = max(confirm, key=lambda test: test.comparison.smallest_detectable).comparison
    if coarse.smallest_detectable > COARSE:
        size = 100 * coarse.smallest_detectable
        text = f"On {coarse.task} only a difference of {size:.1f} points or more would have been found reliably. "
        yield Notice("Small gains are invisible", text + "“Not shown” does not mean “not there”.")
    if decision.looks > 1:
        text = f"{decision.looks} finalists have met these confirmation questions; the confidence is raised for it."
        yield Notice("Questions used more than once", text)
    yield from _rates((*decision.confirm, *decision.guards))


def _rates(standings: Sequence[Standing]) -> Iterator[Notice]:
    for rate, limit, title, consequence in (
        ("truncation_rate", MANY_TRUNCATED, "Answers were cut off", "Raise max_tokens: a cut answer rarely counts."),
        (
            "no_answer_rate",
            MANY_UNANSWERED,
            "Many gave no answer",
            "They count as wrong; perhaps the format is at fault.",
        ),
        ("timeout_rate", 0.0, "Grading timed out", "Those are left out of the accuracies, and could turn the verdict."),
    ):
        high = [s for s in standings if getattr(s, rate) > limit]
        if high:
            listed = ", ".join(f"{s.candidate} on {s.task} {percent(getattr(s, rate))}" for s in high[:4])
            yield Notice(title, f"{listed}. {consequence}")
