"""The first screen: what was decided, on what evidence, in plain words; and what makes the evidence weak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from relex_core.evaluate.candidates import BASE, LAST_OBSERVED
from relex_core.evaluate.decision import Decision, Standing, Test
from relex_core.report.artifacts import Artifacts
from relex_core.report.text import (
    interval_words,
    p_value,
    percent,
    percent_interval,
    plural,
    points,
    points_interval,
)
from relex_core.report.view import Fact, Notice, Plot, Table, Tone, Verdict

FEW_QUESTIONS = 100
COARSE = 0.05
"""A smallest detectable difference above this hides gains that matter."""
MANY_TRUNCATED = 0.05
MANY_UNANSWERED = 0.10


def verdict(run: Artifacts) -> Verdict:
    """What to do now, and why."""
    if run.decision is None:
        return _undecided(run)
    decision = run.decision
    tone: Tone = {"promote": "good", "keep_observed": "neutral", "not_ready": "caution"}[decision.decision]  # type: ignore[assignment]
    label = {"promote": "Promote", "keep_observed": "Keep what you have", "not_ready": "No verdict yet"}
    return Verdict(
        tone=tone,
        label=label[decision.decision],
        headline=_headline(decision),
        summary=tuple(_summary(run, decision)),
        facts=tuple(_facts(decision)),
        plots=(gain_plot(decision),),
    )


def _undecided(run: Artifacts) -> Verdict:
    last = run.window.last_observed.step
    if run.spec.evaluation is None:
        why = "The spec has no evaluation section, so no answer was measured and nothing can be decided."
        then = "Add an evaluation section to the spec, then: relex collect, relex evaluate, relex decide."
    elif run.results:
        why = f"{plural(len(run.results), 'evaluation')} are finished, but there is no decision that rests on them."
        then = "relex evaluate finishes what is missing; relex decide then decides."
    else:
        why = "Nothing is evaluated yet, so whether any candidate helps is not known."
        then = "Next: relex extrapolate, relex evaluate and relex decide; or relex run, which does all."
    written = len(run.candidates) - 2
    facts = (
        Fact("Last observed", f"step {last}", "the checkpoint that exists already"),
        Fact("Observed checkpoints", str(len(run.window.steps)), f"up to T_cut = {run.window.t_cut}"),
        Fact("Candidates written", str(written)),
    )
    headline = f"Nothing is decided yet: step {last} is what you have"
    return Verdict("caution", "Not decided", headline, (why, then), facts, ())


def _headline(decision: Decision) -> str:
    last = decision.last_observed_step
    if decision.decision == "not_ready":
        return "No verdict yet: answers that could not be graded in time might turn it"
    if decision.decision == "keep_observed":
        gained = [test.task for test in decision.tests if test.split == "confirm" and test.held]
        if not gained:
            return f"Keep step {last}: no extrapolated checkpoint was shown to be better"
        lost = ", ".join(test.task for test in _obstacles(decision))
        return f"Keep step {last}: the best candidate passes on {', '.join(gained)}, but not on {lost}"
    test = _main_test(decision)
    mine, theirs = (_confirmed(decision, name, test.task) for name in (decision.finalist, LAST_OBSERVED))
    saving = ""
    if decision.training_steps_saved and decision.step:
        saving = f"; that saves {decision.training_steps_saved} of {decision.step} training steps"
    return f"Promote {decision.candidate}: {percent(mine.mean)} correct against {percent(theirs.mean)}{saving}"


def _summary(run: Artifacts, decision: Decision) -> Iterator[str]:
    test = _main_test(decision)
    gain = test.comparison
    tasks = sum(other.split == "confirm" for other in decision.tests)
    surest = f", the surest of {tasks} tasks" if tasks > 1 else ""
    yield (
        f"On {plural(gain.n, 'confirmation question')} ({gain.task}{surest}), which chose nothing, {gain.candidate} is "
        f"{interval_words(gain.interval)} than step {decision.last_observed_step}, the last observed checkpoint "
        f"(measured: {points(gain.difference)} points; {100 * gain.confidence:.4g} % interval)."
    )
    if decision.decision == "not_ready":
        yield f"Why there is no verdict: {decision.reason}."
    elif decision.decision == "keep_observed":
        yield " ".join((*map(_obstacle, _obstacles(decision)), "Keeping what you have is a normal outcome."))
    elif decision.training_steps_saved:
        yield _what_is_saved(run, decision)


def _obstacles(decision: Decision) -> list[Test]:
    """The conditions that kept the finalist from being promoted; see `evaluate.verdict`."""
    confirm = [test for test in decision.tests if test.split == "confirm"]
    failed = [test for test in confirm if not test.held]
    if decision.rule == "superior" and len(failed) < len(confirm):  # one gain is enough, unless another task lost
        failed = [test for test in failed if test.comparison.interval[1] < min(decision.min_gain, 0.0)]
    return failed + [test for test in decision.tests if test.split == "guard" and not test.held]


def _obstacle(test: Test) -> str:
    return (
        f"On {test.task} ({_split(test)}) the whole interval had to lie above {points(test.threshold)} points; it says "
        f"{interval_words(test.comparison.interval)}."
    )


def _what_is_saved(run: Artifacts, decision: Decision) -> str:
    there = [r for r in run.later if r.split == "confirm" and r.candidate.endswith(f"step{decision.step or 0:05d}")]
    if there:
        ahead = 100 * (there[0].mean - _confirmed(decision, decision.finalist, there[0].task).mean)
        return (
            f"RL itself, trained on to step {decision.step}, reached {percent(there[0].mean)} on the same questions: "
            f"{abs(ahead):.1f} points {'more' if ahead >= 0 else 'less'} than the candidate."
        )
    return (
        f"“Saved” takes the candidate for what training would have reached at step {decision.step}. "
        "That it is as good as that was not measured; that it is better than what you have was."
    )


def _facts(decision: Decision) -> Iterator[Fact]:
    test = _main_test(decision)
    for label, name in (("Finalist", decision.finalist), ("Last observed", LAST_OBSERVED), ("Base model", BASE)):
        standing = _confirmed(decision, name, test.task)
        yield Fact(label, percent(standing.mean), f"95\u00a0% interval {percent_interval(standing.interval)}")
    saved = decision.training_steps_saved
    yield Fact("Training steps saved", str(saved), f"of {decision.step}" if saved else "nothing is promoted")
    coarse = 100 * test.comparison.smallest_detectable
    yield Fact("Questions", f"{test.comparison.n:,}", f"would find a difference of {coarse:.1f} points (power 80 %)")


def _main_test(decision: Decision) -> Test:
    """The surest confirmation task, by the verdict's own measure."""
    confirm = [test for test in decision.tests if test.split == "confirm"]
    return min(confirm, key=lambda test: test.p_above)


def _confirmed(decision: Decision, name: str, task: str) -> Standing:
    return next(s for s in decision.confirm if (s.candidate, s.task) == (name, task))


def _split(test: Test) -> str:
    return "guard" if test.split == "guard" else "confirmation"


def gain_plot(decision: Decision) -> Plot:
    """Finalist − last observed on every confirmation and guard task, with the threshold that the interval must pass."""
    adjusted = adjusted_p(decision)
    rows, cells = [], []
    for test in decision.tests:
        gain = test.comparison
        label, met = f"{test.task} ({_split(test)})", "condition met" if test.held else "not met"
        low, high = gain.interval
        rows.append(
            {
                "label": label,
                "difference": gain.difference,
                "low": low,
                "high": high,
                "threshold": test.threshold,
                "met": met,
                "n": gain.n,
            }
        )
        cells.append(
            (
                label,
                f"{gain.n:,} × {gain.k}",
                points(gain.difference),
                points_interval(gain.interval),
                f"{100 * gain.confidence:.4g} %",
                points(test.threshold),
                met,
                p_value(gain.p_value),
                p_value(adjusted[test.split, test.task]),
                f"{100 * gain.smallest_detectable:.1f}",
                f"{gain.better:,} / {gain.worse:,}",
            )
        )
    headings = ("task", "questions × answers", "difference (points)", "interval", "confidence", "must lie above")
    more = ("result", "p, two-sided", "p, adjusted", "smallest detectable (points)", "better / worse questions")
    note = (
        "p, two-sided: exact or t test against no difference. p, adjusted: that the interval would still lie above the "
        f"threshold, after {_correction(decision)}."
    )
    return Plot(
        id="gain",
        kind="gain",
        title=f"Does {decision.finalist} beat the last observed checkpoint?",
        caption="Paired difference on the same questions. The bar is the interval; to count, all of it must lie to the "
        "right of the diamond.",
        rows=tuple(rows),
        table=Table((*headings, *more), tuple(cells), note=note),
    )


def _correction(decision: Decision) -> str:
    several = decision.rule == "superior" and sum(test.split == "confirm" for test in decision.tests) > 1
    holm = "Holm's correction for several confirmation tasks" if several else "no correction, as none is due"
    looks = f" and Bonferroni's for {decision.looks} finalists that met these questions" if decision.looks > 1 else ""
    return holm + looks


def adjusted_p(decision: Decision) -> dict[tuple[str, str], float]:
    """p of every condition after the corrections that the verdict applies, by (split, task): Holm over the confirmation
    tasks of rule superior, times the number of finalists."""
    confirm = sorted((test for test in decision.tests if test.split == "confirm"), key=lambda test: test.p_above)
    adjusted: dict[tuple[str, str], float] = {}
    running = 0.0
    for rank, test in enumerate(confirm):
        factor = len(confirm) - rank if decision.rule == "superior" else 1
        own = min(1.0, test.p_above * factor * decision.looks)
        running = max(running, own) if decision.rule == "superior" else own
        adjusted[test.split, test.task] = running
    for test in decision.tests:
        if test.split == "guard":
            adjusted[test.split, test.task] = min(1.0, test.p_above * decision.looks)
    return adjusted


def notices(run: Artifacts) -> Iterator[Notice]:
    """What weakens the numbers, most important first."""
    if run.stale:
        shown = ", ".join(run.stale[:5]) + (f" and {len(run.stale) - 5} more" if len(run.stale) > 5 else "")
        yield Notice(
            "Some files are out of date", f"They belong to another state of the run and are left out: {shown}."
        )
    if run.decision is not None:
        yield from _weak_evidence(run.decision)
    if run.fit is not None and run.fit.summary.moved == 0:
        yield Notice("No weight moved", "All tensors are frozen in the window: every candidate equals the base.")
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
