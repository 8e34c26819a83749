"""The first screen: what was decided, and on what evidence, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from relex_core.evaluate.candidates import BASE, LAST_OBSERVED
from relex_core.evaluate.decision import Condition, Decision, Standing
from relex_core.report.artifacts import Artifacts
from relex_core.report.gain import against_base, condition_name, gain_plot
from relex_core.report.text import interval_words, percent, percent_interval, plural, points
from relex_core.report.view import Fact, Tone, Verdict


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
        lost = ", ".join(test.task + " against the base" * against_base(test) for test in _obstacles(decision))
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


def _obstacles(decision: Decision) -> list[Condition]:
    """The conditions that kept the finalist from being promoted; see `evaluate.verdict`."""
    confirm = [test for test in decision.tests if test.split == "confirm"]
    floor = min(decision.min_gain, 0.0) if decision.rule == "superior" else math.inf
    guards = [test for test in decision.tests if test.split == "guard" and not test.held]
    return [*_failed(confirm, floor), *_failed(decision.base_tests, 0.0), *guards]


def _failed(tests: Sequence[Condition], floor: float) -> list[Condition]:
    """Those that were not met; where one was, only losses below `floor` among them: one gain is enough."""
    gained = any(test.held for test in tests)
    return [test for test in tests if not test.held and not (gained and test.comparison.interval[1] >= floor)]


def _obstacle(test: Condition) -> str:
    interval = test.comparison.interval
    lies = "lies wholly below" if interval[1] < test.threshold else "does not lie wholly above"
    return (
        f"On {condition_name(test)} the interval {lies} the threshold of {points(test.threshold)} points: "
        f"{interval_words(interval)}."
    )


def _what_is_saved(run: Artifacts, decision: Decision) -> str:
    there = [r for r in run.later if r.split == "confirm" and r.candidate.endswith(f"step{decision.step or 0:05d}")]
    if there:
        ahead = 100 * (there[0].mean - _confirmed(decision, decision.finalist, there[0].task).mean)
        return (
            f"RL itself, trained on to step {decision.step}, reached {percent(there[0].mean)} on the same questions: "
            f"{abs(ahead):.1f} points {'more' if ahead >= 0 else 'less'} than the candidate."
        )
    test = _main_test(decision)
    shown = "better" if test.comparison.interval[0] > 0 else f"at most {-100 * test.threshold:.1f} points worse"
    return (
        f"“Saved” takes the candidate for what training would have reached at step {decision.step}. "
        f"That it is as good as that was not measured; that it is {shown} than what you have was."
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


def _main_test(decision: Decision) -> Condition:
    """The surest confirmation task, by the verdict's own measure."""
    confirm = [test for test in decision.tests if test.split == "confirm"]
    return min(confirm, key=lambda test: test.p_above)


def _confirmed(decision: Decision, name: str, task: str) -> Standing:
    return next(s for s in decision.confirm if (s.candidate, s.task) == (name, task))
