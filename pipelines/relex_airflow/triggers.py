"""The trigger that waits for a window: looks, sleeps longer and longer while nothing changes, and gives up in time."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from airflow.sdk import BaseHook
from airflow.triggers.base import BaseTrigger, TriggerEvent

from relex_airflow.credentials import google_environment
from relex_airflow.judgement import Judgement, Until


class Ended(NamedTuple):
    """A process that has ended."""

    status: int
    printed: str
    errors: str
    """The end of what it wrote to stderr."""


class WindowTrigger(BaseTrigger):
    """Fires once: when the window is complete (or the outcome published), is refused, or time is up.

    Its arguments are the run's spec, without weights or listings: one or two kilobytes.

    Args:
        spec: the resolved spec as JSON.
        interval: seconds between the first two looks.
        longest: seconds between two looks at most; the interval doubles while looks see the same.
        deadline: seconds since 1970 at which it gives up; a triggerer that is restarted keeps it.
        gcp_conn_id: connection whose account reads the storage; None: application-default credentials.
        until: "complete" or "published".
    """

    def __init__(
        self,
        spec: str,
        interval: float,
        longest: float,
        deadline: float,
        gcp_conn_id: str | None = None,
        until: Until = "complete",
    ) -> None:
        super().__init__()
        self.until = until
        self.spec, self.interval, self.longest, self.deadline = spec, interval, longest, deadline
        self.gcp_conn_id = gcp_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        fields = ("spec", "interval", "longest", "deadline", "gcp_conn_id", "until")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in fields}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event: the last Judgement; one that is neither what was waited for nor refused means that time is up."""
        interval, seen = self.interval, None
        while True:
            judgement = await self.look()
            if judgement.ends(self.until) or time.time() >= self.deadline:
                yield TriggerEvent(judgement.model_dump())
                return
            if judgement == seen:
                interval = min(2 * interval, self.longest)
            else:
                interval = self.interval
                self.log.info("%s: %s; the next look is in %g s", judgement.verdict, judgement.message, interval)
            seen = judgement
            await asyncio.sleep(min(interval, max(self.deadline - time.time(), 0)))

    async def look(self) -> Judgement:
        """One judgement."""
        ended = await self.process([sys.executable, "-m", "relex_airflow.judgement"], given=self.spec)
        if ended.status == 0:
            return Judgement.model_validate_json(ended.printed)
        message = f"the judgement ended with status {ended.status}: {ended.errors}"
        killed = ended.status < 0  # by a machine short of memory, or one that is drained
        return Judgement(verdict="unreachable" if killed else "refused", message=message)

    async def process(
        self, command: Sequence[str], *, given: str = "", environment: Mapping[str, str] | None = None
    ) -> Ended:
        """Run a process with the connection's account; it ends with this trigger."""
        connection = await BaseHook.aget_connection(self.gcp_conn_id) if self.gcp_conn_id else None
        with google_environment(connection.extra_dejson if connection else {}) as variables:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **variables, **(environment or {})},
            )
            try:
                printed, errors = await process.communicate(given.encode())
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        return Ended(process.returncode or 0, printed.decode(), errors.decode(errors="replace")[-2000:])
