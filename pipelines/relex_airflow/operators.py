"""The two operators of the DAG that are not pods: a stage as a process here, and the check after every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from relex_airflow.checks import check_stage
from relex_airflow.credentials import google_credentials
from relex_airflow.links import ReportLink
from relex_core.errors import RelexError, StorageError
from relex_core.stages import BY_NAME

RETRIED = StorageError.exit_code


class LocalStage(BaseOperator):
    """`relex ARGUMENTS` in another virtual environment of this machine; or another program of relex.

    Only what another attempt can cure is retried: a failing storage (exit status 5), and a process that was killed.

    Args:
        python: interpreter of the environment in which relex is installed, with torch.
        arguments: of `relex`.
        environment: more environment variables.
        gcp_conn_id: connection whose account it works as; None: application-default credentials.
        module: the program.
        answers: the last line that it prints is the task's value.
    """

    template_fields: Sequence[str] = ("python", "arguments", "environment")

    def __init__(
        self,
        *,
        python: str,
        arguments: Sequence[Any],
        environment: Mapping[str, str] | None = None,
        gcp_conn_id: str | None = None,
        module: str = "relex_core",
        answers: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.python, self.arguments = python, arguments
        self.environment, self.gcp_conn_id, self.module = environment, gcp_conn_id, module
        self.answers = answers
        self._hook = SubprocessHook()

    def execute(self, context: Context) -> str | None:
        command = [self.python, "-m", self.module, *map(str, self.arguments)]
        with google_credentials(self.gcp_conn_id) as environment:
            ended = self._hook.run_command(command, env={**environment, **(self.environment or {})})
        if ended.exit_code == 0:
            return ended.output if self.answers else None
        message = f"relex {self.arguments[0]} ended with status {ended.exit_code}; its message is in the log above"
        curable = ended.exit_code == RETRIED or ended.exit_code < 0
        raise AirflowException(message) if curable else AirflowFailException(message)

    def on_kill(self) -> None:
        """A task that is cleared or times out takes its process along."""
        if self._hook.sub_process is not None:
            self._hook.send_sigterm()


class CheckStage(BaseOperator):
    """After a stage: its result object is there, and belongs to this window. Returns the digests.

    Args:
        stage: a name of relex_core.stages.
        run: URI of the run directory.
        candidate: of a stage that runs once for each.
        digest: of the window that this run of the DAG collected.
        gcp_conn_id: connection whose account reads the run directory; None: application-default credentials.
    """

    template_fields: Sequence[str] = ("run", "candidate", "digest")
    operator_extra_links = (ReportLink(),)

    def __init__(
        self,
        *,
        stage: str,
        run: str,
        candidate: Any = "",
        digest: str = "",
        gcp_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stage, self.run, self.candidate, self.digest = stage, run, candidate, digest
        self.gcp_conn_id = gcp_conn_id

    def execute(self, context: Context) -> dict[str, str]:
        try:
            with google_credentials(self.gcp_conn_id):
                return check_stage(self.run, BY_NAME[self.stage], candidate=self.candidate, digest=self.digest)
        except StorageError:
            raise  # another attempt may cure it
        except RelexError as error:
            raise AirflowFailException(f"{type(error).__name__}: {error}") from error
