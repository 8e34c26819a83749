"""Train the demo's base and RL run, or go on where an earlier call or a killed process stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from relex_core.demo.publish import publish_folder, publish_text
from relex_core.demo.task import DemoTask
from relex_core.errors import SpecError

# The sums of a matrix product are ordered by the number of threads: a fixed number gives the same run on
# every number of cores, and a model this small gains nothing from more.
THREADS = 1


@dataclass(frozen=True)
class DemoRun:
    """Where a demo run lies: its base, the RL run's folder in verl's layout, and the two held-out splits."""

    base: Path
    trajectory: Path
    select: Path
    confirm: Path
    task: DemoTask


def train_demo_run(out: Path, task: DemoTask, *, to_step: int | None = None) -> DemoRun:
    """Train the base, if it is not there yet, and the RL run up to `to_step`; finished steps are kept as they are.

    Called again with a larger `to_step` it goes on training, bit for bit as if it had never stopped.

    Args:
        out: the folder of this run; base/, rl-run/, tasks/, task.json and trainer-state.pt are written into it.
        task: what to train. All of it but `t_cut` and `target_steps` must stay the same for one `out`.
        to_step: the last GRPO step wanted; by default `task.t_cut`.

    Raises:
        SpecError: `out` holds another task's run, or one of the same task with another seed.
    """
    run = DemoRun(
        base=out / "base",
        trajectory=out / "rl-run",
        select=out / "tasks" / "select.jsonl",
        confirm=out / "tasks" / "confirm.jsonl",
        task=task,
    )
    _claim(out, run)
    with _fixed_threads():
        _write_questions(run)
        _train_base(run)
        _train_policy(run, out / "trainer-state.pt", task.t_cut if to_step is None else to_step)
    return run


def _claim(out: Path, run: DemoRun) -> None:
    """Record whose folder this is, or refuse it."""
    record = out / "task.json"
    identity = json.dumps(run.task.identity(), indent=2) + "\n"
    if record.exists():
        found = json.loads(record.read_text(encoding="utf-8"))
        _refuse_another(record, found, run.task.identity())
    elif any(path.exists() for path in (run.base, run.trajectory, run.select.parent)):
        raise SpecError(
            "this folder holds something that no demo run has written",
            where=str(out),
            expected="an empty folder, or one with the task.json of a demo run",
            next_step="choose another --out",
        )
    else:
        publish_text(record, identity)


def _refuse_another(record: Path, found: dict[str, object], wanted: dict[str, object]) -> None:
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing or found.keys() != wanted.keys():
        raise SpecError(
            "this folder holds the demo run of another task or seed",
            where=str(record),
            expected=", ".join(f"{name} {wanted[name]} (found {found.get(name)})" for name in differing),
            next_step="choose another --out, or delete this one",
        )


@contextmanager
def _fixed_threads() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _write_questions(run: DemoRun) -> None:
    from relex_core.demo.questions import split_pairs, write_split

    folder = run.select.parent
    if folder.exists():
        return
    splits = split_pairs(run.task)

    def fill(unfinished: Path) -> None:
        for path in (run.select, run.confirm):
            write_split(unfinished / path.name, run.task, splits[path.stem])

    publish_folder(folder, fill)


def _train_base(run: DemoRun) -> None:
    from relex_core.demo.model import write_base
    from relex_core.demo.supervised import train_supervised

    if not run.base.exists():
        model = train_supervised(run.task)
        publish_folder(run.base, lambda folder: write_base(folder, model))


def _train_policy(run: DemoRun, state: Path, to_step: int) -> None:
    from relex_core.demo.trajectory import train_trajectory

    train_trajectory(run.task, run.base, run.trajectory, state, to_step)
