"""The command line as real processes: what is printed where, and with which exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import SMALL, line_of_states, random_weights, write_trajectory

# Runs the command where some modules are not installed.
WITHOUT = """
import sys
absent = sys.argv.pop(1).split(",")
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in absent else found(name, package)
from relex_core.cli import main
main(prog_name="relex")
"""
# What an install without extras does not bring.
FROM_EXTRAS = ("torch", "numpy", "transformers", "safetensors", "scipy", "threadpoolctl", "jaxtyping", "kfp")

# Prints, after what the command prints, which of some modules it has loaded.
WATCHED = """
import atexit, sys
names = sys.argv.pop(1).split(",")
atexit.register(lambda: print("loaded:", *sorted(set(names) & set(sys.modules))))
from relex_core.cli import main
main(prog_name="relex")
"""

VERBS = ("demo", "inspect", "run", "collect", "fit", "extrapolate", "evaluate", "decide")


def relex(
    *arguments: str | Path, cwd: Path | None = None, extras: bool = True, absent: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    missing = absent if extras else FROM_EXTRAS
    code = ["-c", WITHOUT, ",".join(missing)] if missing else ["-m", "relex_core"]
    command = [sys.executable, *code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def printed(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def refused(result: subprocess.CompletedProcess[str], code: int) -> str:
    """The message of a command that failed as it should: on stderr, without a traceback, nothing on stdout."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A trajectory of steps 1 to 4, and a spec."""
    base = random_weights()
    write_trajectory(tmp_path, base, line_of_states(base, [1, 2, 3, 4]), [1, 2, 3, 4])
    write_spec(tmp_path)
    return tmp_path


def write_spec(root: Path, t_cut: int = 4, **sections: Any) -> None:
    window = {"t_cut": t_cut, "settle_seconds": 0}
    data = {"base": "base", "trajectory": ".", "run_root": "run", "window": window, **sections}
    (root / "relex.yaml").write_text(json.dumps(data))


def truncate(root: Path, step: int) -> None:
    path = root / f"global_step_{step}/actor/huggingface/model.safetensors"
    os.truncate(path, path.stat().st_size - 1)


def test_help_lists_the_verbs() -> None:
    text = printed(relex("--help"))
    listed = {line.split()[0] for line in text.partition("Commands:")[2].splitlines() if line.strip()}
    assert set(VERBS) <= listed
    assert printed(relex("-h")) == text


def test_the_installed_command_is_the_same_program(root: Path) -> None:
    command = Path(sys.executable).with_name("relex")
    result = subprocess.run([command, "inspect", root, "--json"], capture_output=True, text=True, check=True)
    assert result.stdout == printed(relex("inspect", root, "--json"))
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    assert version.startswith("relex, version ")


@pytest.mark.parametrize("extras", [True, False], ids=["", "no torch"])
def test_inspect_shows_complete_and_incomplete_steps_and_why(root: Path, extras: bool) -> None:
    truncate(root, 2)
    (root / "global_step_3/actor/huggingface/model.safetensors").unlink()
    text = printed(relex("inspect", ".", cwd=root, extras=extras))
    rows = {line.split()[0]: line for line in text.splitlines() if line[:1].isdigit()}
    assert rows.keys() == {"1", "2", "3", "4"}
    assert "complete" in rows["1"]
    assert "BF16" in rows["1"]
    assert "cut off" in rows["2"]
    assert "weights are missing" in rows["3"]
    assert "t_cut: 4" in text  # how to go on
    assert f"trajectory: {root}" in text


def test_inspect_as_json(root: Path) -> None:
    truncate(root, 2)
    report = json.loads(printed(relex("inspect", root, "--json")))
    assert [(step["step"], step["complete"]) for step in report["steps"]] == [
        (1, True),
        (2, False),
        (3, True),
        (4, True),
    ]
    assert "cut off" in report["steps"][1]["problems"][0]
    assert report["steps"][0]["layout"] == "verl"
    size = (root / "global_step_1/actor/huggingface/model.safetensors").stat().st_size
    assert (report["steps"][0]["bytes"], report["steps"][0]["tensors"]) == (size, 5)


def test_inspect_the_real_run() -> None:
    report = json.loads(printed(relex("inspect", SMALL / "run", "--json")))
    assert [step["step"] for step in report["steps"]] == list(range(1, 17))
    assert all(step["complete"] for step in report["steps"])


def test_a_stage_loads_only_what_it_needs(root: Path) -> None:
    """Each of these takes as long to load as a small stage to work; none of them is missed."""

    def loaded(names: str, *arguments: str | Path) -> list[str]:
        command = [sys.executable, "-c", WATCHED, names, *map(str, arguments)]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=120)
        return result.stdout.splitlines()[-1].split()[1:]

    (root / "relex.json").write_text((root / "relex.yaml").read_text())
    heavy = "google,numpy,numpy.ma,rich.console,scipy,torch,yaml"
    assert loaded(f"{heavy},asyncio,jaxtyping,pydantic", "collect", "relex.json") == ["pydantic"]
    assert loaded(heavy, "collect", "relex.yaml", "--out", "other") == ["yaml"]
    assert loaded(f"{heavy},asyncio,jaxtyping", "fit", "run") == ["numpy"]
    assert loaded(f"{heavy},asyncio,jaxtyping", "extrapolate", "run") == ["numpy"]


def test_collect(root: Path) -> None:
    text = printed(relex("collect", "relex.yaml", cwd=root))
    assert f"next: relex fit {root}/run" in text
    window = json.loads((root / "run/window.json").read_text())
    elsewhere = printed(relex("collect", "relex.yaml", "--out", "other", "--json", cwd=root, extras=False))
    assert json.loads(elsewhere) == window  # without torch, too
    assert (root / "other/spec.json").exists()


def test_dry_run_tells_the_plan_and_writes_nothing(root: Path) -> None:
    write_spec(root, candidates={"target_steps": [8, 20], "scales": [1.0, 0.5]})
    before = contents(root)
    text = printed(relex("run", "relex.yaml", "--dry-run", cwd=root))
    plan = json.loads(printed(relex("run", "relex.yaml", "--dry-run", "--json", cwd=root, extras=False)))
    assert contents(root) == before
    assert not (root / "run").exists()
    names = [f"relex-step{step:05d}-scale{scale}" for step in (8, 20) for scale in ("1.00", "0.50")]
    assert plan["candidates"] == names
    assert all(name in text for name in names)
    weights = sum(tensor.numel() for tensor in random_weights().values())
    assert (plan["steps"], plan["tensors"], plan["weights"]) == ([1, 2, 3, 4], 5, weights)
    assert plan["window_bytes"] == 4 * 2 * weights
    assert plan["fit_reads"] == 5 * 2 * weights  # the window once, and the base
    assert plan["read_twice"] == []
    assert plan["fit_writes"] == 4 * weights
    assert plan["candidate_writes"] == 4 * 2 * weights
    assert plan["memory"] <= 4 * 2**30


def test_dry_run_refuses_what_the_run_would_refuse(root: Path) -> None:
    write_spec(root, fit={"trailing_averages": [5]})
    assert "the last 5 checkpoints" in refused(relex("run", "relex.yaml", "--dry-run", cwd=root), 2)
    write_spec(root, t_cut=5)
    refused(relex("run", "relex.yaml", "--dry-run", cwd=root), 3)


def test_run_goes_from_checkpoints_to_candidates(root: Path) -> None:
    write_spec(root, candidates={"target_steps": [8]})
    result = relex("run", "relex.yaml", "--json", cwd=root)
    data = json.loads(printed(result))
    assert data["candidates"] == ["relex-step00008-scale1.00"]
    assert data["decision"] is None
    assert data["window_digest"] == json.loads((root / "run/window.json").read_text())["digest"]
    assert (root / "run/candidates/relex-step00008-scale1.00/model.safetensors").exists()
    assert "fit: done" in result.stderr  # log lines, as this is no terminal
    before = contents(root)
    quiet = relex("--quiet", "run", "relex.yaml", "--json", cwd=root)
    assert json.loads(printed(quiet)) == data
    assert quiet.stderr == ""
    assert contents(root) == before  # nothing is done twice


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["run"], "Missing argument 'SPEC'"),
        (["run", "absent.yaml"], "'absent.yaml' does not exist"),
        (["run", "."], "is a directory"),
        (["collect", "relex.yaml", "--nope"], "No such option"),
        (["collect", "relex.yaml", "--out", "s3://bucket/run"], "unknown scheme s3://"),
        (["inspect", "s3://bucket/run"], "unknown scheme s3://"),
        (["fit", "s3://bucket/run"], "unknown scheme s3://"),
        (["extrapolate", ""], "an empty location"),
        (["inspect", "gs:/bucket/run"], "a URI without its two slashes"),
        (["collect", "relex.yaml", "--out", "gs:/bucket/run"], "gs://BUCKET/FOLDER"),
        (["extrapolate", "run", "--target-step", "-5"], "-5 is not in the range"),
        (["run", "relex.yaml", "--shards", "2"], "--shards needs --engine kfp-local"),
        (["run", "relex.yaml", "--dry-run", "--shards", "1"], "--shards needs --engine kfp-local"),
        (["inspect", ".", "--base", "base"], "--base needs --probe"),
        (["inspect", ".", "--fraction", "0.01"], "--fraction needs --probe"),  # the default, but typed
        (["inspect", ".", "--seed", "1"], "--seed needs --probe"),
        (["evaluate", "run", "--lm-eval-path", "."], "--lm-eval-path needs --lm-eval"),
        (["evaluate", "run", "--lm-eval", "x", "--first-round", "--candidate", "c"], "does not go with --lm-eval"),
        (["extrapolate", "run", "--target-step", "9" * 20], "is not in the range 0<=x<9007199254740992"),
        (["extrapolate", "run", "--target-step", str(2**53)], "is not in the range 0<=x<9007199254740992"),
    ],
)
def test_bad_usage_is_status_2(root: Path, arguments: list[str], message: str) -> None:
    assert message in refused(relex(*arguments, cwd=root), 2)


def test_a_bad_spec_is_status_2_with_all_faults(root: Path) -> None:
    write_spec(root, t_cut=0, fitt={}, fit={"rnk": 1})
    for verb in (["collect"], ["run"]):
        message = refused(relex(*verb, "relex.yaml", cwd=root), 2)
        assert message.startswith("SpecError: the spec is wrong:\n")
        assert "did you mean 'rank'?" in message
        assert "did you mean 'fit'?" in message
        assert "window.t_cut" in message
        assert "where:    relex.yaml" in message
    assert not (root / "run").exists()


def test_out_may_not_be_the_base_or_the_trajectory(root: Path) -> None:
    before = contents(root)
    for out in ("base", "base/run", "."):
        assert "run_root: this" in refused(relex("collect", "relex.yaml", "--out", out, cwd=root), 2)
    assert contents(root) == before


def test_a_run_directory_of_another_spec_is_status_2(root: Path) -> None:
    printed(relex("collect", "relex.yaml", cwd=root))
    write_spec(root, t_cut=3)
    assert "belongs to another spec: window" in refused(relex("collect", "relex.yaml", cwd=root), 2)


def test_a_stage_before_its_input_is_status_3(root: Path) -> None:
    assert "next:     relex collect SPEC" in refused(relex("fit", "run", cwd=root), 3)


def test_a_window_that_is_not_complete_is_status_3(root: Path) -> None:
    write_spec(root, t_cut=5)
    message = refused(relex("collect", "relex.yaml", cwd=root), 3)
    assert message.startswith("WindowNotReady: the window is not complete: the last complete checkpoint is step 4")
    assert "expected: a complete checkpoint at step 5 or later" in message
    assert "next:" in message
    assert not (root / "run/window.json").exists()
    refused(relex("inspect", root / "base"), 3)


def test_a_checkpoint_still_being_written_is_status_3(root: Path) -> None:
    truncate(root, 4)
    refused(relex("collect", "relex.yaml", cwd=root), 3)


def test_wrong_data_are_status_4(root: Path) -> None:
    truncate(root, 2)
    message = refused(relex("collect", "relex.yaml", cwd=root), 4)
    assert message.startswith("WindowError: ")
    assert "step 2: model.safetensors is cut off" in message


def test_wrong_questions_are_refused_before_the_fit(root: Path) -> None:
    select, confirm = (
        {"task": {"name": "sums", "file": file}, "max_tokens": 4} for file in ("none.jsonl", "more.jsonl")
    )
    write_spec(root, evaluation={"select": select, "confirm": confirm})
    assert "none.jsonl" in refused(relex("run", "relex.yaml", cwd=root), 4)
    assert (root / "run" / "window.json").exists() and not (root / "run" / "fit").exists()


def missing_for(
    root: Path, command: str, *, absent: tuple[str, ...] = (), grader: str = "exact", **evaluation: Any
) -> str:
    """What a run or a watch refuses before it reads weights, or waits for them."""
    sums = ("1+1", "1+2", "1+3"), ("2+1", "2+2", "2+3")
    for name, questions in zip(("select", "confirm"), sums, strict=True):
        lines = [json.dumps({"prompt": question, "answer": "1"}) for question in questions]
        (root / f"{name}.jsonl").write_text("\n".join(lines))
        evaluation[name] = {"task": {"name": "sums", "file": f"{name}.jsonl", "grader": grader}, "max_tokens": 4}
    write_spec(root, t_cut=40 if command == "watch" else 4, evaluation=evaluation)
    options = ("--then", "run", "--timeout", "1") if command == "watch" else ()
    message = refused(relex("--quiet", command, "relex.yaml", *options, cwd=root, absent=absent), 2)
    assert not (root / "run" / "fit").exists()
    return message


@pytest.mark.parametrize("command", ["run", "watch"])
@pytest.mark.parametrize("module", ["torch", "transformers", "scipy", "math_verify"])
def test_what_an_evaluation_lacks_is_told_before_the_fit(root: Path, command: str, module: str) -> None:
    message = missing_for(root, command, absent=(module,), grader="math")
    assert module.replace("_", "-") in message and 'pip install ".[eval]"' in message


@pytest.mark.parametrize("command", ["run", "watch"])
def test_a_backend_or_a_grader_that_is_not_there_is_told_before_the_fit(root: Path, command: str) -> None:
    message = missing_for(root, command, absent=("vllm",), backend="vllm")
    assert "vllm is not installed" in message and 'pip install ".[vllm]"' in message
    message = missing_for(root, command, grader="nomod:fn")
    assert "the grader's module nomod cannot be found" in message and "nomod:fn" in message


def test_publish_without_an_evaluation_says_what_the_spec_lacks(root: Path) -> None:
    printed(relex("collect", "relex.yaml", cwd=root))
    assert "no evaluation section" in refused(relex("publish", "run", cwd=root), 2)


def test_storage_that_fails_is_status_5(root: Path) -> None:
    (root / "a_file").write_text("not a folder")
    message = refused(relex("collect", "relex.yaml", "--out", "a_file/run", cwd=root), 5)
    assert str(root / "a_file/run") in message and "a part of this path is a file, not a folder" in message


def test_a_file_in_the_place_of_a_folder_is_status_2(root: Path) -> None:
    for command in ("fit", "forecast", "extrapolate", "evaluate", "decide", "report", "publish", "merge"):
        message = refused(relex(command, "relex.yaml", cwd=root), 2)
        assert "this is a file, not a run directory" in message and str(root / "relex.yaml") in message
        assert "RUN is the directory; SPEC belongs to collect, run, watch and gate" in message
    (root / "a_file").write_text("not a folder")
    for command in (("fit", "a_file"), ("collect", "relex.yaml", "--out", "a_file")):
        message = refused(relex(*command, cwd=root), 2)
        assert "this is a file, not a run directory" in message and "SPEC belongs" not in message
    assert "this is a file, not a trajectory" in refused(relex("inspect", "relex.yaml", cwd=root), 2)


@pytest.mark.parametrize("command", [("collect",), ("run",), ("watch", "--then", "print", "--timeout", "2")])
def test_a_trajectory_that_is_a_file_is_not_waited_for(root: Path, command: tuple[str, ...]) -> None:
    (root / "a_file").write_text("no folder")
    write_spec(root, trajectory="a_file")
    message = refused(relex("--quiet", command[0], "relex.yaml", *command[1:], cwd=root), 2)
    assert "this is a file, not a trajectory" in message and str(root / "a_file") in message


def test_without_torch_the_fit_says_what_to_install(root: Path) -> None:
    printed(relex("collect", "relex.yaml", cwd=root, extras=False))
    message = refused(relex("fit", "run", cwd=root, extras=False), 2)
    assert 'pip install ".[fit]"' in message


@pytest.mark.parametrize(("command", "extra"), [("evaluate", "eval"), ("decide", "report"), ("publish", "report")])
def test_a_command_names_the_extra_that_is_enough_for_it(root: Path, command: str, extra: str) -> None:
    printed(relex("collect", "relex.yaml", cwd=root, extras=False))
    assert f'pip install ".[{extra}]"' in refused(relex(command, "run", cwd=root, extras=False), 2)


@pytest.mark.parametrize("module", ["safetensors", "tokenizers", "transformers"])
def test_a_demo_that_lacks_a_library_says_which_extra_brings_it(tmp_path: Path, module: str) -> None:
    message = refused(relex("demo", "--out", "demo", cwd=tmp_path, absent=(module,)), 2)
    assert message.startswith(f"{module} is not installed") and 'pip install ".[eval]"' in message


def test_a_watch_says_before_it_waits_what_its_action_needs(root: Path) -> None:
    write_spec(root, t_cut=40)  # will never be complete: without the look ahead this would time out, exit 3
    waits = ("watch", "relex.yaml", "--timeout", "1", "--then")
    assert 'pip install ".[fit]"' in refused(relex(*waits, "run", cwd=root, extras=False), 2)
    assert 'pip install ".[kfp]"' in refused(relex(*waits, "kfp", cwd=root, extras=False), 2)


@pytest.mark.parametrize("command", ["run", "watch"])
def test_without_numpy_an_evaluation_names_the_extra_that_is_enough(root: Path, command: str) -> None:
    assert 'pip install ".[eval]"' in missing_for(root, command, absent=FROM_EXTRAS)


def test_a_run_says_that_its_window_has_gaps(tmp_path: Path) -> None:
    base, steps = random_weights(), [1, 2, 3, 6]
    write_trajectory(tmp_path, base, line_of_states(base, steps), steps)
    write_spec(tmp_path, t_cut=6)
    result = relex("--quiet", "run", "relex.yaml", cwd=tmp_path)
    assert result.returncode == 0 and "gaps in the window, not filled: 3 to 6" in result.stderr


def test_names_that_no_terminal_can_print_do_not_break_inspect(root: Path) -> None:
    index = root / "global_step_2/actor/huggingface/model.safetensors.index.json"
    index.with_name("model.safetensors").unlink()
    index.write_text(r'{"weight_map": {"\ud800": "\udfff.safetensors"}}')
    assert "cannot be understood" in printed(relex("inspect", root))
