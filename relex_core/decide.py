"""decide: is a candidate shown to be better than the checkpoint that exists already?

    summaries on select  -> finalist
    samples on confirm   -> finalist − last observed, per question -> interval -> promote | keep_observed

The verdict rests on the confirmation split alone, on which only the selection's finalist was measured. The finalist's
selection score does not count: the best of many scores is too high on average (winner's curse), which is why the
confirmation split exists. Keeping what was observed is a normal, successful outcome.
"""

from __future__ import annotations

from pathlib import Path

from relex_core import layout
from relex_core.errors import DataError
from relex_core.evaluate import evaluation_of
from relex_core.evaluate.candidates import WEIGHTS
from relex_core.evaluate.cost import cost_of, pipeline_seconds
from relex_core.evaluate.decision import Decision, HarnessStanding, Standing
from relex_core.evaluate.evidence import Comparison, Evidence
from relex_core.evaluate.results import EvalResult
from relex_core.evaluate.verdict import judge
from relex_core.manifest import digest_of
from relex_core.questions import answered_digest
from relex_core.spec import EvaluationSpec, RunSpec, load_spec_of
from relex_core.storage import absolute_uri, join_uri, open_store, write_bytes
from relex_core.stored_json import load_stored

__all__ = ["Decision", "decide", "delete_losers", "load_decision"]


def decide(run: str) -> Decision:
    """Decide from the stored evaluations, and write RUN/decision.json.

    `promote` only if the whole interval of the finalist's confirmed gain over the last observed checkpoint lies above
    `decision.min_gain` (rule superior) or above −`decision.margin` (rule non_inferior), that of its gain over the base
    above 0 (unless `decision.beat_base` is off), and every guard holds;
    `keep_observed` otherwise; `not_ready` if time-outs of the grader could turn the verdict. It generates nothing:
    other rules and margins can be tried by changing the spec (relex collect takes them over) and deciding again.

    If the confirmation questions have met other finalists before (candidates were added and selected anew), the
    confidence is raised to 1 − (1 − confidence) / looks (Bonferroni), so that trying again does not help luck.

    Args:
        run: the run directory (path or URI).

    Raises:
        SpecError: the spec has no evaluation section.
        WindowNotReady: an evaluation is missing. Not a DataError: `relex evaluate` may still be running, and deciding
            again after it helps.
        DataError: evaluations do not belong together, or not to the candidates and spec as they are now; or of hardly
            any question the answers of both models were graded.
    """
    run = absolute_uri(run, Path.cwd())
    spec = load_spec_of(run)
    evaluation = evaluation_of(spec, run)
    evidence = Evidence.load(run, evaluation)
    decision = _decision(evidence, evaluation, spec)
    write_bytes(open_store(run), layout.DECISION, (decision.model_dump_json(indent=1) + "\n").encode())
    return decision


def load_decision(run: str) -> Decision:
    """Read RUN/decision.json.

    Raises:
        WindowNotReady: nothing was decided yet.
        DataError: the file was changed by hand, or an incompatible version of relex wrote it.
    """
    return load_stored(Decision, run, layout.DECISION, absent="nothing is decided yet", make=f"relex decide {run}")


def delete_losers(run: str, decision: Decision) -> list[str]:
    """Delete the weights of all candidates that took part but the promoted one, if the spec says `keep: winner`.

    relex.json, config and tokenizer stay: they say what was tried, and keep finished stages finished.

    While the verdict is `not_ready` nothing is deleted.

    Returns:
        Names of the candidates that lost their weights in this call.

    Raises:
        DataError: the promoted candidate's own weights are not there; nothing is deleted.
    """
    run = absolute_uri(run, Path.cwd())
    if load_spec_of(run).candidates.keep == "all" or decision.decision == "not_ready":
        return []
    store = open_store(run)
    weights = [info.name for info in store.list(layout.CANDIDATES) if info.name.endswith(WEIGHTS)]
    winner = f"{layout.candidate(decision.candidate)}/"
    if decision.decision == "promote" and not any(key.startswith(winner) for key in weights):
        raise DataError(
            f"the promoted candidate {decision.candidate} has no weights, so the others are kept",
            where=join_uri(run, winner),
            next_step=f"relex extrapolate {run}",
        )
    took_part = tuple(f"{layout.candidate(name)}/" for name in decision.candidates)
    losing = [key for key in weights if key.startswith(took_part) and not key.startswith(winner)]
    for key in losing:
        store.delete(key)
    return sorted({key.split("/")[1] for key in losing})


def _decision(evidence: Evidence, evaluation: EvaluationSpec, spec: RunSpec) -> Decision:
    rule = spec.decision
    verdict = judge(evidence, evaluation, rule)
    # Nothing is known of a time-out: the verdict must be the same if all were against the finalist, and if all for it.
    extremes = {judge(evidence, evaluation, rule, unknown).promoted for unknown in ((0.0, 1.0), (1.0, 0.0))}
    certain = extremes == {verdict.promoted}
    finalist, last, base = evidence.finalist, evidence.last_observed, evidence.base
    promoted = verdict.promoted and certain
    chosen = finalist if promoted else last
    saved = max((finalist.step or 0) - (last.step or 0), 0) if promoted else 0
    confidence = 1 - verdict.alpha
    others = {
        task: (
            evidence.compare(finalist, base, "confirm", task, confidence),
            evidence.compare(last, base, "confirm", task, confidence),
        )
        for task in (test.task for test in verdict.confirm)
    }
    return Decision(
        decision="not_ready" if not certain else "promote" if promoted else "keep_observed",
        reason="; ".join([verdict.reason(), *_about_base(list(others.values()))]) if certain else _uncertain(evidence),
        candidate=chosen.name,
        method=chosen.method,
        step=chosen.step,
        scale=chosen.scale,
        finalist=finalist.name,
        evidence=tuple(c for test in verdict.confirm for c in (test.comparison, *others[test.task])),
        tests=(*verdict.confirm, *verdict.guards),
        base_tests=verdict.base,
        select=tuple(map(_standing, evidence.select)),
        confirm=tuple(map(_standing, evidence.confirm)),
        guards=tuple(map(_standing, evidence.guards)),
        harness=tuple(
            HarnessStanding.model_validate(result.model_dump(include=set(HarnessStanding.model_fields)))
            for name in (finalist.name, last.name, base.name)
            for result in evidence.harness[name].values()
        ),
        warnings=tuple(dict.fromkeys(text for r in evidence.results for text in r.warnings)),
        rule=rule.rule,
        min_gain=rule.min_gain,
        margin=rule.margin,
        confidence=rule.confidence,
        looks=evidence.looks,
        last_observed_step=last.step or 0,
        training_steps_saved=saved,
        cost=cost_of(spec.cost, saved, pipeline_seconds(evidence.store)),
        window_digest=evidence.window_digest,
        rules_digest=rules_digest(spec),
        questions_digest=answered_digest(
            evaluation, {f"{r.task}-{r.split}": r.key["task"]["sha256"] for r in evidence.results}
        ),
        candidates={candidate.name: candidate.digest for candidate in evidence.written},
    )


def rules_digest(spec: RunSpec) -> str:
    """Tells the spec that was decided by from another one."""
    return digest_of(spec.model_dump(mode="json", include={"evaluation", "decision", "cost"}))


def _about_base(compared: list[tuple[Comparison, Comparison]]) -> list[str]:
    """What to tell of the base: a model that everybody has already may be the best there is."""
    lines = []
    for finalist, last in compared:
        if last.interval[1] < 0:
            lines.append(f"on {last.task} RL lowered the accuracy: last observed − base is {last.difference:+.3f}")
            if finalist.interval[1] < 0:
                lines.append("the base is better than both")
            elif finalist.interval[0] <= 0:
                lines.append("the finalist does no more than undo that")
    if lines and all(finalist.interval[0] <= 0 for finalist, _ in compared):
        lines.append("consider keeping the base")
    return lines


def _uncertain(evidence: Evidence) -> str:
    rates = ", ".join(
        f"{result.candidate} on {result.task}: {result.timeout_rate:.2%}"
        for result in (*evidence.confirm, *evidence.guards)
        if result.timeout_rate
    )
    return (
        f"the grader's time-outs could turn the verdict ({rates}); raise evaluation.grading_seconds and evaluate again"
    )


def _standing(result: EvalResult) -> Standing:
    return Standing.model_validate(result, from_attributes=True)
