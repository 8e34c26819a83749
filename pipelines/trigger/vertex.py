"""Submitting to Vertex AI Pipelines: one authorised REST call; google-cloud-aiplatform would be 30 more packages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import google.auth
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession
from requests import RequestException, Response, Session

from relex_core.errors import SpecError, StorageError
from relex_core.manifest import WindowManifest
from relex_core.spec import RunSpec
from relex_core.storage import open_store
from relex_kfp.pipelines.trigger.once import LEASE_SECONDS, submit_once
from relex_kfp.pipelines.trigger.state import RunState, run_is_gone
from relex_kfp.pipelines.trigger.submission import Submission, plan_submission

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
SECONDS = 60.0
"""For one call."""


@dataclass(frozen=True)
class Project:
    """Where and as whom pipelines run."""

    project: str
    region: str
    pipeline_root: str
    """gs:// folder in which Vertex AI keeps its artifacts."""
    service_account: str = ""
    """Of the jobs: what may read and write the buckets. Empty: the project's default."""
    endpoint: str = ""
    """Empty: the region's."""

    @property
    def jobs(self) -> str:
        """URL of the project's pipeline jobs."""
        endpoint = self.endpoint or f"https://{self.region}-aiplatform.googleapis.com"
        return f"{endpoint}/v1/projects/{self.project}/locations/{self.region}/pipelineJobs"


def submit_vertex(
    spec: RunSpec,
    manifest: WindowManifest,
    pipeline: Path,
    project: Project,
    *,
    shards: int = 1,
    lease: float = LEASE_SECONDS,
    session: Session | None = None,
) -> str:
    """Run the compiled pipeline on the window, unless it was submitted before.

    The job's id is the submission's key, and Vertex AI accepts an id once: even a submitter that was taken for dead
    cannot make a second job.

    Args:
        lease: seconds without a heartbeat after which a submitter is taken for dead.
        session: sends credentials with each request; None: application-default credentials.

    Returns:
        The resource name of the job.

    Raises:
        SpecError: there is no compiled pipeline, or the API does not accept it.
        StorageError: there are no credentials, or the API cannot be reached, refuses access, or failed.
    """
    submission = plan_submission(spec, manifest, pipeline, shards=shards)
    try:
        session = session or _authorised()
        return submit_once(
            open_store(spec.run_root),
            submission.name,
            partial(_find, session, project, submission.name),
            partial(_submit, session, project, submission),
            lease=lease,
        )
    except (GoogleAuthError, RequestException) as error:
        raise _unreachable(error, project) from error


def vertex_state(job: str, project: Project, *, session: Session | None = None) -> RunState:
    """What became of a job, given its resource name.

    Raises:
        DataError: there is no such job.
        StorageError: there are no credentials, or the API cannot be reached, refuses access, or failed.
    """
    try:
        answer = (session or _authorised()).get(f"{project.jobs}/{job.rpartition('/')[2]}", timeout=SECONDS)
    except (GoogleAuthError, RequestException) as error:
        raise _unreachable(error, project) from error
    if answer.status_code == 404:
        raise run_is_gone(job, project.jobs)
    found = _checked(answer)
    state = found.get("state", "PENDING").removeprefix("PIPELINE_STATE_")
    return RunState(job, state, found.get("error", {}).get("message", ""))


def _authorised() -> Session:
    credentials, _ = google.auth.default(scopes=[SCOPE])
    return AuthorizedSession(credentials)


def _find(session: Session, project: Project, name: str) -> str | None:
    answer = session.get(f"{project.jobs}/{name}", timeout=SECONDS)
    return None if answer.status_code == 404 else str(_checked(answer)["name"])


def _submit(session: Session, project: Project, submission: Submission) -> str:
    runtime = {"gcsOutputDirectory": project.pipeline_root, "parameterValues": submission.arguments}
    body = {
        "displayName": submission.name,
        "pipelineSpec": submission.pipeline_spec,
        "runtimeConfig": runtime,
        **({"serviceAccount": project.service_account} if project.service_account else {}),
    }
    parameters = {"pipelineJobId": submission.name}
    answer = session.post(project.jobs, params=parameters, json=body, timeout=SECONDS)
    if answer.status_code == 409 and (found := _find(session, project, submission.name)):
        return found
    return str(_checked(answer)["name"])


def _unreachable(error: Exception, project: Project) -> StorageError:
    return StorageError(
        f"Vertex AI cannot be reached: {error}", where=project.jobs, next_step="see credentials and network"
    )


def _checked(answer: Response) -> dict[str, Any]:
    if answer.ok:
        body: dict[str, Any] = answer.json()
        return body
    what = f"Vertex AI answered {answer.status_code}: {answer.text:.400}"
    if answer.status_code == 400:
        raise SpecError(what, where=answer.url, next_step="compile the pipeline with --profile vertex")
    raise StorageError(what, where=answer.url, next_step="see project, region and permissions, and try again")
