"""The recurring run: the pipeline every few minutes, whose gate ends it at once while there is nothing to do."""

from __future__ import annotations

from pathlib import Path

from kfp_server_api.exceptions import ApiException
from urllib3.exceptions import HTTPError

from relex_core.errors import SpecError
from relex_core.manifest import short_digest, spec_digest
from relex_core.spec import RunSpec
from relex_kfp.pipelines.trigger.kfp_api import Cluster, api_error, connect, experiment_id, named

EVERY_TEN_MINUTES = "0 */10 * * * *"
FIELDS = 6
"""Kubeflow's schedules begin with seconds."""


def schedule(spec: RunSpec, pipeline: Path, cluster: Cluster, *, cron: str = EVERY_TEN_MINUTES, shards: int = 1) -> str:
    """Create the recurring run of one spec; one that exists already is left as it is.

    At most one run at a time, and none for the times that were missed: each would find the same.

    Args:
        pipeline: the compiled YAML.
        cron: six fields, seconds first.

    Returns:
        The id of the recurring run.

    Raises:
        SpecError: the schedule or the pipeline is wrong.
        StorageError: the API failed.
    """
    if len(cron.split()) != FIELDS:
        raise SpecError(
            f"the schedule {cron!r} has {len(cron.split())} fields", expected=f"six, as in {EVERY_TEN_MINUTES!r}"
        )
    if not pipeline.is_file():
        raise SpecError(
            "there is no compiled pipeline", where=str(pipeline), next_step="python -m relex_kfp compile ..."
        )
    name = f"relex-{short_digest([spec.run_root, spec_digest(spec)])}"
    try:
        client = connect(cluster)
        experiment = experiment_id(client, cluster)
        there = client.list_recurring_runs(experiment_id=experiment, filter=named(name)).recurring_runs or []
        for found in there:
            return str(found.recurring_run_id)
        made = client.create_recurring_run(
            experiment,
            name,
            description=f"relex on {spec.trajectory}, T_cut {spec.window.t_cut}",
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
