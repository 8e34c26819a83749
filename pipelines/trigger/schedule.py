"""The recurring run: the pipeline every few minutes, whose gate ends it at once while there is nothing to do."""

from __future__ import annotations

from pathlib import Path

from kfp_server_api.exceptions import ApiException
from urllib3.exceptions import HTTPError

from relex_core.errors import SpecError
from relex_core.manifest import short_digest, spec_digest
from relex_core.spec import RunSpec
from relex_kfp.pipelines.trigger.kfp_api import Cluster, api_error, connect, experiment_id, named
from relex_kfp.pipelines.trigger.submission import load_compiled

EVERY_TEN_MINUTES = "0 */10 * * * *"
FIELDS = 6
"""Kubeflow's schedules begin with seconds."""


def schedule(spec: RunSpec, pipeline: Path, cluster: Cluster, *, cron: str = EVERY_TEN_MINUTES, shards: int = 1) -> str:
    """Create the recurring run of one spec, unless it exists already with the same settings.

    Its description says what it was made with, because Kubeflow keeps that as it is. At most one run at a time, and
    none for the times that were missed: each would find the same.

    Args:
        pipeline: the compiled YAML.
        cron: six fields, seconds first.

    Returns:
        The id of the recurring run.

    Raises:
        SpecError: the schedule or the pipeline is wrong, or the spec has another schedule already.
        StorageError: the API failed.
    """
    if len(cron.split()) != FIELDS:
        raise SpecError(
            f"the schedule {cron!r} has {len(cron.split())} fields", expected=f"six, as in {EVERY_TEN_MINUTES!r}"
        )
    load_compiled(pipeline)
    asked = _description(spec, pipeline, cluster, cron, shards)
    name = f"relex-{short_digest([spec.run_root, spec_digest(spec)])}"
    try:
        client = connect(cluster)
        experiment = experiment_id(client, cluster)
        there = client.list_recurring_runs(experiment_id=experiment, filter=named(name)).recurring_runs or []
        for found in there:
            if found.description != asked:
                raise _other(cluster.host, str(found.recurring_run_id), str(found.description), asked)
            return str(found.recurring_run_id)
        made = client.create_recurring_run(
            experiment,
            name,
            description=asked,
            cron_expression=cron,
            max_concurrency=1,
            no_catchup=True,
            params={"spec": spec.model_dump_json(), "shards": shards},
            pipeline_package_path=str(pipeline),
            pipeline_root=cluster.pipeline_root or None,
            service_account=cluster.service_account or None,
        )
        return str(made.recurring_run_id)
    except (ApiException, HTTPError) as error:
        raise api_error(error, cluster.host) from error


def _description(spec: RunSpec, pipeline: Path, cluster: Cluster, cron: str, shards: int) -> str:
    settings = {
        "cron": cron,
        "shards": shards,
        "pipeline": short_digest(pipeline.read_text(encoding="utf-8")),
        "pipeline root": cluster.pipeline_root,
        "service account": cluster.service_account,
    }
    given = ", ".join(f"{name} {value}" for name, value in settings.items() if value)
    return f"relex on {spec.trajectory}, T_cut {spec.window.t_cut}: {given}"


def _other(host: str, run: str, found: str, asked: str) -> SpecError:
    return SpecError(
        f"this spec is scheduled already, with other settings: {found}",
        where=f"recurring run {run} of {host}",
        expected=asked,
        next_step="delete that recurring run in Kubeflow, then schedule again",
    )
