"""The paired comparisons that the verdict rests on: figure, table, and p-values after all corrections."""

from __future__ import annotations

from relex_core.evaluate.candidates import BASE
from relex_core.evaluate.decision import Condition, Decision
from relex_core.report.text import p_value, points, points_interval
from relex_core.report.view import Plot, Table


def gain_plot(decision: Decision) -> Plot:
    """Finalist − last observed on every confirmation and guard task, and finalist − base on the former where the rule
    asks for that; with the threshold that the interval must pass."""
    adjusted = adjusted_p(decision)
    rows, cells = [], []
    for test in (*decision.tests, *decision.base_tests):
        gain = test.comparison
        label, met = condition_name(test), "condition met" if test.held else "not met"
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
                p_value(adjusted[label]),
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
    rivals = "the last observed checkpoint and the base" if decision.base_tests else "the last observed checkpoint"
    return Plot(
        id="gain",
        kind="gain",
        title=f"Does {decision.finalist} beat {rivals}?",
        caption="Paired difference on the same questions. The bar is the interval; to count, all of it must lie to the "
        f"right of the diamond, the threshold.{_lenient(decision)}",
        rows=tuple(rows),
        table=Table((*headings, *more), tuple(cells), note=note),
    )


def _correction(decision: Decision) -> str:
    several = sum(test.split == "confirm" for test in decision.tests) > 1
    holm = "no correction, as none is due"
    if several and (decision.rule == "superior" or decision.base_tests):
        only = " against the base" if decision.rule == "non_inferior" else ""
        holm = f"Holm's correction for several confirmation tasks{only}"
    looks = f" and Bonferroni's for {decision.looks} finalists that met these questions" if decision.looks > 1 else ""
    return holm + looks


def adjusted_p(decision: Decision) -> dict[str, float]:
    """p of every condition after the corrections that the verdict applies, by `condition_name`: times the number of
    finalists; and Holm over the confirmation tasks, against the last observed checkpoint with rule superior only."""
    tests = (*decision.tests, *decision.base_tests)
    adjusted = {condition_name(test): min(1.0, test.p_above * decision.looks) for test in tests}
    confirm = [test for test in decision.tests if test.split == "confirm"]
    for family in (confirm if decision.rule == "superior" else [], decision.base_tests):
        running = 0.0
        for rank, test in enumerate(sorted(family, key=lambda test: test.p_above)):
            running = max(running, min(1.0, test.p_above * (len(family) - rank) * decision.looks))
            adjusted[condition_name(test)] = running
    return adjusted


def _lenient(decision: Decision) -> str:
    """Guards with another condition than the others."""
    names = [test.task for test in decision.tests if test.require == "not_refuted"]
    return f" Of the guard {', '.join(names)} it must only not lie wholly to the left." if names else ""


def condition_name(test: Condition) -> str:
    """ "addition (confirmation)", "addition (against the base)", "safety (guard)"."""
    kind = "guard" if test.split == "guard" else "against the base" if against_base(test) else "confirmation"
    return f"{test.task} ({kind})"


def against_base(test: Condition) -> bool:
    return test.comparison.reference == BASE
