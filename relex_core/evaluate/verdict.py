"""The verdict: from paired comparisons to yes or no, with every condition that it rests on.

*superior*: on one confirmation task at least the whole interval lies above `min_gain`. Of m tasks the surest is asked
with confidence 1 − α/m, the next with 1 − α/(m − 1), ..., until one fails (Holm 1979), so that one lucky task in many
promotes nothing. And on no confirmation task does the interval lie wholly below min(`min_gain`, 0).

*non_inferior*: on every confirmation task the interval lies above −`margin`. All must hold, so no correction is due
(intersection-union test, Berger 1982).

The base: where RL made a model worse, a candidate can beat the last observed checkpoint and still be no better than
what RL started from. So the first rule is asked of finalist − base too, with `min_gain` 0: better than the base on one
task, after Holm, and worse on none. A further condition can only make promotions rarer, so no correction is due.

Guards: on every one the interval lies above −margin (`shown`), or not wholly below it (`not_refuted`).

α = (1 − confidence) / looks: Bonferroni over the finalists that have met these confirmation questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relex_core.evaluate.candidates import Candidate
from relex_core.evaluate.decision import Condition, Require, p_text
from relex_core.evaluate.evidence import LEFT_OUT, Comparison, Evidence, Unknown
from relex_core.evaluate.tasks import Split
from relex_core.spec import DecisionSpec, EvaluationSpec, HarnessGuardSpec


@dataclass(frozen=True)
class Verdict:
    """Whether the finalist is promoted, and why."""

    promoted: bool
    alpha: float
    """1 − confidence of an interval that is not corrected for several tasks."""
    confirm: tuple[Condition, ...]
    guards: tuple[Condition, ...]
    base: tuple[Condition, ...]
    """Finalist against base, one for each confirmation task; empty where the spec does not ask."""
    beats_last: bool
    beats_base: bool

    def reason(self) -> str:
        lines = [_sentence(test) for test in (*self.confirm, *self.guards)]
        if self.beats_last and not self.beats_base:
            lines += [_sentence(test) for test in self.base]
            lines.append("it passes against the last observed checkpoint, but is not shown to be better than the base")
        gained = any(test.held and test.comparison.interval[0] > 0 for test in self.confirm)
        lost = not self.beats_last and any(not test.held and test.comparison.interval[1] < 0 for test in self.confirm)
        if gained and len(self.confirm) > 1 and (lost or not all(test.held for test in self.guards)):
            lines.append("a gain on one task does not outweigh a loss on another or a guard")
        return "; ".join(lines)


def judge(evidence: Evidence, spec: EvaluationSpec, rule: DecisionSpec, unknown: Unknown = LEFT_OUT) -> Verdict:
    """Apply the rule.

    Args:
        unknown: what answers of unknown status count as, of the finalist and of the last observed checkpoint.
    """
    alpha = (1 - rule.confidence) / evidence.looks
    tasks = [split.task.name for split in spec.confirm_splits]
    if rule.rule == "superior":
        confirm = _holm(evidence, evidence.last_observed, tasks, rule.min_gain, alpha, unknown)
        good = _better(confirm, min(rule.min_gain, 0.0))
    else:
        last = evidence.last_observed
        confirm = tuple(_test(evidence, last, "confirm", task, -rule.margin, alpha, unknown) for task in tasks)
        good = all(test.held for test in confirm)
    base = _holm(evidence, evidence.base, tasks, 0.0, alpha, unknown) if rule.beat_base else ()
    beats_base = _better(base, 0.0) if rule.beat_base else True
    guards = tuple(
        _test(evidence, evidence.last_observed, "guard", guard.task.name, -guard.margin, alpha, unknown, guard.require)
        for guard in spec.guards
    )
    guards += tuple(_harness_test(evidence, guard, alpha) for guard in spec.harness_guards)
    promoted = good and beats_base and all(test.held for test in guards)
    return Verdict(promoted, alpha, confirm, guards, base, good, beats_base)


def _better(tests: Sequence[Condition], floor: float) -> bool:
    """Better on one task, and on none wholly below `floor`."""
    return any(test.held for test in tests) and all(test.comparison.interval[1] >= floor for test in tests)


def _holm(
    evidence: Evidence, reference: Candidate, tasks: list[str], threshold: float, alpha: float, unknown: Unknown
) -> tuple[Condition, ...]:
    """Step down from the surest task; the tests come in the order of the spec."""
    order = sorted(tasks, key=lambda task: evidence.p_above(reference, "confirm", task, threshold, unknown))
    tests: dict[str, Condition] = {}
    failed = False
    for left, task in zip(range(len(tasks), 0, -1), order, strict=True):
        test = _test(evidence, reference, "confirm", task, threshold, alpha / left, unknown)
        failed = failed or not test.held
        tests[task] = test.model_copy(update={"held": not failed})
    return tuple(tests[task] for task in tasks)


def _test(
    evidence: Evidence,
    reference: Candidate,
    split: Split,
    task: str,
    threshold: float,
    alpha: float,
    unknown: Unknown,
    require: Require = "shown",
) -> Condition:
    comparison = evidence.compare(evidence.finalist, reference, split, task, 1 - alpha, unknown)
    return _tested(comparison, evidence.p_above(reference, split, task, threshold, unknown), threshold, require)


def _harness_test(evidence: Evidence, guard: HarnessGuardSpec, alpha: float) -> Condition:
    return _tested(*evidence.compare_harness(guard, 1 - alpha), -guard.margin, guard.require)


def _tested(comparison: Comparison, p_above: float, threshold: float, require: Require) -> Condition:
    low, high = comparison.interval
    return Condition(
        task=comparison.task,
        split=comparison.split,
        threshold=threshold,
        require=require,
        comparison=comparison,
        p_above=p_above,
        held=low > threshold if require == "shown" else high >= threshold,
    )


def _sentence(test: Condition) -> str:
    gain = test.comparison
    low, high = gain.interval
    if test.require == "shown":
        lies, asked = "lies above" if low > test.threshold else "does not lie wholly above", ""
    else:
        lies, asked = ("does not lie wholly below", ", as this guard asks") if test.held else ("lies wholly below", "")
    where = "confirmation" if test.split == "confirm" else "guard"
    return (
        f"{gain.candidate} against {gain.reference} on {gain.n} {where} questions of {test.task}: "
        f"{gain.difference:+.3f}, "
        f"{100 * gain.confidence:.4g} % interval [{low:+.3f}, {high:+.3f}], which {lies} {test.threshold:+.3f}{asked}; "
        f"p {p_text(gain.p_value)}{_beside_the_interval(gain)}; "
        f"smallest detectable difference {gain.smallest_detectable:.3f}"
    )


def _beside_the_interval(gain: Comparison) -> str:
    """Which of the two counts, where the test of "no difference" and the interval say different things."""
    low, high = gain.interval
    significant = gain.p_value < 1 - gain.confidence
    if significant == (low > 0 or high < 0):
        return ""
    test = {"mcnemar": "McNemar's exact test", "sign": "the sign test", "t": "the t-test"}[gain.test]
    careful = "less careful" if significant else "more careful"
    return f" by {test}, which is {careful} here than the interval; the interval decides"
