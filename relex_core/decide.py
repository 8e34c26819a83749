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
from relex_core.collect import load_spec_of
from relex_core.errors import DataError
from relex_core.evaluate import evaluation_of
from relex_core.evaluate.decision import Cost, Decision, Standing
from relex_core.evaluate.evidence import Comparison, Evidence
from relex_core.evaluate.results import EvalResult
from relex_core.spec import CostSpec, DecisionSpec
from relex_core.storage import absolute_uri, join_uri, open_store, write_bytes

__all__ = ["Decision", "decide", "delete_losers"]

WEIGHTS = (".safetensors", ".safetensors.index.json")


def decide(run: str) -> Decision:
    """Decide from the stored evaluations, and write RUN/decision.json.

    `promote` only if the whole interval of the finalist's confirmed gain over the last observed checkpoint lies above
    `decision.min_gain`; `keep_observed` otherwise. It generates nothing: other margins can be tried by changing the
    spec (relex collect takes them over) and deciding again.

    If the confirmation questions have met other finalists before (candidates were added and selected anew), the
    confidence is raised to 1 − (1 − confidence) / looks (Bonferroni), so that trying again does not help luck.

    Args:
        run: the run directory (path or URI).

    Raises:
        SpecError: the spec has no evaluation section.
        WindowNotReady: an evaluation is missing. Not a DataError: `relex evaluate` may still be running, and deciding
            again after it helps.
        DataError: evaluations do not belong together, or not to the candidates and spec as they are now.
    """
    run = absolute_uri(run, Path.cwd())
    spec = load_spec_of(run)
    evidence = Evidence.load(run, evaluation_of(spec, run))
    decision = _decision(evidence, spec.decision, spec.cost)
    write_bytes(open_store(run), layout.DECISION, (decision.model_dump_json(indent=1) + "\n").encode())
    return decision


def delete_losers(run: str, decision: Decision) -> list[str]:
    """Delete the weights of every candidate but the promoted one, if the spec says `keep: winner`.

    relex.json, config and tokenizer stay: they say what was tried, and keep finished stages finished.

    Returns:
        Names of the candidates that lost their weights in this call.

    Raises:
        DataError: the promoted candidate's own weights are not there; nothing is deleted.
    """
    run = absolute_uri(run, Path.cwd())
    if load_spec_of(run).candidates.keep == "all":
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
    losing = [key for key in weights if not key.startswith(winner)]
    for key in losing:
        store.delete(key)
    return sorted({key.split("/")[1] for key in losing})


def _decision(evidence: Evidence, rule: DecisionSpec, cost: CostSpec) -> Decision:
    confidence = 1 - (1 - rule.confidence) / evidence.looks
    finalist, last, base = evidence.finalist, evidence.last_observed, evidence.base
    gain = evidence.compare(finalist, last, confidence)
    promoted = gain.interval[0] > rule.min_gain
    chosen = finalist if promoted else last
    saved = max((finalist.step or 0) - (last.step or 0), 0) if promoted else 0
    return Decision(
        decision="promote" if promoted else "keep_observed",
        reason=_reason(promoted, gain, rule.min_gain),
        candidate=chosen.name,
        method=chosen.method,
        step=chosen.step,
        scale=chosen.scale,
        finalist=finalist.name,
        evidence=(gain, evidence.compare(finalist, base, confidence), evidence.compare(last, base, confidence)),
        select=tuple(map(_standing, evidence.select)),
        confirm=tuple(map(_standing, evidence.confirm)),
        min_gain=rule.min_gain,
        confidence=rule.confidence,
        looks=evidence.looks,
        last_observed_step=last.step or 0,
        training_steps_saved=saved,
        cost=_cost(cost, saved),
        window_digest=evidence.window_digest,
    )


def _reason(promoted: bool, gain: Comparison, min_gain: float) -> str:
    low, high = gain.interval
    verdict = "lies above" if promoted else "does not lie wholly above"
    return (
        f"{gain.candidate} against {gain.reference} on {gain.n} confirmation questions: {gain.difference:+.3f}, "
        f"{100 * gain.confidence:.4g} % interval [{low:+.3f}, {high:+.3f}], which {verdict} {min_gain:+.3f}; "
        f"p = {gain.p_value:.2g}; smallest detectable difference {gain.smallest_detectable:.3f}"
    )


def _cost(spec: CostSpec, saved: int) -> Cost:
    per_step = spec.gpu_hours_per_step
    return Cost(gpu_hours_per_step=per_step, gpu_hours_saved=None if per_step is None else per_step * saved)


def _standing(result: EvalResult) -> Standing:
    return Standing.model_validate(result.model_dump(include=set(Standing.model_fields)))
