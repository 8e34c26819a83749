"""Results as short tables for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from click import HelpFormatter
from rich.filesize import decimal

if TYPE_CHECKING:  # every command prints something, few load all of these
    from relex_core.decide import Decision
    from relex_core.dry_run import RunPlan
    from relex_core.evaluate.decision import HarnessStanding
    from relex_core.evaluate.harness import HarnessResult
    from relex_core.evaluate.results import EvalResult
    from relex_core.fit.artifact import FitArtifact
    from relex_core.inspect import StepReport, TrajectoryReport
    from relex_core.manifest import WindowManifest
    from relex_core.report import ReportFiles
    from relex_core.run import RunResult
    from relex_core.watch import WatchResult


def facts_text(title: str, facts: Iterable[tuple[str, str]]) -> str:
    """Names and values below a title. By click, which is loaded already; rich takes as long as the work."""
    text = HelpFormatter(width=140)
    text.write_text(title)
    text.write_dl(list(facts), col_max=60)
    return text.getvalue().rstrip()


def table_text(headings: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> str:
    """A plain table; the first column is left-aligned, the others right-aligned."""
    from rich.console import Console  # here: what is printed as JSON or as facts does without
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    out = io.StringIO()
    console = Console(file=out, width=140, highlight=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def steps_text(steps: Sequence[int]) -> str:
    """[1, 2, 3, 4] -> "4 (1, 2, ..., 4)"."""
    shown = ", ".join(map(str, steps)) if len(steps) <= 6 else f"{steps[0]}, {steps[1]}, ..., {steps[-1]}"
    return f"{len(steps)} ({shown})"


def trajectory_text(report: TrajectoryReport) -> str:
    rows = [
        (
            str(step.step),
            f"{step.layout}: {step.adapter}" if step.adapter else step.layout,
            _state(step),
            str(step.tensors),
            " ".join(step.dtypes),
            decimal(step.bytes),
        )
        for step in report.steps
    ]
    parts = [table_text(("step", "layout", "state", "tensors", "dtypes", "size"), rows)]
    complete = [step for step in report.steps if step.complete]
    total = decimal(sum(step.bytes for step in complete))
    parts.append(f"Complete: {len(complete)} of {len(rows)} steps, {total}.")
    named = {step.adapter.base for step in complete if step.adapter and step.adapter.base}
    if named:
        parts.append(f"The adapters name as their base: {', '.join(sorted(named))}.")
    if report.other_folders:
        parts.append(f"No steps: {', '.join(report.other_folders)}.")
    if report.skeleton:
        parts.append(f"To go on, write relex.yaml:\n\n{report.skeleton}\nand type: relex run relex.yaml --dry-run")
    elif report.advice:
        parts.append(f"To go on, {report.advice}.")
    return "\n\n".join(parts)


def _state(step: StepReport) -> str:
    if not step.complete:
        return "; ".join(step.problems)
    return "complete" if step.settled else "complete, if it stays as it is: no marker, and written just now"


def plan_text(plan: RunPlan) -> str:
    rows = [
        ("steps", steps_text(plan.steps)),
        ("weights", f"{plan.weights:,} in {plan.tensors} tensors"),
        ("fit reads", f"at most {decimal(plan.fit_reads)} (window {decimal(plan.window_bytes)})"),
        ("read twice", f"at most {len(plan.read_twice)} tensors" if plan.read_twice else "nothing"),
        ("fit writes", f"at most {decimal(plan.fit_writes)}"),
        ("memory", f"at most {decimal(plan.memory)}"),
        ("candidates", f"{len(plan.candidates)}, {decimal(plan.candidate_writes)} together"),
    ]
    return facts_text("plan", rows) + "\n" + "\n".join(f"  {name}" for name in plan.candidates)


def window_text(manifest: WindowManifest, run: str) -> str:
    from relex_core.manifest import gaps_text

    rows = [
        ("steps", steps_text(manifest.steps)),
        *([("gaps", gaps_text(manifest.gaps))] if manifest.gaps else []),
        ("T_cut", str(manifest.t_cut)),
        ("tensors", str(len(manifest.tensors))),
        ("digest", manifest.digest),
    ]
    return facts_text("window", rows) + f"\n\nnext: relex fit {run}"


def watch_text(result: WatchResult) -> str:
    fired = result.fired
    done = f"done: {fired.action}" if result.by_this_worker else f"already done by {fired.owner}: {fired.action}"
    return f"the window {fired.window_digest} is complete; {done} at {fired.time}"


def fit_text(artifact: FitArtifact) -> str:
    summary = artifact.summary
    rows = [
        ("steps", steps_text(artifact.steps)),
        ("tensors", f"{summary.tensors}, of which {summary.moved} moved"),
        ("explained variance", _share(summary.explained_variance)),
        ("R² of the line, median", _share(summary.r_squared_median)),
        ("‖W_T − W_0‖ / ‖W_0‖", _share(summary.relative_update)),
        ("read", f"{decimal(artifact.bytes_read)} in {artifact.seconds:.1f} s"),
        ("peak memory", decimal(artifact.peak_rss_bytes)),
    ]
    return facts_text("fit", rows)


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def results_text(results: Sequence[EvalResult]) -> str:
    rows = [
        (r.candidate, r.split, str(r.n), f"{r.mean:.3f}", f"[{r.interval[0]:.3f}, {r.interval[1]:.3f}]")
        for r in results
    ]
    warnings = dict.fromkeys(text for r in results for text in r.warnings)
    return table_text(("candidate", "split", "n", "accuracy", "95 % interval"), rows) + _warning_lines(warnings)


def _warning_lines(warnings: Iterable[str]) -> str:
    return "".join(f"\nwarning: {text}" for text in warnings)


def harness_text(results: Sequence[HarnessResult | HarnessStanding]) -> str:
    rows = [
        (r.candidate, r.task, name, str(r.n), f"{metric.value:.3f}", _plus_minus(metric.standard_error))
        for r in results
        for name, metric in r.metrics.items()
    ]
    return table_text(("candidate", "lm-eval task", "metric", "n", "value", "SE"), rows)


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f"± {error:.3f}"


def decision_text(decision: Decision) -> str:
    rows = decision.table()
    headings = ("candidate", "select ± SE", "confirm [95 %]", "gain over last observed", "p")
    cells = [tuple(row[key] for key in ("candidate", "select", "confirm", "gain", "p")) for row in rows]
    saved = f"\ntraining steps saved: {decision.training_steps_saved}" if decision.decision == "promote" else ""
    harness = f"\n\n{harness_text(decision.harness)}" if decision.harness else ""
    verdict = f"{decision.decision}: {decision.candidate}\n{decision.reason}{saved}"
    return f"{table_text(headings, cells)}{harness}\n\n{verdict}{_warning_lines(decision.warnings)}"


def run_text(result: RunResult) -> str:
    page = f"\nreport: {result.report}" if result.report else ""
    if result.decision is not None:
        return decision_text(result.decision) + page
    lines = [f"{result.run}/candidates/{candidate.name}" for candidate in result.candidates]
    lines += ["", "No evaluation in the spec: all candidates are kept, nothing was decided."]
    return "\n".join(lines) + page


def report_text(files: ReportFiles) -> str:
    return "\n".join([f"{files.page} ({decimal(files.size)})", *files.figures])
