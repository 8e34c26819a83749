"""One way to show long work: a bar on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("relex")

# Elsewhere than on a terminal (a pod's log, CI) one line every so often is readable; a bar is not.
SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(description: str, total: float, *, unit: str = "") -> Iterator[Callable[..., None]]:
    """Show the progress of one piece of work.

    Yields ``advance(amount=1.0, note="")``: call it as work is finished; it may be called from any thread.
    `unit` "bytes" shows sizes and rates in decimal bytes.
    """
    if sys.stderr.isatty():
        with _bar(description, total, unit) as advance:
            yield advance
    else:
        with _lines(description, total) as advance:
            yield advance


@contextmanager
def _bar(description: str, total: float, unit: str) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts: tuple[ProgressColumn, ...] = (
        (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
    )
    columns = (TextColumn("{task.description:<24}"), BarColumn(), *amounts, TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(amount: float = 1.0, note: str = "") -> None:
            bar.advance(task, amount)
            if note:
                bar.update(task, note=note)

        yield advance


@contextmanager
def _lines(description: str, total: float) -> Iterator[Callable[..., None]]:
    started = last = time.monotonic()
    done = 0.0

    def advance(amount: float = 1.0, note: str = "") -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            log.info("%s: %.0f %% %s", description, 100 * done / total if total else 100, note)

    yield advance
    log.info("%s: done in %.1f s", description, time.monotonic() - started)
