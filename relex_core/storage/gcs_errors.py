"""Google Cloud Storage's failures as relex's errors: what happened, which permission is lacking, who lacks it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import urllib3.exceptions
from google.api_core.exceptions import (
    Forbidden,
    GoogleAPICallError,
    NotFound,
    PreconditionFailed,
    RetryError,
    Unauthorized,
    from_http_status,
)
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, RefreshError
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from requests import RequestException, Response

from relex_core.errors import AccessDenied, CheckpointChanged, ObjectNotFound, RelexError, StorageError

FAILURES = (
    GoogleAPICallError,
    RetryError,
    GoogleAuthError,
    InvalidResponse,
    DataCorruption,
    RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
)

ROLES = {"storage.objects.get": "roles/storage.objectViewer", "storage.objects.list": "roles/storage.objectViewer"}
WRITING_ROLE = "roles/storage.objectUser"

LOGIN = (
    "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS, "
    "or give the machine or pod a service account"
)


@contextmanager
def gcs_errors(permission: str, where: str) -> Iterator[None]:
    """Turn the failures of one operation into relex's errors.

    Args:
        permission: what the operation needs, e.g. "storage.objects.get".
        where: gs:// URI of the object or folder.

    Raises:
        ObjectNotFound: 404.
        CheckpointChanged: 412, the object has another generation than the one asked for.
        AccessDenied: 401, 403 or no credentials; for 403 it names the permission and, where it is told, the principal.
        StorageError: anything else.
    """
    try:
        yield
    except RelexError:
        raise
    except FAILURES as error:
        raise translated(error, permission, where) from error


def translated(error: Exception, permission: str, where: str) -> RelexError:
    """The relex error for one failure of google-cloud-storage, requests or the network."""
    tried = ""
    if isinstance(error, RetryError):
        tried = f"{str(error.message).rstrip('.').lower()} while retrying: "
        error = error.cause if isinstance(error.cause, Exception) else error
    if isinstance(error, NotFound):
        if permission == "storage.objects.list" or "bucket does not exist" in _told(error):
            return ObjectNotFound("there is no such bucket", where=where, next_step="check the spelling of the URI")
        return ObjectNotFound("no such object", where=where)
    if isinstance(error, PreconditionFailed):
        return changed(where)
    if isinstance(error, Forbidden):
        return _forbidden(error, permission, where)
    if isinstance(error, DefaultCredentialsError):
        return AccessDenied("no Google Cloud credentials were found", where=where, next_step=LOGIN)
    if isinstance(error, (Unauthorized, RefreshError)):
        return AccessDenied(f"the credentials were refused: {_told(error)}", where=where, next_step=LOGIN)
    return StorageError(
        f"Google Cloud Storage failed: {tried}{_told(error)}",
        where=where,
        next_step="check the network and the bucket, then run the same command again: finished work is kept",
    )


def require_status(response: Response, *expected: int) -> None:
    """Raise google.api_core's error for a response of any other status."""
    if response.status_code not in expected:
        raise from_http_status(response.status_code, response.text, response=response)  # type: ignore[no-untyped-call]


def changed(where: str, found: int | str = "another one", wanted: int | str = "as collected") -> CheckpointChanged:
    """The error for an object of another generation than the one that window.json recorded."""
    return CheckpointChanged(
        f"the object was replaced while it was in use: its generation is {found}",
        where=where,
        expected=f"generation {wanted}",
        next_step="collect again into a new run directory, once the trainer has stopped writing there",
    )


def _forbidden(error: Forbidden, permission: str, where: str) -> AccessDenied:
    message = _told(error)
    told = re.search(r"(\S+@\S+|Anonymous caller) does not have", message)
    named = re.search(r"storage\.\w+\.\w+", message)
    permission = named.group() if named else permission
    principal = told.group(1) if told else ""
    kind = "serviceAccount" if principal.endswith("gserviceaccount.com") else "user"
    member = f"{kind}:{principal}" if "@" in principal else "PRINCIPAL"
    bucket = where.split("/")[2]
    role = ROLES.get(permission, WRITING_ROLE)
    return AccessDenied(
        f"{principal or 'the caller'} lacks the permission {permission}: {message}",
        where=where,
        expected=f"{role} on gs://{bucket}, or another role with {permission}",
        next_step=f"gcloud storage buckets add-iam-policy-binding gs://{bucket} --member={member} --role={role}",
    )


def _told(error: Exception) -> str:
    """The server's own words, else the error's."""
    if isinstance(error, GoogleAPICallError) and error.response is not None:
        try:
            return str(error.response.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            return str(error.response.text or error.message).strip()
    return str(error).strip() or type(error).__name__
