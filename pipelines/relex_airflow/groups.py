"""The stages as task groups: each stage is followed by the check of what it left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import task_group

from relex_airflow.operators import CheckStage
from relex_airflow.places import Place
from relex_airflow.tasks import DIGEST, RUN, SPEC
from relex_core.stages import BY_NAME, Stage


class StageGroups:
    """Makes task groups of stages: the stage, then its check."""

    def __init__(self, place: Place, gcp_conn_id: str | None) -> None:
        self._place, self._gcp_conn_id = place, gcp_conn_id

    def __call__(self, name: str, **options: Any) -> Any:
        """The task group of a stage that runs once."""

        @task_group(group_id=name, tooltip=f"relex {BY_NAME[name].command[0]}")
        def once() -> None:
            self.pair(BY_NAME[name], "run", **options)

        return once()

    def pair(self, stage: Stage, task_id: str, candidate: Any = "", shard: Any = "", **options: Any) -> Any:
        """The two tasks of a stage; returns (stage, check)."""
        values = {"spec": SPEC, "run": RUN, "candidate": candidate, "shard": shard}
        runs = self._place.task(stage, _command(stage, values), task_id=task_id, doc_md=_doc(stage), **options)
        check = CheckStage(
            task_id="check" if task_id == "run" else f"check_{task_id}",
            stage=stage.name,
            run=RUN,
            candidate=candidate,
            digest="" if stage.name == "collect" else DIGEST,
            gcp_conn_id=self._gcp_conn_id,
            doc_md=CheckStage.__doc__,
        )
        runs >> check
        return runs, check


def fits(group: StageGroups, shards: Any) -> Any:
    @task_group(group_id="each_shard")
    def each_shard(shard: Any) -> None:
        group.pair(BY_NAME["fit"], "fit", shard=shard)

    return each_shard.expand(shard=shards)


def candidates_of(group: StageGroups, candidates: Any, parallelism: int) -> Any:
    @task_group(group_id="each_candidate")
    def each_candidate(candidate: Any) -> None:
        bound = {"candidate": candidate, "max_active_tis_per_dagrun": parallelism}
        _, written = group.pair(BY_NAME["extrapolate"], "extrapolate", **bound)
        measured, _ = group.pair(BY_NAME["measure"], "measure", **bound)
        written >> measured

    return each_candidate.expand(candidate=candidates)


def references_of(group: StageGroups, references: Any, parallelism: int) -> Any:
    @task_group(group_id="each_reference")
    def each_reference(candidate: Any) -> None:
        group.pair(BY_NAME["measure"], "measure", candidate=candidate, max_active_tis_per_dagrun=parallelism)

    return each_reference.expand(candidate=references)


def _command(stage: Stage, values: Mapping[str, Any]) -> list[Any]:
    """As `Stage.arguments`, but values may be known only when the task runs."""
    return [values[part[1:-1]] if part.startswith("{") else part for part in stage.command]


def _doc(stage: Stage) -> str:
    needs = stage.resources
    return (
        f"`relex {' '.join(stage.command)}`\n\nReads {', '.join(stage.reads)}. Writes {', '.join(stage.writes)}. "
        f"{needs.cpu} CPU, {needs.memory} GiB; ends after {stage.minutes} minutes; {stage.retries or 'no'} retries. "
        "It can be killed and run again at any time: it goes on where it stopped."
    )
