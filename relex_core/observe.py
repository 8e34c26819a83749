"""observe: which steps a trajectory holds, and what their headers say, while a trainer may still write and delete.

    listing -> step folders -> markers and headers, in parallel -> ObservedStep

A single look can deceive: a checkpoint without a marker of its own may still be growing, and one that seems torn may
just be on its way out (save_total_limit). So a verdict that a live trainer could overturn stands only if a second
listing, `window.settle_seconds` after the first one, shows the same; else everything is looked at again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from relex_core import layout
from relex_core.checkpoints.checkpoint import open_checkpoint
from relex_core.checkpoints.contents import Checkpoint
from relex_core.checkpoints.layouts import LAYOUTS, Layout, StepFolder, Trajectory, find_steps
from relex_core.checkpoints.markers import last_complete_steps, unfinished
from relex_core.checkpoints.observed import CAPTURED, ObservedStep, captured_steps, refuse_rewritten
from relex_core.errors import SpecError, WindowNotReady
from relex_core.spec import LayoutSpec, RunSpec, WindowSpec
from relex_core.storage import join_uri, open_store, refuse_file

log = logging.getLogger("relex")

HEADER_READS_AT_ONCE = 32

LOOKS = 3
"""How often a trajectory that changes meanwhile is looked at before the caller is told to come again."""

PLAINLY_OLD = 600.0
"""Seconds without a change after which nobody is writing any more; far more than clocks of machines differ."""


def layouts_for(own: LayoutSpec | None) -> tuple[Layout, ...]:
    """The layouts to try: the spec's own one, or the table."""
    if own is None:
        return LAYOUTS
    return (Layout("your layout", own.step_folder, own.weights, step_marker=own.marker),)


def observe(trajectory: str, layouts: Sequence[Layout] = LAYOUTS) -> list[ObservedStep]:
    """Every step folder of a trajectory, complete or not, in one look.

    Raises:
        WindowNotReady: there is none.
        SpecError: it is a file.
        DataError: two folders claim one step, or a marker contradicts its folder's name.
    """
    return look_at(trajectory, list_trajectory(trajectory, layouts))


def list_trajectory(uri: str, layouts: Sequence[Layout] = LAYOUTS) -> Trajectory:
    """The step folders of a trajectory, from one listing.

    Raises:
        WindowNotReady: there is none.
        SpecError: it is a file.
        DataError: two folders claim one step.
    """
    found = find_steps(open_store(uri).list(), layouts)
    if not found.steps:
        raise _no_steps(uri, found, layouts)
    return found


def look_at(uri: str, trajectory: Trajectory) -> list[ObservedStep]:
    """Read markers and headers of all step folders.

    Raises:
        DataError: a marker contradicts its folder's name.
    """
    store = open_store(uri)
    last_complete = last_complete_steps(store, trajectory.steps)

    def look(folder: StepFolder) -> ObservedStep:
        weights = join_uri(uri, folder.weights)
        if folder.layout.refused:
            return ObservedStep(folder, weights, Checkpoint(wrong=[folder.layout.refused]))
        checkpoint = open_checkpoint(open_store(weights), folder.files)
        return ObservedStep(folder, weights, checkpoint, unfinished(store, folder, last_complete))

    with ThreadPoolExecutor(HEADER_READS_AT_ONCE) as pool:
        return list(pool.map(look, trajectory.steps))


def observe_settled(spec: RunSpec) -> list[ObservedStep]:
    """Every step folder of the spec's trajectory, such that the window's verdict on them can stand.

    Raises:
        WindowNotReady: there is none yet, or what the verdict depends on changes all the time.
        SpecError: steps were captured from another trajectory, or it is a file.
        DataError: as for `observe`; or a captured step is not the one that the trajectory holds now.
    """
    pause = spec.window.settle_seconds
    copies = captured_steps(join_uri(spec.run_root, layout.CAPTURED))
    _refuse_other_trajectory(spec, copies)
    listed, trajectory = time.monotonic(), _list_others(spec, copies)
    for _ in range(LOOKS):
        steps = sorted([*copies, *look_at(spec.trajectory, trajectory)], key=lambda step: step.folder.step)
        doubtful = _doubtful(spec.window, steps)
        if not doubtful:
            return steps
        _wait_until(listed + pause, doubtful)
        listed, trajectory = time.monotonic(), _list_others(spec, copies)
        if set(doubtful) <= set(trajectory.steps):
            return steps
    raise WindowNotReady(
        f"the trajectory changes while it is looked at: step {', '.join(str(folder.step) for folder in doubtful)}",
        where=spec.trajectory,
        expected=f"two listings, {pause:g} s apart, that show the same files",
        next_step="try again when the trainer has finished that checkpoint (relex watch waits)",
    )


def _list_others(spec: RunSpec, copies: Sequence[ObservedStep]) -> Trajectory:
    """The step folders of which no copy was captured: an original may be deleted at any moment."""
    captured = {step.folder.step: step.copy for step in copies}
    layouts = layouts_for(spec.layout)
    found = find_steps(open_store(spec.trajectory).list(), layouts)
    if not found.steps and not captured:
        raise _no_steps(spec.trajectory, found, layouts)
    for folder in found.steps:
        if (copy := captured.get(folder.step)) is not None:
            refuse_rewritten(folder, copy)
    return replace(found, steps=tuple(folder for folder in found.steps if folder.step not in captured))


def _refuse_other_trajectory(spec: RunSpec, copies: Sequence[ObservedStep]) -> None:
    for step in copies:
        if step.copy is not None and not step.copy.source.startswith(f"{spec.trajectory.rstrip('/')}/"):
            raise SpecError(
                f"step {step.folder.step} was captured from another trajectory",
                where=step.uri,
                expected=f"a step of {spec.trajectory}, not {step.copy.source}",
                next_step="use another --out; a trajectory that was moved can only be read where it was",
            )


def _wait_until(moment: float, doubtful: Sequence[StepFolder]) -> None:
    rest = moment - time.monotonic()
    if rest > 0:
        steps = ", ".join(str(folder.step) for folder in doubtful[:5]) + (" ..." if len(doubtful) > 5 else "")
        log.info("looking again in %.0f s whether the trainer still changes step %s", rest, steps)
        time.sleep(rest)


def _doubtful(window: WindowSpec, steps: Sequence[ObservedStep]) -> list[StepFolder]:
    """The step folders that the verdict depends on and that a live trainer may be about to change."""
    torn = [] if window.skip_incomplete else [step.folder for step in torn_below(window, steps)]
    newest = steps[-1]
    # A later step vouches for T_cut's own, and without T_cut's own or a later one the window is not complete anyway.
    decided = newest.folder.step == window.t_cut and not newest.incomplete and not newest.folder.layout.refused
    if decided and window.settle_seconds and not vouched(steps, newest):
        return [*torn, newest.folder]
    return torn


def torn_below(window: WindowSpec, steps: Sequence[ObservedStep]) -> list[ObservedStep]:
    """The incomplete checkpoints of the window that lie below a complete one: they will never become complete."""
    complete = [step.folder.step for step in steps if not step.incomplete]
    # Without any complete step to compare with, a later step folder shows that the earlier ones are finished.
    last = complete[-1] if complete else steps[-1].folder.step
    return [
        step
        for step in steps
        if step.incomplete
        and window.first <= step.folder.step <= window.t_cut
        and step.folder.step < last
        # Beyond the last step that the framework calls complete, steps may still be in work.
        and not (step.unfinished and step.folder.last_step_file)
    ]


def vouched(steps: Sequence[ObservedStep], step: ObservedStep) -> str:
    """What shows that nobody writes into a complete step any more; "" if nothing does."""
    if step.folder.layout is CAPTURED:
        return "captured"
    if step.folder.marked:
        return "marker"
    if step.folder.step < steps[-1].folder.step:
        return "later step"
    changes = [info.updated for info in step.folder.everything]
    now = time.time()
    return "age" if all(change is not None and now - change > PLAINLY_OLD for change in changes) else ""


def _no_steps(uri: str, found: Trajectory, layouts: Sequence[Layout]) -> WindowNotReady:
    refuse_file(uri, "a trajectory", "give the folder that holds the step folders")
    here = uri.rpartition("/")[2]
    if any(layout.step_of(here) is not None for layout in layouts):
        advice = "this is a step folder itself: give the folder above it"
    elif found.deeper:
        advice = f"step folders lie deeper: give {' or '.join(join_uri(uri, name) for name in found.deeper[:3])}"
    else:
        advice = (
            "check the trajectory's path, or wait for the first checkpoint; "
            "for a trainer of your own see `layout` in docs/trainers.md"
        )
    shown = ", ".join(found.other_folders[:10]) + (" ..." if len(found.other_folders) > 10 else "")
    return WindowNotReady(
        "no step folder is there yet" + (f"; other folders: {shown}" if shown else ""),
        where=uri,
        expected=f"folders like one of: {', '.join(map(str, layouts))}",
        next_step=advice,
    )
