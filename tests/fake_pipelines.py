"""A server on loopback that keeps what Kubeflow's or Vertex AI's API would get, and says what became of it.

Needs nothing but the standard library, so that the tests in Airflow's environment use it, too.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@contextmanager
def fake_api() -> Iterator[FakeApi]:
    """A running server."""
    with FakeApi() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


class FakeApi(ThreadingHTTPServer):
    """The few calls of both APIs that are used, with the memory of a database."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.made: dict[str, list[dict[str, Any]]] = {"experiments": [], "runs": [], "recurringruns": [], "jobs": []}
        self.fail_with: list[int] = []
        """Statuses of the next calls that would make something."""
        self.states: dict[str, dict[str, Any]] = {}
        """What one run or job, by its id or name, answers besides what was submitted: "state" and "error"."""
        self.asked: Counter[str] = Counter()
        """How often each was asked for."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: FakeApi
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        kind = url.path.rpartition("/")[2]
        if "/pipelineJobs/" in url.path:
            self._answer_one("jobs", "name", url.path.removeprefix("/v1/"))
        elif "/runs/" in url.path:
            self._answer_one("runs", "run_id", kind)
        elif kind == "healthz":
            self._answer(200, {"multi_user": False})
        else:
            field = {"recurringruns": "recurringRuns"}.get(kind, kind)
            self._answer(200, {field: self._filtered(self.server.made[kind], parse_qs(url.query))})

    def _answer_one(self, kind: str, field: str, name: str) -> None:
        self.server.asked[name] += 1
        found = [one for one in self.server.made[kind] if one[field] == name]
        if found:
            self._answer(200, found[0] | self.server.states.get(name, {}))
        else:
            self._answer(404, {"error": {"code": 404}})

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if url.path == "/token":  # of Google's accounts
            self._answer(200, {"access_token": "token-of-the-account", "expires_in": 3600, "token_type": "Bearer"})
            return
        body = json.loads(data)
        with self.server.lock:
            if self.server.fail_with and not url.path.endswith("experiments"):
                self._answer(self.server.fail_with.pop(0), {"error": "as wished"})
                return
            if url.path.endswith("pipelineJobs"):
                name = f"{url.path.removeprefix('/v1/')}/{parse_qs(url.query)['pipelineJobId'][0]}"
                if any(job["name"] == name for job in self.server.made["jobs"]):
                    self._answer(409, {"error": {"status": "ALREADY_EXISTS"}})
                    return
                made = {**body, "name": name}
                self.server.made["jobs"].append(made)
            else:
                kind = url.path.rpartition("/")[2]
                taken = any(one["display_name"] == body["display_name"] for one in self.server.made[kind])
                if kind == "experiments" and taken:
                    self._answer(409, {"error": "already exists"})
                    return
                field = {"experiments": "experiment_id", "runs": "run_id", "recurringruns": "recurring_run_id"}[kind]
                made = {**body, field: str(uuid.uuid4())}
                self.server.made[kind].append(made)
            self._answer(200, made)

    def _filtered(self, made: list[dict[str, Any]], query: dict[str, list[str]]) -> list[dict[str, Any]]:
        wanted = json.loads(query["filter"][0])["predicates"] if "filter" in query else []
        return [one for one in made if all(one[p["key"]] == p["stringValue"] for p in wanted)]

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
