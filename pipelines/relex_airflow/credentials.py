"""Google credentials from an Airflow connection. Without one, application-default credentials are used."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relex_core.errors import SpecError

VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"
FILES = ("key_path", "credential_config_file")
UNSUPPORTED = ("key_secret_name", "impersonation_chain")


@contextmanager
def google_environment(extra: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Environment variables that make a connection's account the default one of a child process.

    Args:
        extra: of a connection of type google_cloud_platform: `key_path`, `credential_config_file` or `keyfile_dict`;
            none of them: application-default credentials.

    Raises:
        SpecError: the connection says something that is not understood here.
    """
    given = {name.removeprefix("extra__google_cloud_platform__"): value for name, value in extra.items() if value}
    if wrong := [name for name in UNSUPPORTED if name in given]:
        raise SpecError(
            f"the connection has {', '.join(wrong)}",
            expected=f"{', '.join(FILES)} or keyfile_dict",
            next_step="leave the connection out, and give the workers and the triggerer an identity of their own",
        )
    path = next((given[name] for name in FILES if name in given), None)
    if path is None and "keyfile_dict" not in given:
        yield {}
    elif path is not None:
        yield {VARIABLE: str(path)}
    else:
        key = given["keyfile_dict"]
        with tempfile.TemporaryDirectory(prefix="relex-") as folder:  # readable for this user alone
            file = Path(folder, "key.json")
            file.write_text(key if isinstance(key, str) else json.dumps(key))
            yield {VARIABLE: str(file)}


@contextmanager
def google_credentials(gcp_conn_id: str | None) -> Iterator[dict[str, str]]:
    """The same for this very process, which must be a task's own; yields the whole environment for its children."""
    from airflow.sdk import BaseHook

    extra = BaseHook.get_connection(gcp_conn_id).extra_dejson if gcp_conn_id else {}
    with google_environment(extra) as variables:
        os.environ.update(variables)
        yield dict(os.environ)
