"""Files and folders that are either there and whole, or not there: written under a hidden name, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path


def publish_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a folder under a temporary name beside `folder`, and rename it when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    fill(unfinished)
    unfinished.rename(folder)


def publish_file(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a file under a temporary name beside `path`, and put it in the place of `path` when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    fill(unfinished)
    unfinished.replace(path)


def publish_text(path: Path, text: str) -> None:
    """Write a whole text file at once."""
    publish_file(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def _unfinished(path: Path) -> Path:
    # Hidden and not called global_step_N, so that nobody who lists the run takes it for a step.
    return path.with_name(f".unfinished-{path.name}")
