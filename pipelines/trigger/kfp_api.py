"""Submitting to Kubeflow Pipelines through its own client."""

from __future__ import annotations

import json
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kfp.client import Client
from kfp_server_api.exceptions import ApiException
from urllib3.exceptions import HTTPError

from relex_core.errors import RelexError, SpecError, StorageError
from relex_core.manifest import WindowManifest
from relex_core.spec import RunSpec
from relex_core.storage import open_store
from relex_kfp.pipelines.trigger.once import LEASE_SECONDS, submit_once
from relex_kfp.pipelines.trigger.state import RunState, run_is_gone
from relex_kfp.pipelines.trigger.submission import Submission, plan_submission

CONFLICT, NOT_FOUND = 409, 404


@dataclass(frozen=True)
class Cluster:
    """Where and as whom pipelines run."""

    host: str
    """Of the API, for example http://ml-pipeline:8888."""
    namespace: str = ""
    """Of a multi-user installation; empty for a single-user one."""
    experiment: str = "relex"
    service_account: str = ""
    """Of the pods: what may read and write the buckets. Empty: the cluster's default."""
    pipeline_root: str = ""
    """Where Kubeflow keeps its artifacts. Empty: the cluster's default."""
    token: str = ""


def submit_kfp(
    spec: RunSpec,
    manifest: WindowManifest,
    pipeline: Path,
    cluster: Cluster,
    *,
    shards: int = 1,
    lease: float = LEASE_SECONDS,
) -> str:
    """Run the compiled pipeline on the window, unless it was submitted before.

    Args:
        lease: seconds without a heartbeat after which a submitter is taken for dead.

    Returns:
        The id of the run.

    Raises:
        SpecError: there is no compiled pipeline, or the API does not accept it.
        StorageError: the API cannot be reached, refuses access, or failed.
    """
    submission = plan_submission(spec, manifest, pipeline, shards=shards)
    try:
        client = connect(cluster)
        experiment = experiment_id(client, cluster)
        return submit_once(
            open_store(spec.run_root),
            submission.name,
            partial(_find, client, experiment, submission.name),
            partial(_submit, client, experiment, submission, cluster),
            lease=lease,
        )
    except (ApiException, HTTPError) as error:
        raise api_error(error, cluster.host) from error


def connect(cluster: Cluster) -> Any:
    """A client of the API; kfp has no types."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return Client(
            host=cluster.host,
            namespace=cluster.namespace or "kubeflow",
            existing_token=cluster.token or None,
        )


def experiment_id(client: Any, cluster: Cluster) -> str:
    """The experiment, made if it does not exist yet."""
    name, namespace = cluster.experiment, cluster.namespace or None
    with redirect_stdout(sys.stderr):  # the client prints links
        try:
            found = client.create_experiment(name, namespace=namespace)  # or the one that is there
        except ApiException as error:
            if error.status != CONFLICT:
                raise
            found = client.get_experiment(experiment_name=name, namespace=namespace)  # made at the same moment
    return str(found.experiment_id)


def named(name: str) -> str:
    """A filter of the API's lists."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def api_error(error: Exception, host: str) -> RelexError:
    """What went wrong, in our words."""
    status = getattr(error, "status", None)
    what = f"Kubeflow's API failed: {getattr(error, 'body', None) or error!s:.400}"
    if status == 400:
        return SpecError(what, where=host, next_step="compile the pipeline for this version of Kubeflow")
    return StorageError(what, where=host, next_step="see host, namespace and token, and try again")


def kfp_state(run: str, cluster: Cluster) -> RunState:
    """What became of a run.

    Raises:
        DataError: there is no such run.
        StorageError: the API cannot be reached, refuses access, or failed.
    """
    try:
        found = connect(cluster).get_run(run)
    except (ApiException, HTTPError) as error:
        if getattr(error, "status", None) == NOT_FOUND:
            raise run_is_gone(run, cluster.host) from error
        raise api_error(error, cluster.host) from error
    return RunState(run, str(found.state or "PENDING"), str(found.error.message) if found.error else "")


def _find(client: Any, experiment: str, name: str) -> str | None:
    found = client.list_runs(experiment_id=experiment, filter=named(name)).runs
    return next((str(run.run_id) for run in found or [] if run.display_name == name), None)


def _submit(client: Any, experiment: str, submission: Submission, cluster: Cluster) -> str:
    with redirect_stdout(sys.stderr):
        run = client.run_pipeline(
            experiment,
            submission.name,
            pipeline_package_path=str(submission.pipeline),
            params=submission.arguments,
            pipeline_root=cluster.pipeline_root or None,
            service_account=cluster.service_account or None,
        )
    return str(run.run_id)
