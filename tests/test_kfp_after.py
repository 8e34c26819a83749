"""After the decision: the signed request, and the sample of a downstream pipeline, which is compiled and run."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from kfp import dsl
from kfp_support import make_spec, scripted_run, undecided
from test_kfp_components import component
from urllib3.util import Retry

from relex_core.errors import SpecError, StorageError, WindowNotReady
from relex_core.notify import notify
from relex_core.publish import published
from relex_core.run import run as run_all
from relex_core.spec import RunSpec
from relex_kfp.pipelines.relex_pipeline.compile import COMPILED

SAMPLE = Path(__file__).parents[1] / "examples" / "kubeflow_downstream.py"
QUICK = Retry(total=2, backoff_factor=0.01, status_forcelist=(503,), allowed_methods=("POST",))


class Receiver(ThreadingHTTPServer):
    """Keeps the requests it gets; answers with `answers`, then with 204."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/hook"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.server.got.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.answers.pop(0) if self.server.answers else 204)
        self.end_headers()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    spec = make_spec(scripted_run(tmp_path_factory.mktemp("run"), candidates=0.9, last_observed=0.3))
    run_all(spec)
    return spec


def test_the_outcome_is_sent_and_signed(decided: RunSpec, receiver: Receiver) -> None:
    receiver.answers = [503]
    delivery = notify(decided.run_root, receiver.url, b"shared", retries=QUICK)
    (first, body), (headers, again) = receiver.got
    assert body == again == published(decided.run_root).model_dump_json().encode()
    assert json.loads(body)["decision"] == "promote"
    assert headers["X-Relex-Delivery"] == first["X-Relex-Delivery"] == delivery
    expected = hmac.new(b"shared", body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(headers["X-Relex-Signature"], f"sha256={expected}")


def test_what_cannot_be_sent_is_an_error(decided: RunSpec, receiver: Receiver, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no secret"):
        notify(decided.run_root, receiver.url, b"")
    with pytest.raises(WindowNotReady):
        notify(str(tmp_path), receiver.url, b"shared")
    assert not receiver.got
    receiver.answers = [401, 302]
    for status in ("401", "302"):
        with pytest.raises(SpecError, match=status):
            notify(decided.run_root, receiver.url, b"shared")
    receiver.answers = [503] * 3
    with pytest.raises(StorageError):
        notify(decided.run_root, receiver.url, b"shared", retries=QUICK)


def test_nothing_is_told_of_a_run_that_is_not_decided(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of one that published before, under another spec, nor of one that never did."""
    monkeypatch.setenv("RELEX_WEBHOOK_SECRET", "shared")
    monkeypatch.syspath_prepend(tmp_path)
    tell = component("notify")
    assert tell(run=str(tmp_path / "run"), decision="not_ready", url=receiver.url) == ""
    run_all(make_spec(scripted_run(tmp_path, candidates=0.9, last_observed=0.3)))
    before = published(str(tmp_path / "run"))
    undecided_run = run_all(make_spec(tmp_path, **undecided(tmp_path)))
    assert undecided_run.decision is not None and undecided_run.decision.decision == "not_ready"
    outcome = component("publish")(
        run=str(tmp_path / "run"), key="", decision="", page="", outcome=dsl.Artifact(uri=str(tmp_path / "outcome"))
    )
    assert tuple(outcome) == ("not_ready", "", 0)
    assert published(str(tmp_path / "run")) == before
    assert tell(run=str(tmp_path / "run"), decision=outcome.decision, url=receiver.url) == ""
    assert not receiver.got
    assert tell(run=str(tmp_path / "run"), decision="promote", url=receiver.url) and receiver.got


def test_the_sample_compiles(tmp_path: Path) -> None:
    out = tmp_path / "downstream.yaml"
    subprocess.run([sys.executable, str(SAMPLE), str(COMPILED / "relex-gke.yaml"), str(out)], check=True)
    text = out.read_text()
    assert "relex-webhook" in text and "cloud.google.com/gke-accelerator" in text, "its profile comes along"


RUN = """
import json, runpy, sys
from kfp import local
sample, relex, root, spec, run_root, registry, webhook = sys.argv[1:]
local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=root)
pipeline = runpy.run_path(sample)["build"](relex)
pipeline(spec=spec, run_root=run_root, name="math-17", registry=registry, webhook=webhook)
"""


def test_the_sample_registers_what_was_promoted(decided: RunSpec, receiver: Receiver, tmp_path: Path) -> None:
    arguments = [SAMPLE, COMPILED / "relex-processes.yaml", tmp_path / "root", decided.model_dump_json()]
    command = [sys.executable, "-c", RUN, *map(str, arguments), decided.run_root, str(tmp_path), receiver.url]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "RELEX_WEBHOOK_SECRET": "shared"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    registered = json.loads((tmp_path / "math-17.json").read_text())
    assert registered == {"checkpoint": f"{decided.run_root}/candidates/relex-step00020-scale1.00"}
    assert [json.loads(body)["candidate"] for _, body in receiver.got] == ["relex-step00020-scale1.00"]
