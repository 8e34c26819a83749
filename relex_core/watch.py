"""watch: wait until the observation window is complete, then act on it, exactly once.

    claim ─► list ─► (capture new steps) ─► complete? ─► act ─► fired.json
      │       ▲                               │ no
      │       └────────── wait, longer ───────┘
      └─ another worker holds it: stand by, and take over when it dies

"Once" is meant for one run, one T_cut and one spec. A worker that dies between acting and writing fired.json is
followed by one that acts again; so an action must be one that may be repeated: `relex run` resumes, and submissions
carry an idempotency key.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from relex_core import layout
from relex_core.capture import capture_step, is_captured, refuse_other_training
from relex_core.checkpoints.layouts import StepFolder
from relex_core.checkpoints.observed import ObservedStep
from relex_core.claim import Claim, ClaimLost
from relex_core.collect import claim_run_directory, known_window
from relex_core.errors import (
    AccessDenied,
    CheckpointChanged,
    ObjectExists,
    ObjectNotFound,
    SpecError,
    StorageError,
    WindowNotReady,
)
from relex_core.events import record_event
from relex_core.manifest import WindowManifest, short_digest
from relex_core.observe import layouts_for, observe, vouched
from relex_core.spec import RunSpec
from relex_core.storage import PATCH_SUFFIX, Store, open_store, read_bytes

log = logging.getLogger("relex")

FIRST_WAIT_SECONDS = 2.0
BACKOFF = 1.5

# Storage errors in a row after which a watch gives up; each was retried for two minutes before.
MOST_FAILURES = 20

# Further looks for steps that came while others were captured. One without a marker has to be seen twice, once more if
# the trainer changed it in between; a step that cannot be captured even so is left where it is.
LATE_LOOKS = 3

Action = Callable[[RunSpec, WindowManifest], object]
Answer = TypeVar("Answer")


class Fired(BaseModel):
    """fired.json: who acted on the window, and when."""

    model_config = ConfigDict(frozen=True)

    owner: str
    time: str
    """UTC, ISO 8601."""
    action: str
    window_digest: str


@dataclass(frozen=True)
class WatchOptions:
    """How a watch waits."""

    capture: bool = False
    """Copy complete checkpoints of the window into the run directory as they appear."""
    interval: float = 60.0
    """Longest wait between two listings, seconds."""
    lease: float = 60.0
    """Seconds without a heartbeat after which another worker takes over."""
    timeout: float | None = None
    """Seconds after which an incomplete window is given up; None: never."""


@dataclass(frozen=True)
class WatchResult:
    """How a watch ended."""

    fired: Fired
    by_this_worker: bool


def watch(spec: RunSpec, name: str, action: Action, options: WatchOptions) -> WatchResult:
    """Wait for the window of `spec`, then call `action` once, whoever else is watching.

    Args:
        name: what the action is called, for people.
        action: called with the spec and the window; may be repeated if this process dies while it runs.

    Raises:
        SpecError: the action was another one, and is done.
        WindowNotReady: the time-out is over.
        DataError: the window never can be complete, or its data are wrong.
        AccessDenied, StorageError: the storage refuses, or failed too often.
        RelexError: whatever the action raises; the claim is given back then.
    """
    claim_run_directory(spec)
    store, folder = open_store(spec.run_root), layout.watch(watch_key(spec))
    claim = Claim(store, folder, lease=options.lease)
    clock = _Clock(options)
    while True:
        fired = clock.ask(lambda: _fired(store, folder))
        if fired is not None:
            _refuse_other_action(fired, name, f"{store.uri}/{folder}")
            return WatchResult(fired, by_this_worker=False)
        if not clock.ask(claim.try_take):
            clock.wait(f"{claim.holder} is watching; standing by", at_most=options.lease / 4)
            continue
        with suppress(ClaimLost), claim.held():
            manifest = _wait_for_window(spec, claim, options, clock)
            fired = clock.ask(lambda: _fired_by_another(claim, store, folder))
            if fired is not None:
                return WatchResult(fired, by_this_worker=False)
            action(spec, manifest)
            return clock.ask(partial(_record, store, folder, claim.owner, name, manifest))


def watch_key(spec: RunSpec) -> str:
    """Names what is done once: a digest of the whole spec, which holds the run and T_cut."""
    return short_digest(spec.model_dump(mode="json"))


def _wait_for_window(spec: RunSpec, claim: Claim, options: WatchOptions, clock: _Clock) -> WindowManifest:
    news, looks = _News(spec), LATE_LOOKS if options.capture else 0
    while True:
        try:
            manifest = clock.ask(lambda: _look(spec, claim, news if options.capture else None, clock))
        except WindowNotReady as error:
            clock.wait(f"{error.what}; waiting for {error.expected}", give_up=error)
            continue
        if not looks or all(checkpoint.uri.endswith(PATCH_SUFFIX) for checkpoint in manifest.checkpoints):
            return manifest
        looks -= 1  # a step came after the look for new ones: capture it, too


def _look(spec: RunSpec, claim: Claim, news: _News | None, clock: _Clock) -> WindowManifest:
    """The window as it stands now; what is new is captured first."""
    claim.require()
    for step in news.steps() if news else ():
        claim.require()
        clock.reset()
        _capture(spec, step)
    return known_window(spec)


class _News:
    """Complete checkpoints of the window that are not captured yet."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._before: set[StepFolder] = set()

    def steps(self) -> Iterator[ObservedStep]:
        """First the oldest, which is deleted first. One that may still be written to has to look the same twice."""
        window, run = self._spec.window, self._spec.run_root
        try:
            steps = observe(self._spec.trajectory, layouts_for(self._spec.layout))
        except WindowNotReady:
            return
        refuse_other_training(run, steps)
        before, self._before = self._before, {step.folder for step in steps}
        self._report_lost(before)
        for step in steps:
            wanted = step.complete and window.first <= step.folder.step <= window.t_cut
            settled = vouched(steps, step) or step.folder in before
            if wanted and settled and not is_captured(run, step.folder.step):
                yield step

    def _report_lost(self, before: set[StepFolder]) -> None:
        window, run = self._spec.window, self._spec.run_root
        gone = {folder.step for folder in before} - {folder.step for folder in self._before}
        for step in sorted(gone):
            if window.first <= step <= window.t_cut and not is_captured(run, step):
                log.warning("step %d was deleted before it could be captured: it is lost", step)
                record_event(run, "lost", step=step)


def _capture(spec: RunSpec, step: ObservedStep) -> None:
    try:
        report = capture_step(spec.run_root, step)
    except (CheckpointChanged, ObjectNotFound) as error:
        log.warning("step %d went away before it was captured: %s", step.folder.step, error.what)
        return
    ratio = report.raw_bytes / report.stored_bytes
    log.info(
        "captured step %d: %.1f MB of %.1f MB (%.1f times smaller)",
        report.step,
        report.stored_bytes / 1e6,
        report.raw_bytes / 1e6,
        ratio,
    )


def _fired(store: Store, folder: str) -> Fired | None:
    try:
        return Fired.model_validate_json(read_bytes(store, f"{folder}/fired.json"))
    except ObjectNotFound:
        return None


def _refuse_other_action(fired: Fired, name: str, folder: str) -> None:
    """Who printed the window as a trial should not take it for run."""
    if fired.action != name:
        raise SpecError(
            f"the window was acted on before, by another action: {fired.action} at {fired.time}",
            where=folder,
            expected=f"no action yet, or {name}",
            next_step="delete this folder to act once more",
        )


def _fired_by_another(claim: Claim, store: Store, folder: str) -> Fired | None:
    """Whether the one from whom the claim was taken over acted after all; the claim must still be ours."""
    claim.require()
    return _fired(store, folder)


def _record(store: Store, folder: str, owner: str, name: str, manifest: WindowManifest) -> WatchResult:
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    fired = Fired(owner=owner, time=time, action=name, window_digest=manifest.digest)
    try:
        store.create(f"{folder}/fired.json", (fired.model_dump_json(indent=1) + "\n").encode())
    except ObjectExists:  # this worker was stalled for longer than a lease; the one that took over was first
        return WatchResult(_fired(store, folder) or fired, by_this_worker=False)
    record_event(store.uri, "fired", action=name, digest=manifest.digest)
    return WatchResult(fired, by_this_worker=True)


class _Clock:
    """Waits that grow while nothing happens, and the time-out."""

    def __init__(self, options: WatchOptions) -> None:
        self._options = options
        self._started = time.monotonic()
        self._said = ""
        self.reset()

    def reset(self) -> None:
        """Something happened: look again soon."""
        self._next = min(FIRST_WAIT_SECONDS, self._options.interval)

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """The answer of the storage, which is asked again while it fails.

        Raises:
            AccessDenied, ObjectNotFound: at once, for asking again does not help.
            StorageError: it failed MOST_FAILURES times in a row.
        """
        for attempt in range(1, MOST_FAILURES):
            try:
                return question()
            except (AccessDenied, ObjectNotFound):
                raise
            except StorageError as error:
                self.wait(error.what, note=f" (attempt {attempt} of {MOST_FAILURES})", give_up=error)
        return question()

    def wait(
        self, why: str, *, note: str = "", at_most: float = float("inf"), give_up: Exception | None = None
    ) -> None:
        """Say why, once for each note, and sleep: longer as long as the reason stays the same.

        Raises:
            give_up, or WindowNotReady: the time-out is over.
        """
        if why != self._said:
            self.reset()
        if why != self._said or note:
            log.info("%s%s", why, note)
        self._said = why
        left = float("inf")
        if self._options.timeout is not None:
            left = self._started + self._options.timeout - time.monotonic()
            if left <= 0:
                raise give_up or WindowNotReady(
                    f"gave up after {self._options.timeout:g} s: {why}", next_step="start relex watch again"
                )
        time.sleep(min(self._next, at_most, left))
        self._next = min(self._next * BACKOFF, self._options.interval)
