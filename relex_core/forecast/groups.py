"""One module type's, or the whole model's, entry of the forecast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from relex_core.forecast.expected import Expected
from relex_core.forecast.geometry import Geometry
from relex_core.forecast.held_out import HeldOut
from relex_core.forecast.measures import Group, HorizonSkill, PredictorSkill, Shape
from relex_core.forecast.nulls import NullModels
from relex_core.forecast.numbers import number, numbers
from relex_core.forecast.skill import (
    LineSkill,
    cuts_helped,
    fair_pairs,
    horizon_bins,
    pooled_line,
    pooled_skill,
    window_bins,
)
from relex_core.forecast.window import Window


@dataclass(frozen=True)
class LineBin:
    """The line in one range of horizons, for all groups."""

    windows: tuple[float, float] | None
    horizon: float
    pairs: int
    line: LineSkill

    def of(self, row: int) -> HorizonSkill:
        """One group's entry."""
        return HorizonSkill(
            horizon=self.horizon,
            windows=self.windows,
            pairs=self.pairs,
            skill=number(self.line.skill[row]),
            best_scale_skill=number(self.line.best_scale_skill[row]),
            best_scale=number(self.line.best_scale[row]),
        )


def line_by_horizon(held: HeldOut) -> list[LineBin]:
    """Skill of the line by horizon in optimizer steps."""
    rows = slice(held.errors.shape[1])
    return [LineBin(None, h, int(p.sum()), pooled_line(held, p, rows)) for h, p in horizon_bins(held)]


def line_by_windows(held: HeldOut) -> list[LineBin]:
    """Skill of the line by horizon in units of the fitted window."""
    rows = slice(held.errors.shape[1])
    return [
        LineBin((low, high), float(held.horizons[p].mean()), int(p.sum()), pooled_line(held, p, rows))
        for low, high, p in window_bins(held)
    ]


def predictor_skills(held: HeldOut, expected: Expected) -> list[dict[str, PredictorSkill]]:
    """Skill of every predictor that the window is long enough for, by group."""
    bins, pairs = [pairs for _, _, pairs in window_bins(held)], fair_pairs(held)
    groups: list[dict[str, PredictorSkill]] = [{} for _ in range(held.errors.shape[1])]
    for name, at_targets in expected.skill.items():
        total, helped = pooled_skill(held, name, pairs), cuts_helped(held, name, pairs)
        by_windows = np.array([pooled_skill(held, name, each) for each in bins]).reshape(len(bins), len(groups))
        for row, table in enumerate(groups):
            table[name] = PredictorSkill(
                skill=number(total[row]),
                by_windows=numbers(by_windows[:, row]),
                cuts_helped=number(helped[row]),
                expected=numbers(at_targets[row]),
            )
    return groups


def shape_of(shapes: Geometry, row: int) -> Shape:
    """Geometry of one group."""
    return Shape(
        explained_variance=numbers(shapes.explained_variance[row]),
        r_squared=number(shapes.r_squared[row]),
        residual_autocorrelation=number(shapes.residual_autocorrelation[row]),
        off_direction=number(shapes.off_direction[row]),
        step_cosine=number(shapes.step_cosine[row]),
        direction_cosine=numbers(shapes.direction_cosine[row]),
    )


@dataclass(frozen=True)
class Analyses:
    """Everything that the entries of the groups are made of."""

    window: Window
    members: np.ndarray
    shapes: Geometry
    nulls: NullModels
    by_horizon: list[LineBin]
    by_windows: list[LineBin]
    skills: list[dict[str, PredictorSkill]]
    best: Mapping[int, str]
    expected: Expected

    def group(self, row: int) -> Group:
        """One group's entry."""
        traces = np.einsum("ntt->n", self.window.grams)
        inside = self.members[row] > 0
        total = float(traces.sum())
        return Group(
            tensors=int(inside.sum()),
            moved=int((inside & (traces > 0)).sum()),
            share=number(float(traces[inside].sum()) / total) if total > 0 else None,
            shape=shape_of(self.shapes, row),
            null=self.nulls.of(row),
            by_horizon=tuple(each.of(row) for each in self.by_horizon),
            by_windows=tuple(each.of(row) for each in self.by_windows),
            predictors=self.skills[row],
            best_predictor=self.best[row],
            overshoot=numbers(self.expected.overshoot[row]),
            expected_scale=numbers(self.expected.scale[row]),
        )
