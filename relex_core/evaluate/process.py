"""A child process that answers JSON lines: for work that must be killable, or that must not share our memory.

The child is a fresh interpreter (`python -m module arguments`), never a fork: a fork after CUDA or threads have started
deadlocks. It lives until it is closed; if we are killed, it sees the end of its input and leaves.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from relex_core.errors import DataError


class ChildDied(RuntimeError):
    """The child ended or was killed before it answered."""


class Child:
    """One child process and its pipes.

    Args:
        module: run as `python -m module`; it writes {"ready": true} when its imports are done.
        arguments: for the module.
        start_seconds: how long those imports may take.
        environment: added to ours.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str] = (),
        *,
        start_seconds: float = 300.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the child
        paths = os.pathsep.join([os.getcwd(), *filter(None, sys.path)])  # what we can import, it can  # noqa: PTH109
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        self._buffer = b""
        try:
            self._receive(start_seconds)
        except (ChildDied, TimeoutError) as error:
            message = self._last_error()
            self.close()
            raise DataError(f"{module} does not start: {message or error}", where=" ".join(arguments)) from None

    def ask(self, request: Mapping[str, Any], seconds: float) -> Any:
        """Send one request and wait for its answer.

        Raises:
            ChildDied: it ended before it answered.
            TimeoutError: no answer came in time; the child is in an unknown state and must be closed.
            DataError: the child reports a fault of the input.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ChildDied(self._last_error()) from None
        answer = self._receive(seconds)
        if "fault" in answer:
            raise DataError(**answer["fault"])
        return answer["answer"]

    def close(self, patience: float = 0.0) -> None:
        """End it and every process it has started.

        Args:
            patience: seconds it gets to leave by itself once its input has ended; then it is killed.
        """
        if patience and self._process.stdin is not None:
            with suppress(BrokenPipeError, subprocess.TimeoutExpired):
                self._process.stdin.close()
                self._process.wait(patience)
        with suppress(ProcessLookupError):  # the group of a child that started others outlives it
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # unsent bytes to a dead child
                    pipe.close()
        self._errors.close()

    def _receive(self, seconds: float) -> Any:
        assert self._process.stdout is not None
        descriptor, end = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], max(end - time.monotonic(), 0))
            if not ready:
                raise TimeoutError(f"no answer within {seconds:.0f} s")
            data = os.read(descriptor, 1 << 16)
            if not data:
                raise ChildDied(self._last_error())
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def serve(prepare: Callable[[], Callable[[Mapping[str, Any]], Any]]) -> None:
    """The child's side: prepare, then answer requests until the input ends.

    What preparation and work print goes to stderr, not among the answers.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer = prepare()
    _reply(replies, {"ready": True})
    for line in sys.stdin:
        try:
            _reply(replies, {"answer": answer(json.loads(line))})
        except DataError as error:
            fault = {name: getattr(error, name) for name in ("what", "where", "expected", "next_step")}
            _reply(replies, {"fault": fault})


def _reply(replies: Any, data: Mapping[str, Any]) -> None:
    replies.write(json.dumps(data) + "\n")
    replies.flush()
