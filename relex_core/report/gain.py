"""The paired comparisons that the verdict rests on: figure, table, and p-values after all corrections."""

from __future__ import annotations

from relex_core.evaluate.decision import Condition, Decision
from relex_core.report.text import p_value, points, points_interval
from relex_core.report.view import Plot, Table
from relex_core.spec import EvaluationSpec


def gain_plot(decision: Decision, spec: EvaluationSpec | None) -> Plot:
    """Finalist − last observed on every confirmation and guard task, with the threshold that the interval must pass."""
    adjusted = adjusted_p(decision)
    rows, cells = [], []
    for test in decision.tests:
        gain = test.comparison
        label, met = f"{test.task} ({split_name(test)})", "condition met" if test.held else "not met"
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
    headings = ("task", "questions × answers", "difference (points)", "interval", "confidence", "threshold")
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
        f"right of the diamond, the threshold.{_lenient(spec)}",
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


def _lenient(spec: EvaluationSpec | None) -> str:
    """Guards with another condition than the others."""
    names = [guard.task.name for guard in spec.guards if guard.require == "not_refuted"] if spec else []
    return f" Of the guard {', '.join(names)} it must only not lie wholly to the left." if names else ""


def split_name(test: Condition) -> str:
    return "guard" if test.split == "guard" else "confirmation"
