"""The page as data: frozen numbers and sentences, in the order of reading. Knows nothing of HTML or plots."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

NUMERIC = re.compile(r"^[<+−\d–]")
Row = Mapping[str, Any]
"""One datum of a chart: plain JSON."""
Tone = Literal["good", "neutral", "caution"]


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    note: str = ""
    folded: bool = False
    """Whether it opens on demand."""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column holds figures, which are aligned to the right."""
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.headings)
        return tuple(all(NUMERIC.match(cell) for cell in column) for column in columns)


@dataclass(frozen=True)
class Fact:
    """One figure that is worth large print."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Notice:
    """Something the reader must know before believing a number."""

    title: str
    text: str


@dataclass(frozen=True)
class Plot:
    """One figure: what to draw, what it says, and the same numbers as a table."""

    id: str
    """File name of the figure and anchor in the page: letters, digits and hyphens only."""
    kind: str
    """Key of charts.CHARTS."""
    title: str
    caption: str
    rows: tuple[Row, ...]
    table: Table
    constants: Mapping[str, Any] = field(default_factory=dict)
    """What the chart needs besides rows, such as reference lines."""


@dataclass(frozen=True)
class Section:
    """A part of the page; shown in the order of the fields."""

    id: str
    title: str
    paragraphs: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    bullets: tuple[str, ...] = ()
    summary: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
    code: tuple[tuple[str, str], ...] = ()
    """(title, text), such as the spec or commands."""


@dataclass(frozen=True)
class Verdict:
    """The first screen."""

    tone: Tone
    label: str
    """Two or three words: the kind of decision."""
    headline: str
    summary: tuple[str, ...]
    facts: tuple[Fact, ...]
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class ReportData:
    """The whole page."""

    title: str
    subtitle: str
    verdict: Verdict
    notices: tuple[Notice, ...]
    sections: tuple[Section, ...]

    @property
    def plots(self) -> tuple[Plot, ...]:
        """All figures, in the order of the page."""
        return (*self.verdict.plots, *(plot for section in self.sections for plot in section.plots))
