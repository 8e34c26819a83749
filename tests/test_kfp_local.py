"""The compiled pipeline, run by kfp.local: every step a process of its own, as it is a pod on a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gcs.server import fake_gcs, new_bucket  # noqa: F401
from kfp_support import make_spec, result_files, scripted_run, sections_on_gcs, spec_data, undecided, upload

from relex_core.collect import collect
from relex_core.publish import published
from relex_core.run import run as run_all
from relex_core.storage import open_store


def relex(folder: Path, *arguments: str, **sections: Any) -> subprocess.CompletedProcess[str]:
    """`relex run --engine kfp-local` on a spec of these sections."""
    (folder / "spec.json").write_text(json.dumps(spec_data(**sections)))
    command = [sys.executable, "-m", "relex_core", "run", "--engine", "kfp-local", str(folder / "spec.json")]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def executed(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The steps that ran, in order of their starts."""
    lines = [line for line in done.stderr.splitlines() if "Executing task" in line]
    return [line.rpartition("Executing task ")[2].split("'")[1] for line in lines]


def test_a_window_that_is_not_complete_is_green_and_nothing_is_done(tmp_path: Path) -> None:
    scripted_run(tmp_path, candidates=0.9, last_observed=0.3)
    done = relex(tmp_path, "--out", str(tmp_path / "run"), window={"t_cut": 40})
    assert executed(done) == ["gate", "outcome"]
    assert done.returncode == 3, "the pipeline is green; the command line says that the window is not complete"
    assert "Pipeline" in done.stderr and "SUCCESS" in done.stderr and "FAILURE" not in done.stderr
    assert "the last complete checkpoint is step 16" in done.stderr
    assert not (tmp_path / "run").exists()


def test_what_the_gate_refuses_has_the_status_of_relex_run(tmp_path: Path) -> None:
    scripted_run(tmp_path, candidates=0.9, last_observed=0.3)
    weights = tmp_path / "trajectory/global_step_4/actor/huggingface/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = relex(tmp_path, "--out", str(tmp_path / "run"))
    assert (done.returncode, executed(done)) == (4, []), "as relex run"
    assert "WindowError: incomplete checkpoints below a later one:" in done.stderr
    assert "  - step 4: " in done.stderr


WRONG = {"no evaluation": {"evaluation": None}, "no candidates": {"candidates": {"scales": [], "baselines": []}}}


@pytest.mark.parametrize("sections", WRONG.values(), ids=WRONG)
def test_a_spec_that_leads_to_no_decision_is_bad_usage(tmp_path: Path, sections: dict[str, Any]) -> None:
    scripted_run(tmp_path, candidates=0.9, last_observed=0.3)
    done = relex(tmp_path, "--out", str(tmp_path / "run"), **sections)
    assert (done.returncode, executed(done)) == (2, [])
    assert done.stderr.startswith("SpecError: the spec ") and "Traceback" not in done.stderr


def test_later_steps_do_not_run_after_one_that_failed(tmp_path: Path) -> None:
    """The window is frozen, then a checkpoint changes: the gate lets it pass, the fit must not."""
    collect(make_spec(scripted_run(tmp_path, candidates=0.9, last_observed=0.3)))
    weights = tmp_path / "trajectory/global_step_4/actor/huggingface/model.safetensors"
    weights.write_bytes(weights.read_bytes())
    done = relex(tmp_path, "--out", str(tmp_path / "run"))
    assert done.returncode == 1
    assert "CheckpointChanged: " in done.stderr
    assert "PipelineFailed: the pipeline failed" in done.stderr
    assert not {"merge-fit", "forecast", "extrapolate", "decide", "publish"} & set(executed(done))
    assert not (tmp_path / "run/fit/fit.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("candidates", "shards", "decision", "saved"), [(0.9, 3, "promote", 12), (0.1, 1, "keep_observed", 0)]
)
def test_the_pipeline_makes_what_relex_run_makes(
    tmp_path: Path, candidates: float, shards: int, decision: str, saved: int
) -> None:
    scripted_run(tmp_path, candidates=candidates, last_observed=0.3)
    done = relex(tmp_path, "--shards", str(shards), "--out", str(tmp_path / "run"), "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    printed = json.loads(done.stdout)
    assert (printed["decision"], printed["training_steps_saved"]) == (decision, saved)
    ran = executed(done)
    assert (ran[0], ran[-1], ran.count("fit"), ran.count("extrapolate")) == ("gate", "publish", shards, 2)
    assert sum(name.startswith("evaluate") for name in ran) == 2 + 2 + 1
    run_all(make_spec(tmp_path, "other"))
    assert (tmp_path / "run/report.html").exists()
    assert result_files(tmp_path / "run") == result_files(tmp_path / "other"), (
        "any number of shards gives the fit of one process"
    )
    again = relex(tmp_path, "--out", str(tmp_path / "run"), "--json")
    assert (again.returncode, executed(again)) == (0, ["gate", "outcome"])
    assert json.loads(again.stdout) == printed


@pytest.mark.slow
def test_a_verdict_that_is_not_ready_has_the_status_of_relex_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_run(tmp_path, candidates=0.9, last_observed=0.3)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    sections = undecided(tmp_path)
    done = relex(tmp_path, "--out", str(tmp_path / "run"), "--json", **sections)
    assert json.loads(done.stdout)["decision"] == "not_ready", done.stderr[-4000:]
    command = [sys.executable, "-m", "relex_core", "run", str(tmp_path / "spec.json"), "--out", str(tmp_path / "run")]
    here = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == here.returncode == 0


@pytest.mark.slow
def test_a_pipeline_that_was_killed_goes_on(tmp_path: Path) -> None:
    """With half of the work gone: what is there is used, what is not is made, and the bytes are the same."""
    scripted_run(tmp_path, candidates=0.9, last_observed=0.3)
    run_all(make_spec(tmp_path, "other"))
    run_all(make_spec(tmp_path))
    whole = result_files(tmp_path / "other")
    for name in ("published.json", "decision.json", "eval/base/select-select/summary.json", "forecast.json"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run/candidates/relex-step00020-scale1.00/model.safetensors").unlink()
    done = relex(tmp_path, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert result_files(tmp_path / "run") == whole


@pytest.mark.slow
def test_the_pipeline_on_gcs(tmp_path: Path, fake_gcs: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Base, trajectory, questions and run directory in a bucket; the processes share nothing else."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs)
    uri = f"gs://{new_bucket(fake_gcs)}/rl"
    upload(scripted_run(tmp_path / "data", candidates=0.9, last_observed=0.3), uri)
    done = relex(tmp_path, "--shards", "2", "--out", f"{uri}/relex", "--json", **sections_on_gcs(uri))
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout)["decision"] == "promote"
    outcome = published(f"{uri}/relex")
    assert outcome.checkpoint_uri == f"{uri}/relex/candidates/relex-step00020-scale1.00"
    written = {info.name for info in open_store(outcome.checkpoint_uri).list()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= written
    assert not list(tmp_path.glob("**/*.safetensors.*")) and not (tmp_path / "gs:").exists()
