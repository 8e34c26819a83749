"""How good base, observed checkpoints, candidates and RL's own later checkpoints are; and why the others lost."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from relex_core.evaluate.candidates import BASE, LAST_OBSERVED, Candidate
from relex_core.evaluate.decision import Decision, Standing
from relex_core.evaluate.results import EvalResult
from relex_core.report.artifacts import Artifacts
from relex_core.report.text import NONE, label_of, percent, percent_interval, plural, unique
from relex_core.report.view import Plot, Row, Section, Table

LATER_STEP = re.compile(r"step[_-]?0*(\d+)$")
SPLITS = {"select": "selection", "confirm": "confirmation", "guard": "guard"}
EXTRAPOLATING = "extrapolated"


def accuracy_section(run: Artifacts) -> Section:
    """All measured accuracies."""
    if not run.results:
        return Section("accuracy", "Accuracy", ("Nothing is evaluated yet.",))
    spec = run.spec.evaluation
    named = [split.task.name for split in (*spec.confirm_splits, *spec.select_splits)] if spec else []
    measured = {result.task for result in run.results if result.split != "guard"}
    tasks = [task for task in dict.fromkeys(named) if task in measured]
    plots = [_over_steps(run, task, index) for index, task in enumerate(tasks)]
    selected = [result for result in run.results if result.split == "select"]
    if selected:
        plots.append(_ranking(run, selected))
    tables = [_rates(run)]
    if run.decision is not None:
        tables.append(_not_promoted(run, run.decision))
    return Section("accuracy", "Accuracy", plots=tuple(plots), tables=tuple(tables))


def _labels(run: Artifacts) -> Mapping[str, str]:
    labels = unique([label_of(candidate) for candidate in run.candidates], [c.name for c in run.candidates])
    names = [candidate.name for candidate in run.candidates]
    later = {result.candidate: f"RL itself {result.candidate}" for result in run.later}
    return {**later, **dict(zip(names, labels, strict=True))}


def _kind(run: Artifacts, candidate: Candidate | None) -> str:
    if candidate is None:
        return "RL itself, trained on"
    if candidate.name == BASE:
        return "base"
    if candidate.name == LAST_OBSERVED:
        return "last observed"
    ahead = candidate.step is not None and candidate.step > run.window.last_observed.step
    return EXTRAPOLATING if ahead else "average or within the window"


def _over_steps(run: Artifacts, task: str, index: int) -> Plot:
    """Accuracy by step on one task: confirmation questions in full, selection questions in outline."""
    known, labels = {candidate.name: candidate for candidate in run.candidates}, _labels(run)
    rows: list[dict[str, Any]] = []
    for result in run.results:
        if result.task != task or result.split == "guard" or _shown_already(result, run.results):
            continue
        candidate = known.get(result.candidate)
        found = LATER_STEP.search(result.candidate)
        step = int(found[1]) if candidate is None and found else candidate.step if candidate else None
        if step is None and candidate is None:
            continue
        rows.append(
            {
                "label": labels[result.candidate],
                "step": run.window.last_observed.step if step is None else step,
                "kind": _kind(run, candidate),
                "questions": SPLITS[result.split],
                "mean": result.mean,
                "low": result.interval[0],
                "high": result.interval[1],
                "n": result.n,
            }
        )
    rows.sort(key=lambda row: (row["questions"], row["step"], row["label"]))
    return Plot(
        id="accuracy-over-steps" if index == 0 else f"accuracy-over-steps-{index + 1}",
        kind="accuracy",
        title=f"Accuracy over steps: {task}",
        caption="Filled marks: confirmation questions, which chose nothing. Hollow marks: selection questions; the "
        "best of many looks better there than it is. Bars are 95 % intervals. Candidates without a target step stand "
        f"at the last observed one.{' The line is the true RL run.' if run.later else ''}",
        rows=tuple(_side_by_side(rows)),
        table=_accuracy_table([r for r in run.results if r.task == task and r.split != "guard"]),
        constants={"t_cut": run.window.last_observed.step},
    )


def _shown_already(result: EvalResult, results: Sequence[EvalResult]) -> bool:
    """Base and last observed on selection questions, where confirmation questions show them too."""
    if result.split != "select" or result.candidate not in (BASE, LAST_OBSERVED):
        return False
    return any((r.candidate, r.task, r.split) == (result.candidate, result.task, "confirm") for r in results)


def _side_by_side(rows: Sequence[dict[str, Any]]) -> Iterator[Row]:
    """Selection scores of one step stand beside each other and beside what was confirmed: `x` is where they do."""
    width = (max((row["step"] for row in rows), default=1) or 1) / 70
    before: Counter[int] = Counter()
    for row in rows:
        step = row["step"]
        if row["questions"] == SPLITS["select"]:
            before[step] += 1
        place = (before[step] + 1) // 2 * (1 if before[step] % 2 else -1)
        yield {**row, "x": round(step + place * width, 2) if row["questions"] == SPLITS["select"] else step}


def _ranking(run: Artifacts, selected: Sequence[EvalResult]) -> Plot:
    labels = _labels(run)
    scores: dict[str, list[float]] = {}
    for result in selected:
        scores.setdefault(result.candidate, []).append(result.mean)
    order = sorted(scores, key=lambda name: -sum(scores[name]) / len(scores[name]))
    finalist = run.decision.finalist if run.decision else ""
    rows = [
        {
            "label": labels[result.candidate],
            "task": result.task,
            "mean": result.mean,
            "low": result.interval[0],
            "high": result.interval[1],
            "n": result.n,
            "role": _role(result.candidate, finalist),
        }
        for name in order
        for result in selected
        if result.candidate == name
    ]
    return Plot(
        id="candidates",
        kind="candidates",
        title="All candidates on the selection questions",
        caption="These scores choose the finalist and prove nothing more. Bars are 95 % intervals; wide ones were left "
        "behind early and asked fewer questions.",
        rows=tuple(rows),
        table=_accuracy_table(selected),
        constants={"order": [labels[name] for name in order]},
    )


def _role(name: str, finalist: str) -> str:
    return "finalist" if name == finalist else "reference" if name in (BASE, LAST_OBSERVED) else "other candidate"


def _accuracy_table(results: Sequence[EvalResult]) -> Table:
    headings = ("model", "task", "questions", "n × k", "accuracy", "95 % interval", "standard error")
    rows = tuple(
        (
            r.candidate,
            r.task,
            SPLITS[r.split],
            f"{r.n:,} × {r.k}",
            percent(r.mean),
            percent_interval(r.interval),
            percent(r.standard_error, 2),
        )
        for r in sorted(results, key=lambda r: (r.split, r.task, -r.mean, r.candidate))
    )
    return Table(headings, rows)


def _rates(run: Artifacts) -> Table:
    """Truncated, unanswered and ungraded answers, worst first; those without any are counted only."""
    marked = [r for r in run.results if max(r.truncation_rate, r.no_answer_rate, r.timeout_rate) > 0]
    marked.sort(key=lambda r: (-max(r.truncation_rate, r.no_answer_rate, r.timeout_rate), r.candidate, r.task, r.split))
    clean = len(run.results) - len(marked)
    note = f"{plural(clean, 'evaluation')} of {len(run.results)} had no cut, missing or ungraded answer."
    rows = tuple(
        (
            r.candidate,
            f"{r.task} ({SPLITS[r.split]})",
            percent(r.truncation_rate),
            percent(r.no_answer_rate),
            percent(r.timeout_rate),
            f"{r.mean_tokens:.0f}",
        )
        for r in marked
    )
    headings = ("model", "questions", "cut at max_tokens", "no answer", "grading timed out", "mean tokens")
    return Table(headings, rows, "Answers that were cut, missing or not graded", note)


def _not_promoted(run: Artifacts, decision: Decision) -> Table:
    """Every candidate that is not shipped, with the reason."""
    best = {s.task: s for s in decision.select if s.candidate == decision.finalist}
    rows, score = [], {}
    for candidate in run.candidates[2:]:
        if decision.decision == "promote" and candidate.name == decision.candidate:
            continue
        own = [s for s in decision.select if s.candidate == candidate.name]
        score[candidate.name] = sum(s.mean for s in own)
        rows.append((candidate.name, _mean(own), _reason(candidate.name, decision, own, best)))
    rows.sort(key=lambda row: (row[0] != decision.finalist, -score[row[0]], row[0]))
    return Table(("candidate", "selection score", "why it is not promoted"), tuple(rows), "Not promoted, and why")


def _mean(standings: Sequence[Standing]) -> str:
    means = [standing.mean for standing in standings]
    return percent(sum(means) / len(means)) if means else NONE


def _reason(name: str, decision: Decision, own: Sequence[Standing], best: Mapping[str, Standing]) -> str:
    if name == decision.finalist:
        return decision.reason
    if not own:
        return "written after the decision; run relex evaluate and relex decide"
    if any(s.asked < best[s.task].asked for s in own):
        return f"left the search early: after {own[0].asked:,} questions others were ahead"
    return f"on the selection questions {decision.finalist} scored at least as high ({_mean(list(best.values()))})"
