"""The stage table: what Kubeflow and Airflow both run. Data only; neither orchestrator is known here.

    for stage in STAGES:
        pod(stage.arguments(run="gs://rl-runs/math-17/relex"), stage.resources, stage.retries)

Every stage is one command, can be killed at any moment, and recognises its own finished work. So "run it again" is the
only recovery an orchestrator needs, and a stage's marker object, not the state of a pod, says whether it is done.

    gate ─► collect ─► fit × shards ─► merge_fit ─► forecast ─► extrapolate ─► measure × candidates ─► evaluate
                                                                            measure × references ─┘        │
                                                                     publish ◄─ report ◄─ decide ◄────────┘
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from relex_core import layout
from relex_core.errors import SpecError
from relex_core.manifest import WindowManifest, digest_of
from relex_core.questions import questions_digest
from relex_core.recipes import recipes_of, refuse_without_candidates
from relex_core.spec import RunSpec
from relex_core.storage import open_store

REFERENCES = ("base", "last_observed")
"""Measured like candidates, but never written."""
WEIGHTS = ("base", "trajectory", f"{layout.CAPTURED}/")
"""Where weights of the RL run lie; steps that the trainer deleted were captured below RUN."""
RECORD = (layout.SPEC, layout.WINDOW)
"""What every stage of a collected run reads first."""


@dataclass(frozen=True)
class Resources:
    """What one pod of a stage asks for; profiles may change it."""

    cpu: int
    """Cores."""
    memory: int
    """GiB."""
    gpu: int = 0
    """GPUs, on profiles that have some; the same stage runs without."""
    scratch: int = 0
    """GiB of local disk: an evaluated model is copied there."""


SMALL = Resources(cpu=1, memory=2)


@dataclass(frozen=True)
class Stage:
    """One kind of pod."""

    name: str
    command: tuple[str, ...]
    """Arguments of `relex`; {spec}, {run}, {shard} and {candidate} are filled in."""
    reads: tuple[str, ...]
    """What it may need, as locations or paths below RUN: what its service account must be able to read."""
    writes: tuple[str, ...]
    """Below RUN: what its service account must be able to write; below a folder also to delete."""
    resources: Resources
    minutes: int
    """Time-out of one attempt. Work that needs longer is not lost: the next attempt goes on where it stopped."""
    each: Literal["shard", "candidate"] | None = None
    """What it runs once for, in parallel; None for once."""
    retries: int = 0
    """Attempts after the first. Only storage failures (exit status 5) and lost pods are cured by another attempt, so
    only stages that move weights have any. Orchestrators that see the exit status retry on 5 alone."""
    marker: str | None = None
    """The object below RUN that shows its success; {candidate} and {task} are filled in. None: see `markers`."""

    def arguments(self, **values: str) -> list[str]:
        """The command line after `relex`."""
        return [part.format(**values) for part in self.command]


STAGES = (
    Stage("gate", ("gate", "{spec}"), (*WEIGHTS, "questions", *RECORD, layout.PUBLISHED), (), SMALL, minutes=30),
    Stage(
        "collect",
        ("collect", "{spec}", "--out", "{run}"),
        reads=(*WEIGHTS, "questions", *RECORD, layout.EVENTS),
        writes=(*RECORD, layout.EVENTS),
        resources=SMALL,
        minutes=60,
        marker=layout.WINDOW,
    ),
    Stage(
        "fit",
        ("fit", "{run}", "--shard", "{shard}"),
        reads=(*WEIGHTS, *RECORD, "fit/"),
        writes=("fit/",),
        resources=Resources(cpu=8, memory=16),
        minutes=24 * 60,
        each="shard",
        retries=3,
    ),
    Stage(
        "merge_fit",
        ("merge", "{run}"),
        reads=(*WEIGHTS, *RECORD, "fit/", layout.EVENTS),
        writes=("fit/", layout.EVENTS),
        resources=Resources(cpu=2, memory=8),
        minutes=60,
        marker=layout.FIT,
    ),
    Stage(
        "forecast",
        ("forecast", "{run}"),
        reads=(*RECORD, "fit/", layout.FORECAST),
        writes=(layout.FORECAST,),
        resources=Resources(cpu=2, memory=4),
        minutes=60,
        marker=layout.FORECAST,
    ),
    Stage(
        "extrapolate",
        ("extrapolate", "{run}", "--candidate", "{candidate}"),
        reads=(*WEIGHTS, *RECORD, "fit/", layout.FORECAST, layout.SPATIAL, "candidates/", layout.EVENTS),
        writes=("candidates/", layout.FORECAST, layout.SPATIAL, layout.EVENTS),
        resources=Resources(cpu=4, memory=8),
        minutes=6 * 60,
        each="candidate",
        retries=3,
        marker=f"candidates/{{candidate}}/{layout.PROVENANCE}",
    ),
    Stage(
        "measure",
        ("evaluate", "{run}", "--candidate", "{candidate}", "--first-round"),
        reads=(*WEIGHTS, "questions", *RECORD, "candidates/", "eval/", layout.EVENTS),
        writes=("eval/", layout.EVENTS),
        resources=Resources(cpu=8, memory=64, gpu=1, scratch=200),
        minutes=24 * 60,
        each="candidate",
        retries=3,
        marker=f"eval/{{candidate}}/{{task}}-select/{layout.SUMMARY}",
    ),
    Stage(
        "evaluate",
        ("evaluate", "{run}"),
        reads=(*WEIGHTS, "questions", *RECORD, "candidates/", "eval/", layout.EVENTS),
        writes=("eval/", layout.EVENTS),
        resources=Resources(cpu=8, memory=64, gpu=1, scratch=200),
        minutes=24 * 60,
        retries=3,
        marker=f"eval/last_observed/{{task}}-confirm/{layout.SUMMARY}",
    ),
    Stage(
        "decide",
        ("decide", "{run}"),
        reads=(*RECORD, "candidates/", "eval/", layout.EVENTS),
        writes=(layout.DECISION,),
        resources=Resources(cpu=1, memory=4),
        minutes=30,
        marker=layout.DECISION,
    ),
    Stage(
        "report",
        ("report", "{run}"),
        reads=(*RECORD, "fit/", layout.FORECAST, "candidates/", "eval/", layout.DECISION, layout.EVENTS),
        writes=(layout.REPORT,),
        resources=Resources(cpu=1, memory=4),
        minutes=30,
        marker=layout.REPORT,
    ),
    Stage(
        "publish",
        ("publish", "{run}"),
        reads=(
            *("base", f"{layout.CAPTURED}/", "questions", *RECORD, "candidates/", f"{layout.LAST_OBSERVED}/"),
            *(layout.DECISION, layout.PUBLISHED, layout.EVENTS),
        ),
        writes=("candidates/", f"{layout.LAST_OBSERVED}/", layout.PUBLISHED, layout.EVENTS),
        resources=SMALL,
        minutes=30,
        marker=layout.PUBLISHED,
    ),
)

BY_NAME: Mapping[str, Stage] = {stage.name: stage for stage in STAGES}


def markers(stage: Stage, spec: RunSpec, candidate: str = "") -> list[str]:
    """Keys below RUN that are all there once the stage is done.

    None for the gate, which writes nothing, for a shard of the fit (`relex merge` refuses a fit whose groups are not
    all there) and for publish while the verdict is not ready.
    """
    if stage.marker is None:
        return []
    if "{task}" not in stage.marker:
        return [stage.marker.format(candidate=candidate)]
    if spec.evaluation is None:
        return []
    splits = spec.evaluation.confirm_splits if "-confirm" in stage.marker else spec.evaluation.select_splits
    return [stage.marker.format(candidate=candidate, task=split.task.name) for split in splits]


class Work(BaseModel):
    """What a collected run still has to be split into."""

    model_config = ConfigDict(frozen=True)

    key: str
    """Changes with everything that later stages depend on: a cache may reuse their results while it stays."""
    shards: tuple[str, ...]
    """"1/3", "2/3", "3/3"."""
    candidates: tuple[str, ...]
    """Names of the candidates to write and measure; none where `relex extrapolate` alone would write none."""


def plan_work(spec: RunSpec, manifest: WindowManifest, shards: int) -> Work:
    """The parts of a run that can go on in parallel.

    The key holds the digests of window, spec and questions, and the generation of window.json: of a run directory that
    was deleted and collected again nothing is there, though its digests are the same.

    Raises:
        SpecError: there are fewer shards than one, or nothing to decide between.
        DataError: a file of questions is not there.
    """
    if shards < 1:
        raise SpecError(f"the fit cannot be split into {shards} parts", where="shards", expected="1 or more")
    refuse_without_candidates(spec, manifest)
    generation = open_store(spec.run_root).stat(layout.WINDOW).generation
    facts = {"window": manifest.digest, "spec": spec.model_dump(mode="json"), "generation": generation}
    facts |= {"questions": questions_digest(spec)}
    return Work(
        key=digest_of(facts),
        shards=tuple(f"{number}/{shards}" for number in range(1, shards + 1)),
        candidates=tuple(recipe.name for recipe in recipes_of(spec, manifest)),
    )
