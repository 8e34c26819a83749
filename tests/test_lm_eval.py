"""lm-eval's harness for real, offline: a local task on the tiny model. Opt-in: pip install ".[lmeval]"."""

import importlib.util
import json
import random
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from relex_core.cli import main
from relex_core.collect import collect
from relex_core.decide import decide
from relex_core.errors import DataError, WindowNotReady
from relex_core.evaluate import evaluate
from relex_core.evaluate.harness_run import run_harness
from relex_core.spec import resolve_spec

DATA = Path(__file__).parent / "data" / "small" / "run"
NAME = "relex-step00032-scale1.00"
TASK = "tiny_sums"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason='needs pip install ".[lmeval]"'),
]


def questions(count, first):
    rng = random.Random(first)
    prompts = rng.sample([f"{first}{a:02d}+{b}=" for a in range(100) for b in range(100, 1000)], count)
    return "".join(
        json.dumps({"prompt": p, "answer": f"{sum(map(int, p[:-1].split('+'))):04d}"}) + "\n" for p in prompts
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run of which base, last observed checkpoint and one candidate are evaluated; and a task of the harness."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    shutil.copytree(DATA, tmp_path / "trajectory")
    for number, name in enumerate(("select", "confirm", "sums"), start=1):
        (tmp_path / f"{name}.jsonl").write_text(questions(40, number))
    candidate = tmp_path / "run" / "candidates" / NAME
    shutil.copytree(tmp_path / "trajectory" / "global_step_16" / "actor" / "huggingface", candidate)
    (candidate / "relex.json").write_text(
        json.dumps({"name": NAME, "method": "relex", "target_step": 32, "scale": 1.0})
    )
    definition = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "sums.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["<eos>"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.5},
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sums.yaml").write_text(yaml.safe_dump(definition))
    write_spec(tmp_path)
    return tmp_path


def write_spec(folder, guards=()):
    def split(file):
        return {"task": {"name": "addition", "file": file}, "max_tokens": 6, "batch_size": 8}

    data = {
        "base": "trajectory/base",
        "trajectory": "trajectory",
        "run_root": "run",
        "window": {"t_cut": 8},
        "evaluation": {
            "device": "cpu",
            "select": split("select.jsonl"),
            "confirm": split("confirm.jsonl"),
            "harness_guards": list(guards),
        },
    }
    collect(resolve_spec(data, where="spec", folder=folder))


def test_the_harness_measures_and_guards(folder):
    run = str(folder / "run")
    evaluate(run)
    before = decide(run)
    assert before.harness == ()

    write_spec(folder, [{"task": TASK, "metric": "exact_match", "margin": 0.9}])
    with pytest.raises(WindowNotReady, match=rf"(?s)tiny_sums has not been run on {NAME}.*--lm-eval tiny_sums"):
        decide(run)

    arguments = ["evaluate", run, "--lm-eval", TASK, "--lm-eval-path", str(folder / "tasks"), "--json"]
    answer = CliRunner().invoke(main, arguments)
    assert answer.exit_code == 0, answer.output
    results = {result["candidate"]: result for result in json.loads(answer.stdout)}
    assert list(results) == ["base", "last_observed", NAME]
    for name, result in results.items():
        samples = (folder / "run" / "eval" / name / f"{TASK}-lm-eval" / "samples.jsonl").read_text().splitlines()
        scores = [json.loads(line)["scores"]["exact_match,none"] for line in samples]
        metric = result["metrics"]["exact_match,none"]
        assert (result["n"], len(scores), result["version"]) == (40, 40, "1.5")
        assert metric["value"] == pytest.approx(sum(scores) / 40)
        assert metric["standard_error"] > 0
    assert len({result["metrics"]["exact_match,none"]["value"] for result in results.values()}) > 1

    guarded = decide(run)
    assert [standing.candidate for standing in guarded.harness] == [NAME, "last_observed", "base"]
    test = guarded.tests[-1]
    assert (test.split, test.threshold, test.held) == ("guard", -0.9, True)
    expected = [results[name]["metrics"]["exact_match,none"]["value"] for name in (NAME, "last_observed")]
    assert test.comparison.difference == pytest.approx(expected[0] - expected[1])
    assert guarded.decision == before.decision
    write_spec(folder, [{"task": TASK, "metric": "exact_match", "margin": 0.0}])
    strict = decide(run)
    assert (strict.tests[-1].held, strict.decision) == (strict.tests[-1].comparison.interval[0] > 0, "keep_observed")


def test_what_is_finished_is_not_run_again_and_unknown_tasks_are_refused(folder):
    run = str(folder / "run")
    first = run_harness(run, [TASK], candidates=["base"], include=str(folder / "tasks"))
    (folder / "trajectory" / "base" / "model.safetensors").rename(folder / "elsewhere")
    with pytest.raises(DataError):
        run_harness(run, [TASK, "arc_easy"], candidates=["base"], include=str(folder / "tasks"))
    (folder / "elsewhere").rename(folder / "trajectory" / "base" / "model.safetensors")
    times = {path: path.stat().st_mtime_ns for path in (folder / "run" / "eval").rglob("*-lm-eval/*")}
    assert run_harness(run, [TASK], candidates=["base"], include=str(folder / "tasks")) == first
    assert times == {path: path.stat().st_mtime_ns for path in (folder / "run" / "eval").rglob("*-lm-eval/*")}
    with pytest.raises(DataError, match=r"no_such_task"):
        run_harness(run, ["no_such_task"], include=str(folder / "tasks"))
