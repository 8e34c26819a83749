"""The DAG: an observation window in, a decision out.

1. resolve: the spec, from the run's parameters.
2. wait_for_window: deferred until the window is complete.
3. start: nothing is left to do if this spec's outcome is published; else the run directory is claimed.
4. collect; shards and candidates: what can go on in parallel.
5. each_shard: fit; then merge_fit; then forecast.
6. each_candidate: extrapolate, measure; each_reference: measure. At most `parallelism` of each at the same time.
7. evaluate, decide; branch: promote, keep_observed or undecided.
8. report, publish; outcome: what to use, as the task's value and as an asset event.

Every stage of relex_core.stages but the gate, which is the sensor here, is a task group: the stage itself, and a check
of what it left. Weights never pass through Airflow; values are a few hundred bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset, Param, TriggerRule, chain, get_current_context, task, task_group
from airflow.sdk.exceptions import AirflowFailException

from relex_airflow.checks import read_json
from relex_airflow.credentials import google_credentials
from relex_airflow.operators import CheckStage
from relex_airflow.params import params_of, resolve
from relex_airflow.places import Place
from relex_airflow.sensors import WindowSensor
from relex_core import layout
from relex_core.collect import claim_run_directory
from relex_core.errors import SpecError
from relex_core.manifest import load_manifest
from relex_core.publish import published
from relex_core.spec import RunSpec
from relex_core.stages import BY_NAME, REFERENCES, Stage, Work, plan_work

WAITED_FOR = "{{ ti.xcom_pull(task_ids='resolve', key='spec') }}"
PUBLISHED = Asset(name="relex_published", uri="relex://published")
"""An event when a run of the DAG has its outcome, which is in the event's `extra`."""

RUN = "{{ ti.xcom_pull(task_ids='resolve', key='run') }}"
SPEC = f"{RUN}/{layout.SPEC}"
DIGEST = "{{ ti.xcom_pull(task_ids='collect.check')['digest'] }}"
BRANCHES = {"promote": "promote", "keep_observed": "keep_observed", "not_ready": "undecided"}


def build_dag(
    dag_id: str,
    place: Place,
    *,
    spec: Mapping[str, Any] | None = None,
    schedule: Any = None,
    start_date: datetime | None = None,
    parallelism: int = 8,
    gcp_conn_id: str | None = None,
    window_hours: float = 7 * 24,
    poke_seconds: float = 60,
    soft_fail: bool = False,
    params: Mapping[str, Param] | None = None,
    **options: Any,
) -> DAG:
    """One run of this DAG decides on one RL run; runs for different RL runs may go on at the same time.

    Args:
        place: where the stages run (places.py).
        spec: as much of the spec as all runs share; shown in the form, where a run may change it.
        schedule: of Airflow; with one, `spec` must be complete.
        parallelism: candidates that are written and measured at the same time.
        gcp_conn_id: connection with which the sensor, the checks and the small tasks between them read the storage.
            None: application-default credentials. Pods have an identity of their own.
        window_hours: how long the sensor waits.
        poke_seconds: between its first looks.
        soft_fail: an RL run that ends before its window is complete skips the run of the DAG, instead of failing it.
        params: of the form, in place of the usual ones.
        options: of `airflow.sdk.DAG`.
    """
    group = _Stages(place, gcp_conn_id)
    with DAG(
        dag_id,
        schedule=schedule,
        start_date=start_date or datetime(2026, 1, 1),
        catchup=False,
        max_active_runs=options.pop("max_active_runs", 16),
        params=dict(params or params_of(spec or {})),
        default_args={"retries": 2, "retry_delay": timedelta(seconds=30), **options.pop("default_args", {})},
        doc_md=options.pop("doc_md", __doc__),
        tags=options.pop("tags", ["relex"]),
        **options,
    ) as dag:
        resolved = task(resolve_params, task_id="resolve", multiple_outputs=True, retries=0)()
        window = WindowSensor(
            task_id="wait_for_window",
            spec=WAITED_FOR,
            timeout=3600 * window_hours,
            poke_interval=poke_seconds,
            soft_fail=soft_fail,
            gcp_conn_id=gcp_conn_id,
            doc_md=WindowSensor.__doc__,
        )
        started = task.branch(claim, task_id="start")(gcp_conn_id)
        collected = group("collect")
        shards = task(_shards, task_id="shards")(gcp_conn_id)
        names = task(_candidate_names, task_id="candidates")(gcp_conn_id)
        merged, forecast, evaluated, decided = (group(n) for n in ("merge_fit", "forecast", "evaluate", "decide"))
        fitted = _fits(group, shards)
        candidates = _candidates(group, names, parallelism)
        references = _references(group, list(REFERENCES), parallelism)
        branched = task.branch(_branch, task_id="branch")(gcp_conn_id)
        branches = [
            EmptyOperator(task_id=name, doc_md=f"After the decision `{key}`.") for key, name in BRANCHES.items()
        ]
        reported = group("report", trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
        done = group("publish")
        outcome = task(
            tell_outcome,
            task_id="outcome",
            outlets=[PUBLISHED],
            trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
        )(gcp_conn_id)

        chain(resolved, window, started, collected, [shards, names, references])
        chain(fitted, merged, [forecast, candidates])
        chain([candidates, references], evaluated, decided, branched, branches, reported, done, outcome)
        chain(forecast, reported)
        started >> outcome  # type: ignore[operator]
    return dag


class _Stages:
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


def _fits(group: _Stages, shards: Any) -> Any:
    @task_group(group_id="each_shard")
    def each_shard(shard: Any) -> None:
        group.pair(BY_NAME["fit"], "fit", shard=shard)

    return each_shard.expand(shard=shards)


def _candidates(group: _Stages, candidates: Any, parallelism: int) -> Any:
    @task_group(group_id="each_candidate")
    def each_candidate(candidate: Any) -> None:
        bound = {"candidate": candidate, "max_active_tis_per_dagrun": parallelism}
        _, written = group.pair(BY_NAME["extrapolate"], "extrapolate", **bound)
        measured, _ = group.pair(BY_NAME["measure"], "measure", **bound)
        written >> measured

    return each_candidate.expand(candidate=candidates)


def _references(group: _Stages, references: Any, parallelism: int) -> Any:
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


def resolve_params() -> dict[str, str]:
    """The spec of this run of the DAG, from its parameters."""
    try:
        spec = resolve(get_current_context()["params"])
    except SpecError as error:
        raise AirflowFailException(f"SpecError: {error}") from error
    return {"spec": spec.model_dump_json(exclude_defaults=True), "run": spec.run_root}


def claim(gcp_conn_id: str | None, goes_on: str = "collect.run") -> str:
    """Claim the run directory, and go on; or end with the outcome, if this spec's is published already."""
    pull = get_current_context()["ti"].xcom_pull
    if pull(task_ids="wait_for_window")["verdict"] == "done":
        return "outcome"
    try:
        with google_credentials(gcp_conn_id):
            claim_run_directory(RunSpec.model_validate_json(pull(task_ids="resolve", key="spec")))
    except SpecError as error:  # another spec's
        raise AirflowFailException(f"SpecError: {error}") from error
    return goes_on


def _shards(gcp_conn_id: str | None) -> list[str]:
    """The parts of the fit: "1/3", "2/3", "3/3"."""
    return list(_planned(gcp_conn_id).shards)


def _candidate_names(gcp_conn_id: str | None) -> list[str]:
    """The candidates to write and measure."""
    return list(_planned(gcp_conn_id).candidates)


def _planned(gcp_conn_id: str | None) -> Work:
    context = get_current_context()
    spec = RunSpec.model_validate_json(context["ti"].xcom_pull(task_ids="resolve", key="spec"))
    with google_credentials(gcp_conn_id):
        return plan_work(spec, load_manifest(spec.run_root), context["params"]["shards"])


def _branch(gcp_conn_id: str | None) -> str:
    """Follow the decision."""
    with google_credentials(gcp_conn_id):
        return BRANCHES[read_json(_run(), layout.DECISION)["decision"]]


def tell_outcome(gcp_conn_id: str | None) -> dict[str, Any]:
    """Which checkpoint to use: RUN/published.json."""
    with google_credentials(gcp_conn_id):
        found = published(_run()).model_dump(exclude={"spec_digest"})
    get_current_context()["outlet_events"][PUBLISHED].extra = {"run": _run(), **found}
    return found


def _run() -> str:
    return str(get_current_context()["ti"].xcom_pull(task_ids="resolve", key="run"))
