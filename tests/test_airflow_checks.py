"""What the Airflow side decides without Airflow: is the window complete, and did a stage leave its result?"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from gcs.server import fake_gcs, new_bucket  # noqa: F401
from support import SMALL, line_of_states, make_spec, random_weights, write_trajectory

relex_airflow = pytest.importorskip("relex_airflow", reason="installed before this package was added: make test")
from relex_airflow.checks import check_stage, read_json  # noqa: E402
from relex_airflow.judgement import Judgement, judge, verdict_of  # noqa: E402
from relex_core import cli, layout  # noqa: E402
from relex_core.collect import collect  # noqa: E402
from relex_core.errors import DataError, ObjectNotFound, RelexError, SpecError, StorageError, WindowNotReady  # noqa: E402
from relex_core.json_text import DuplicateKey  # noqa: E402
from relex_core.manifest import load_manifest  # noqa: E402
from relex_core.spec import RunSpec, load_spec  # noqa: E402
from relex_core.stages import BY_NAME  # noqa: E402
from relex_core.storage import open_store, write_bytes  # noqa: E402


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    base, steps = random_weights(), [1, 2, 3]
    write_trajectory(tmp_path, base, line_of_states(base, steps), steps)
    return make_spec(tmp_path, t_cut=3)


class Denied(StorageError, PermissionError):
    """As a store says it."""


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (WindowNotReady("wait"), "waiting"),
        (StorageError("down"), "unreachable"),
        (Denied("no"), "refused"),
        (ObjectNotFound("no such bucket"), "refused"),
        (DataError("torn"), "refused"),
        (SpecError("wrong"), "refused"),
    ],
)
def test_what_time_can_cure(error: RelexError, verdict: str) -> None:
    assert verdict_of(error) == verdict


def test_the_judgement_is_that_of_collect(spec: RunSpec, tmp_path: Path) -> None:
    later = make_spec(tmp_path, t_cut=4)
    seen = judge(later)
    assert (seen.verdict, seen.meets("complete"), seen.digest) == ("waiting", False, "")
    with pytest.raises(WindowNotReady) as waiting:
        collect(later)
    assert seen.message == f"WindowNotReady: {waiting.value}"
    seen = judge(spec)
    assert (seen.verdict, seen.digest) == ("ready", collect(spec).digest)
    assert seen.ends("complete") and not seen.ends("published")
    assert seen.manifest == f"{spec.run_root}/window.json"
    (tmp_path / "global_step_2/actor/huggingface/model.safetensors").unlink()
    assert judge(spec) == seen, "a collected window needs its checkpoints no more"


def test_as_a_process(spec: RunSpec) -> None:
    command = [sys.executable, "-m", "relex_airflow.judgement"]
    done = subprocess.run(command, input=spec.model_dump_json(), capture_output=True, text=True, check=True)
    assert Judgement.model_validate_json(done.stdout) == judge(spec)
    assert len(done.stdout) < 1000


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, relex_airflow.judgement, relex_airflow.checks, relex_airflow.provider_info; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"airflow", "torch", "numpy", "kfp"} & set(done.stdout.split())


def put(spec: RunSpec, key: str, data: Any) -> None:
    write_bytes(open_store(spec.run_root), key, data if isinstance(data, bytes) else json.dumps(data).encode())


def test_a_stage_that_left_nothing_is_found_out(spec: RunSpec) -> None:
    digest = collect(spec).digest
    found = check_stage(spec.run_root, BY_NAME["collect"])
    assert found["digest"] == digest and found["window.json"].startswith("sha256:")
    with pytest.raises(DataError, match="merge_fit ended, but its result is not there"):
        check_stage(spec.run_root, BY_NAME["merge_fit"], digest=digest)
    put(spec, layout.FIT, b"")
    with pytest.raises(DataError, match="not there"):
        check_stage(spec.run_root, BY_NAME["merge_fit"], digest=digest)
    put(spec, layout.FIT, b"{")
    with pytest.raises(DataError, match="no JSON object"):
        check_stage(spec.run_root, BY_NAME["merge_fit"], digest=digest)
    put(spec, layout.FIT, {"window_digest": digest})
    assert set(check_stage(spec.run_root, BY_NAME["merge_fit"], digest=digest)) == {"digest", layout.FIT}


@pytest.mark.parametrize("collected", [False, True])
def test_what_can_never_be_decided_is_refused(spec: RunSpec, tmp_path: Path, collected: bool) -> None:
    if collected:
        collect(spec)
    splits = {name: {"task": {"name": name, "file": f"{name}.jsonl"}} for name in ("select", "confirm")}
    (tmp_path / "select.jsonl").touch()
    seen = judge(make_spec(tmp_path, t_cut=3, evaluation=splits))
    assert (seen.verdict, "the file of task confirm is not there" in seen.message) == ("refused", True)
    (tmp_path / "confirm.jsonl").touch()
    assert judge(make_spec(tmp_path, t_cut=3, evaluation=splits)).verdict == "ready"
    nothing = {"scales": [], "baselines": ["last_observed"]}
    seen = judge(make_spec(tmp_path, t_cut=3, evaluation=splits, candidates=nothing))
    assert (seen.verdict, "asks for no candidate" in seen.message) == ("refused", True)


def test_results_of_another_window_are_found_out(spec: RunSpec) -> None:
    digest = collect(spec).digest
    put(spec, layout.candidate("a") + "/relex.json", {"window_digest": "sha256:other"})
    with pytest.raises(DataError, match="belongs to the window sha256:other"):
        check_stage(spec.run_root, BY_NAME["extrapolate"], candidate="a", digest=digest)
    with pytest.raises(DataError, match="this belongs to the window"):
        check_stage(spec.run_root, BY_NAME["collect"], digest="sha256:other")


def test_nothing_is_published_while_nothing_is_decided(spec: RunSpec) -> None:
    digest = collect(spec).digest
    put(spec, layout.DECISION, {"decision": "not_ready", "window_digest": digest})
    assert check_stage(spec.run_root, BY_NAME["publish"], digest=digest) == {"digest": digest}
    put(spec, layout.DECISION, {"decision": "promote", "window_digest": digest})
    assert read_json(spec.run_root, layout.DECISION)["decision"] == "promote"
    with pytest.raises(DataError, match="publish ended"):
        check_stage(spec.run_root, BY_NAME["publish"], digest=digest)


def test_a_stored_spec_is_read_from_its_bucket(fake_gcs: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """So that a pod needs no file to be mounted: `relex collect gs://.../spec.json --out RUN`."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs)
    run = f"gs://{new_bucket(fake_gcs)}/run"
    data = {"base": str(SMALL / "run/base"), "trajectory": str(SMALL / "run"), "window": {"t_cut": 4}, "run_root": run}
    write_bytes(open_store(run), layout.SPEC, json.dumps(data).encode())
    result = CliRunner().invoke(cli.main, ["collect", f"{run}/spec.json", "--out", run])
    assert result.exit_code == 0, result.output
    assert load_manifest(run).steps == (1, 2, 3, 4)
    with pytest.raises(ObjectNotFound):
        load_spec(f"{run}/none.json")


def form_of(shared: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Defaults of the ready DAG's form; Airflow's own classes stand aside."""
    pipelines = Path(__file__).parents[1] / "pipelines"
    given: dict[str, Any] = {}
    stands_in = {
        "airflow": SimpleNamespace(),
        "airflow.sdk": SimpleNamespace(Param=lambda default, **_options: default),
        "relex_airflow.dag": SimpleNamespace(build_dag=lambda *_arguments, **options: given.update(options)),
        "relex_airflow.places": SimpleNamespace(Local=None, Place=None, Pods=lambda **_options: None),
    }
    for name, module in stands_in.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    monkeypatch.setenv("RELEX_SPEC", str(shared))
    runpy.run_path(str(pipelines / "dags/relex_dag.py"))
    form: dict[str, Any] = runpy.run_path(str(pipelines / "relex_airflow/params.py"))["params_of"](given["spec"])
    return form


@pytest.mark.parametrize(
    ("written", "read"), [("100", 100), ("0100", 100), ("1:10", "1:10"), ("0x10", "0x10"), ("null", None)]
)
def test_the_ready_dag_reads_the_shared_spec_as_relex_does(
    written: str, read: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left text is refused by the form, which asks for an integer."""
    shared = tmp_path / "shared.yaml"
    shared.write_text(f"base: /b\nwindow: {{t_cut: {written}}}\nnote: größer\n", encoding="utf-8")
    form = form_of(shared, monkeypatch)
    assert (form["base"], form["t_cut"], form["spec"]["note"]) == ("/b", read, "größer")


def test_the_ready_dag_refuses_a_shared_spec_with_a_field_given_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared.yaml"
    shared.write_text("base: /b\nbase: /c\n")
    with pytest.raises(DuplicateKey, match="line 2: 'base' stands twice"):
        form_of(shared, monkeypatch)
