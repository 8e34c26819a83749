"""evaluate: measure every candidate, the base and the last observed checkpoint on questions with known answers.

    results = evaluate("run/")                                     # all on select, the finalist on confirm
    results = evaluate("run/", candidates=["relex-step00500-scale1.00"])      # this one, on select only

    tasks -> batches -> completions (generate) -> statuses (grade) -> samples.jsonl -> mean and interval -> summary.json

All candidates answer the same questions, in the same batches, with the same seeds, dtype and backend; one model is in
memory at a time. Killed at any moment and run again, it generates only the batches that are not there yet, and ends
with the same bytes. The best of many candidates on `select` looks better than it is (winner's curse), so exactly that
one meets the last observed checkpoint and the base again on `confirm`, whose questions chose nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from relex_core import layout
from relex_core.errors import SpecError, WindowNotReady
from relex_core.evaluate.candidates import Candidate, choose, observed, references, written_candidates
from relex_core.evaluate.results import EvalResult, ranking
from relex_core.evaluate.search import Round, part, rounds
from relex_core.evaluate.stage import Part, Stage, evaluation_key, open_stage
from relex_core.evaluate.tasks import Split
from relex_core.manifest import load_manifest
from relex_core.recipes import recipes_of, refuse_without_candidates
from relex_core.spec import EvaluationSpec, RunSpec, load_spec_of
from relex_core.storage import absolute_uri, join_uri

log = logging.getLogger("relex")

__all__ = [
    "EvalResult",
    "evaluate",
    "evaluate_first_round",
    "evaluation_key",
    "evaluation_of",
    "is_evaluated",
    "measure_checkpoints",
]


def evaluate(run: str, *, candidates: Sequence[str] = ()) -> list[EvalResult]:
    """Measure candidates; what was measured before under the same key is kept.

    Args:
        run: the run directory (path or URI), with spec.json, window.json and candidates/.
        candidates: names (also "base" and "last_observed"): measure only these, only on the selection split. Empty:
            all of them on the selection split (the weaker of many on a part of it: see `search`), then the finalist,
            the last observed checkpoint and the base on the confirmation split, and the first two on the guard tasks.

    Returns:
        Selection results in the order base, last observed, candidates by name; then confirmation and guard results.

    Raises:
        SpecError: the spec has no evaluation section, there is no candidate of a given name, or a library is missing.
        WindowNotReady: nothing is collected yet, or no candidate is written yet.
        DataError: a task file, a candidate or an observed checkpoint is wrong.
    """
    run = absolute_uri(run, Path.cwd())
    manifest = load_manifest(run)
    whole = load_spec_of(run)
    spec, written = evaluation_of(whole, run), written_candidates(run, manifest.digest)
    known = [*references(manifest), *written]
    chosen = choose(known, candidates) if candidates else []
    if not written and not chosen:
        refuse_without_candidates(whole, manifest)
        raise WindowNotReady("no candidate is written yet", where=run, next_step=f"relex extrapolate {run}")
    with open_stage(run, spec, manifest) as stage:
        if chosen:
            return stage.measure(chosen, "select")
        base, last = known[:2]
        results = stage.measure([base, last], "select")
        written = _taking_part(stage, written, {recipe.name for recipe in recipes_of(whole, manifest)})
        selection, best = _search(stage, written)
        final = [*choose(written, [best]), last, base]
        return [*results, *selection, *stage.measure(final, "confirm"), *stage.measure(final[:2], "guard")]


def evaluate_first_round(run: str, candidates: Sequence[str]) -> list[EvalResult]:
    """Measure candidates as far as `evaluate` is going to in its first round, and no further.

    Any number of processes may do that at the same time, for different candidates; `evaluate` then finds their answers
    and goes on. The first round is all selection questions for "base", "last_observed" and up to 8 candidates of the
    spec, and a part of them for more (see `search`).

    Args:
        run: the run directory (path or URI), with spec.json, window.json and these candidates.
        candidates: names.

    Raises:
        As `evaluate`.
    """
    run = absolute_uri(run, Path.cwd())
    manifest, whole = load_manifest(run), load_spec_of(run)
    spec, known = evaluation_of(whole, run), references(manifest)
    chosen = choose([*known, *written_candidates(run, manifest.digest)], candidates)
    fixed = [candidate for candidate in chosen if candidate in known]
    rest = [candidate for candidate in chosen if candidate not in known]
    with open_stage(run, spec, manifest) as stage:
        first = _rounds(stage, len(recipes_of(whole, manifest)))[0]
        return [*stage.measure(fixed, "select"), *stage.measure(rest, "select", _parts(stage, first))]


def is_evaluated(run: str, finalist: str) -> bool:
    """Whether all that a decision for this finalist rests on is measured as the spec and its questions are now.

    Raises:
        As `evaluate`.
    """
    run = absolute_uri(run, Path.cwd())
    manifest = load_manifest(run)
    base, last = references(manifest)
    best = [candidate for candidate in written_candidates(run, manifest.digest) if candidate.name == finalist]
    with open_stage(run, evaluation_of(load_spec_of(run), run), manifest) as stage:
        both, guards = [base, last, *best], [last, *best]
        wanted: list[tuple[Split, list[Candidate]]] = [("select", both), ("confirm", both), ("guard", guards)]
        return bool(best) and all(stage.was_measured(one, split) for split, several in wanted for one in several)


def _taking_part(stage: Stage, written: Sequence[Candidate], asked: Collection[str]) -> list[Candidate]:
    """The candidates that can still be measured, or have been; who lost an earlier decision has no weights any more."""
    able = [c for c in written if c.weights or stage.was_measured(c, "select")]
    if lost := [c.name for c in written if c not in able]:
        log.warning("left out, for their weights were deleted after a decision: %s", ", ".join(lost))
    if not able:
        raise WindowNotReady(
            "no candidate has weights, and none was measured as the spec now asks",
            where=join_uri(stage.store.uri, layout.CANDIDATES),
            next_step=f"relex extrapolate {stage.store.uri}",
        )
    if extra := [c.name for c in able if c.name not in asked]:
        log.warning(
            "not in the spec, but among the candidates: %s; to leave one out, delete its folder in %s/%s",
            *(", ".join(extra), stage.store.uri, layout.CANDIDATES),
        )
    return able


def _search(stage: Stage, candidates: Sequence[Candidate]) -> tuple[list[EvalResult], str]:
    """Measure candidates on the selection split, round by round.

    Returns:
        The last results of each, in the order of `candidates`; and the finalist's name.
    """
    steps = {candidate.name: candidate.step for candidate in candidates}
    results: dict[str, list[EvalResult]] = {}
    order = [candidate.name for candidate in candidates]
    for one in _rounds(stage, len(candidates)):
        names = set(order[: one.candidates])
        measured = stage.measure([c for c in candidates if c.name in names], "select", _parts(stage, one))
        results |= {name: [result for result in measured if result.candidate == name] for name in names}
        order = ranking(measured, steps)
    return [result for candidate in candidates for result in results[candidate.name]], order[0]


def _rounds(stage: Stage, candidates: int) -> list[Round]:
    return rounds(candidates, min(_batches(stage)), stage.spec.search)


def _parts(stage: Stage, one: Round) -> list[Part]:
    """The batches of each selection task that a round asks for."""
    seeds = [split.seed for split in stage.spec.select_splits]
    return [part(count, one.share, seed) for count, seed in zip(_batches(stage), seeds, strict=True)]


def _batches(stage: Stage) -> list[int]:
    return [stage.batches(index) for index in range(len(stage.tasks["select"]))]


def measure_checkpoints(run: str, folders: Mapping[str, str]) -> list[EvalResult]:
    """Measure checkpoints that are no candidates, such as RL's own later ones, on the confirmation split.

    They take no part in the decision.

    Args:
        run: the run directory (path or URI).
        folders: by name, the folder with config.json and weights; names of candidates cannot be taken.

    Raises:
        SpecError: the spec has no evaluation section, or a name is a candidate's.
        DataError: a task file or a checkpoint is wrong.
    """
    run = absolute_uri(run, Path.cwd())
    manifest = load_manifest(run)
    spec = evaluation_of(load_spec_of(run), run)
    taken = {
        candidate.name for candidate in (*references(manifest), *written_candidates(run, manifest.digest))
    } & folders.keys()
    if taken:
        raise SpecError(f"{', '.join(sorted(taken))}: these are names of candidates", where=run)
    with open_stage(run, spec, manifest) as stage:
        return stage.measure([observed(name, folder) for name, folder in folders.items()], "confirm")


def evaluation_of(spec: RunSpec, run: str) -> EvaluationSpec:
    """The evaluation section.

    Raises:
        SpecError: there is none.
    """
    if spec.evaluation is None:
        raise SpecError(
            "the spec has no evaluation section, so nothing can be measured or decided",
            where=f"{run}/{layout.SPEC}",
            expected="evaluation: {select: {task: ...}, confirm: {task: ...}}",
            next_step="add the section to the spec, then run relex collect and relex evaluate; finished work is kept",
        )
    return spec.evaluation
