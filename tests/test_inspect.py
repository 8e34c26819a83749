"""`relex inspect`: real processes, on a folder and on a real fake-gcs-server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from gcs.server import fake_gcs, new_bucket  # noqa: F401
from support import CONFIG, line_of_states, random_weights, write_checkpoint, write_trajectory

from relex_core.inspect import inspect_trajectory
from relex_core.spec import load_spec, resolve_layout
from relex_core.storage import open_store, write_bytes
from relex_core.tables import trajectory_text


def relex(*arguments: object, code: int = 0, **environment: str) -> str:
    """What the command prints: on stdout if it succeeds, else on stderr."""
    command = [sys.executable, "-m", "relex_core", *map(str, arguments)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment}
    )
    assert result.returncode == code, result.stderr
    return result.stderr if code else result.stdout


def trajectory(root: Path, layout: str = "openrlhf", steps: tuple[int, ...] = (1, 2, 3)) -> Path:
    base = random_weights()
    write_checkpoint(root.parent / "base", base)
    return write_trajectory(root, base, line_of_states(base, steps), steps, layout)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_paths_and_file_uris(tmp_path: Path, scheme: str) -> None:
    root = trajectory(tmp_path / "my runs")
    uri = f"{scheme}{str(root).replace(' ', '%20') if scheme else root}"
    report = json.loads(relex("inspect", uri, "--json"))
    assert report["trajectory"] == str(root)
    assert [(step["step"], step["layout"], step["complete"]) for step in report["steps"]] == [
        (step, "OpenRLHF", True) for step in (1, 2, 3)
    ]
    assert report["other_folders"] == ["base"]


def test_a_bucket(tmp_path: Path, fake_gcs: str) -> None:  # noqa: F811
    trajectory(tmp_path / "run")
    environment = {"STORAGE_EMULATOR_HOST": fake_gcs}
    os.environ |= environment
    uri = f"gs://{new_bucket(fake_gcs)}/runs/math 17"
    try:
        store = open_store(uri)
        for path in (tmp_path / "run").rglob("*"):
            if path.is_file():
                write_bytes(store, path.relative_to(tmp_path / "run").as_posix(), path.read_bytes())
    finally:
        del os.environ["STORAGE_EMULATOR_HOST"]
    for given in (uri, uri + "/", uri.replace("/runs", "/x/../runs")):
        report = json.loads(relex("inspect", given, "--json", **environment))
        assert report["trajectory"] == uri
        assert [step["complete"] for step in report["steps"]] == [True] * 3


def test_the_spec_it_shows_is_a_spec_that_runs(tmp_path: Path) -> None:
    root = trajectory(tmp_path / "run")
    text = relex("inspect", root)
    shown = re.search(r"write relex.yaml:\n\n(.*)\nand type: relex run relex.yaml --dry-run", text, re.DOTALL)
    assert shown
    path = tmp_path / "relex.yaml"
    path.write_text(shown[1].replace("BASE_MODEL", "base") + "  settle_seconds: 0\n")
    assert load_spec(path).window.t_cut == 3
    window = json.loads(relex("collect", path, "--out", tmp_path / "out", "--json"))
    assert [checkpoint["step"] for checkpoint in window["checkpoints"]] == [1, 2, 3]


def test_a_layout_can_be_tried_and_goes_into_the_spec(tmp_path: Path) -> None:
    base = random_weights()
    for step, state in zip((5, 10), line_of_states(base, (5, 10)), strict=True):
        write_checkpoint(tmp_path / "run" / f"iter_{step:05d}" / "hf", state)
    (tmp_path / "run" / "iter_00005" / "DONE").touch()
    message = relex("inspect", tmp_path / "run", code=3)
    assert "other folders: iter_00005, iter_00010" in message and "docs/trainers.md" in message
    options = ("--step-folder", "iter_{step}", "--weights", "hf", "--marker", "DONE")
    report = json.loads(relex("inspect", tmp_path / "run", *options, "--json"))
    assert [(step["step"], step["complete"], step["problems"]) for step in report["steps"]] == [
        (5, True, []),
        (10, False, ["DONE, the marker of your layout, is not there"]),
    ]
    text = relex("inspect", tmp_path / "run", *options)
    spec = yaml.safe_load(text[text.index("base:") : text.index("and type:")])
    assert spec["layout"] == {"step_folder": "iter_{step}", "weights": "hf", "marker": "DONE"}
    assert spec["window"] == {"t_cut": 5}


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--weights", "hf"), "--weights and --marker need --step-folder"),
        (("--step-folder", "iter_N"), "step_folder: write {step}, just so and once"),
        (("--step-folder", "iter_{step}", "--weights", ".."), "weights: this is a path inside the step folder"),
    ],
)
def test_a_wrong_pattern_is_bad_usage(tmp_path: Path, options: tuple[str, ...], fault: str) -> None:
    assert fault in relex("inspect", tmp_path, *options, code=2)


def test_what_is_complete_what_not_and_why(tmp_path: Path) -> None:
    root = trajectory(tmp_path / "run", steps=(1, 2, 3, 4))
    whole = (root / "global_step2_hf" / "model.safetensors").read_bytes()
    (root / "global_step2_hf" / "model.safetensors").write_bytes(whole[:-1])
    (root / "global_step3_hf" / "model.safetensors").unlink()
    report = inspect_trajectory(str(root))
    assert [(s.complete, s.settled) for s in report.steps] == [
        (True, True),
        (False, False),
        (False, False),
        (True, False),  # the newest, written just now, without a marker
    ]
    text = trajectory_text(report)
    assert "complete, if it stays as it is" in text
    assert "model.safetensors is cut off" in text and "weights are missing" in text
    assert "Complete: 2 of 4 steps" in text
    assert "No steps: base." in text
    assert yaml.safe_load(report.skeleton)["window"] == {"t_cut": 4, "skip_incomplete": True}


def test_no_complete_step_gives_no_spec(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint-5", {}, config=CONFIG)
    report = inspect_trajectory(str(tmp_path))
    assert report.last_complete is None and report.skeleton == ""
    assert "To go on" not in trajectory_text(report)


def test_nemo_rl_s_steps_are_shown_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "step_5" / "policy" / "weights").mkdir(parents=True)
    (tmp_path / "step_5" / "policy" / "weights" / "__0_0.distcp").write_bytes(b"x")
    text = relex("inspect", tmp_path)
    assert "NeMo-RL" in text and "torch DCP" in text and "convert_dcp_to_hf.py" in text


def test_the_same_layout_by_option_and_by_table(tmp_path: Path) -> None:
    root = trajectory(tmp_path / "run")
    own = inspect_trajectory(str(root), resolve_layout("global_step{step}_hf"))
    known = inspect_trajectory(str(root))
    assert [s.model_copy(update={"layout": ""}) for s in own.steps] == [
        s.model_copy(update={"layout": ""}) for s in known.steps
    ]
