"""The evaluate stage on a real run directory: real checkpoints, real SIGKILL."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from relex_core.collect import collect
from relex_core.errors import CheckpointChanged, DataError, SpecError, WindowNotReady
from relex_core.evaluate import evaluate, stage
from relex_core.evaluate.results import finalist
from relex_core.evaluate.transformers_backend import TransformersGenerator
from relex_core.spec import resolve_spec

DATA = Path(__file__).parent / "data" / "small" / "run"
FAR, NEAR = "relex-step00032-scale1.00", "relex-step00020-scale1.00"


def questions(count, seed):
    """Sums, no two alike within a seed; seeds differ in their first digit."""
    pairs = random.Random(seed).sample(range(100_000), count)
    prompts = [f"{seed}{pair % 100:02d}+{pair // 100:03d}=" for pair in pairs]
    return "".join(
        json.dumps({"prompt": p, "answer": f"{sum(map(int, p[:-1].split('+'))):04d}"}) + "\n" for p in prompts
    )


@pytest.fixture
def run(tmp_path):
    """A collected run with two candidates. The far one has the weights of step 16, the near one those of the base."""
    shutil.copytree(DATA, tmp_path / "trajectory")
    (tmp_path / "select.jsonl").write_text(questions(20, 1))
    (tmp_path / "confirm.jsonl").write_text(questions(24, 2))
    write_spec(tmp_path)
    write_candidate(tmp_path, FAR, 32, "global_step_16/actor/huggingface")
    write_candidate(tmp_path, NEAR, 20, "base")
    return tmp_path / "run"


def write_spec(folder, **select):
    def split(file, **more):
        return {"task": {"name": "addition", "file": file}, "max_tokens": 6, "batch_size": 8, **more}

    data = {
        "base": "trajectory/base",
        "trajectory": "trajectory",
        "run_root": "run",
        "window": {"t_cut": 8},
        "evaluation": {
            "device": "cpu",
            "select": split("select.jsonl", **select),
            "confirm": split("confirm.jsonl", samples=2, temperature=1.0),
        },
    }
    collect(resolve_spec(data, where="spec", folder=folder))


def write_candidate(folder, name, step, weights):
    target = folder / "run" / "candidates" / name
    shutil.copytree(folder / "trajectory" / weights, target)
    provenance = {"name": name, "method": "relex", "target_step": step, "scale": 1.0, "more": "fields"}
    (target / "relex.json").write_text(json.dumps(provenance))


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def generated(monkeypatch):
    """Counts the prompts that reach a model from here on."""
    seen = []
    real = TransformersGenerator.generate

    def counting(self, prompts, sampling):
        seen.extend(prompts)
        return real(self, prompts, sampling)

    monkeypatch.setattr(TransformersGenerator, "generate", counting)
    return seen


def test_all_select_and_only_the_finalist_confirms(run, monkeypatch):
    seen = generated(monkeypatch)
    results = evaluate(str(run))
    assert [(r.candidate, r.split) for r in results[:4]] == [
        (name, "select") for name in ("base", "last_observed", NEAR, FAR)
    ]
    means = {result.candidate: result.mean for result in results[:4]}
    best = NEAR if means[NEAR] >= means[FAR] else FAR  # a tie goes to the smaller step
    assert [(r.candidate, r.split) for r in results[4:]] == [
        (name, "confirm") for name in (best, "last_observed", "base")
    ]
    assert len(seen) == 4 * 20 + 3 * 24 * 2
    assert means["base"] == means[NEAR], "the same weights answer alike"

    rows = [json.loads(line) for line in (run / "eval/base/addition-confirm/samples.jsonl").read_text().splitlines()]
    assert [(row["id"], row["sample"]) for row in rows] == [(str(i), s) for i in range(1, 25) for s in (0, 1)]
    assert {row["status"] for row in rows} <= {"correct", "wrong", "no_answer"}
    assert all((row["status"] == "correct") == (row["text"] == row["answer"]) for row in rows if row["text"])
    assert len({row["seed"] for row in rows}) == 3 * 2  # batches x samples
    base = results[-1]
    assert (base.n, base.k) == (24, 2)
    assert base.mean == sum(row["status"] == "correct" for row in rows) / 48
    assert base.mean_tokens == sum(row["tokens"] for row in rows) / 48

    before = tree(run)
    assert evaluate(str(run)) == results
    assert (len(seen), tree(run)) == (4 * 20 + 3 * 24 * 2, before), "nothing is generated or written twice"
    for weights in run.glob("candidates/*/model.safetensors"):
        weights.unlink()  # as after a decision
    assert evaluate(str(run)) == results


def test_named_candidates_meet_the_selection_split_only(run, monkeypatch):
    seen = generated(monkeypatch)
    [result] = evaluate(str(run), candidates=[NEAR])
    assert (result.candidate, result.split, len(seen)) == (NEAR, "select", 20)
    assert not list(run.glob("eval/*/*-confirm"))
    with pytest.raises(SpecError, match=f"did you mean '{NEAR}'"):
        evaluate(str(run), candidates=[NEAR[:-1]])


def test_another_key_is_evaluated_again(run, tmp_path, monkeypatch):
    """Other sampling, other questions, another checkpoint of the same name: nothing old is taken over."""
    seen = generated(monkeypatch)

    def again():
        before = len(seen)
        [result] = evaluate(str(run), candidates=[NEAR])
        return len(seen) - before, result.mean

    first, mean = again()
    assert (first, again()) == (20, (0, mean))
    write_spec(tmp_path, max_tokens=3)
    assert again() == (20, 0.0)  # four digits do not fit into three tokens
    (tmp_path / "select.jsonl").write_text(questions(12, 3))
    assert again()[0] == 12
    shutil.rmtree(run / "candidates" / NEAR)
    write_candidate(tmp_path, NEAR, 21, "global_step_8/actor/huggingface")
    assert again()[0] == 12


# Forks after the slow imports, once for each kill; prints what every killed process left behind.
CHILD = """
import json, os, pathlib, signal, sys
import relex_core.evaluate.transformers_backend
from relex_core.evaluate import evaluate, stage
from relex_core.storage.local import LocalStore

def die_at(doomed):
    def deadly(real):
        def write(self, key, *data):
            if key.endswith(doomed):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, key, *data)
        return write
    for name in ("open_write", "create", "replace"):
        setattr(LocalStore, name, deadly(getattr(LocalStore, name)))
    evaluate(run)

run, left = sys.argv[1], []
for doomed in sys.argv[2:]:
    child = os.fork() or die_at(doomed)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    left.append(sorted(str(path.relative_to(run)) for path in pathlib.Path(run).glob("eval/*/*-confirm/**/*.*")))
print(json.dumps(left))
"""


def test_killed_and_resumed_equals_uninterrupted(run, monkeypatch):
    """Killed twice: between two batches of the finalist, and between its samples.jsonl and its summary."""
    points = ["s0001-b00001.jsonl", "-confirm/summary.json"]
    done = subprocess.run([sys.executable, "-c", CHILD, str(run), *points], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    batches, samples = json.loads(done.stdout)
    assert [name[-18:] for name in batches] == [f"s000{s}-b0000{b}.jsonl" for s, b in [(0, 0), (0, 1), (0, 2), (1, 0)]]
    assert [Path(name).name for name in samples if "batches" not in name] == ["samples.jsonl"]
    seen = generated(monkeypatch)
    evaluate(str(run))
    assert len(seen) == 2 * 24 * 2, "only base and last observed were left"
    resumed = tree(run / "eval")
    shutil.rmtree(run / "eval")
    evaluate(str(run))
    assert resumed == tree(run / "eval")
    assert not any("batches" in name for name in resumed)


def test_batches_of_another_key_are_not_taken_over(run, monkeypatch):
    seen = generated(monkeypatch)

    def broken(rows):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "to_jsonl", broken)
        with pytest.raises(KeyboardInterrupt):
            evaluate(str(run), candidates=[NEAR])
    assert len(list(run.glob("eval/*/*/batches/*"))) == 3
    (run / "candidates" / NEAR / "relex.json").write_text(
        json.dumps({"name": NEAR, "method": "relex", "target_step": 20, "scale": 0.5})
    )
    evaluate(str(run), candidates=[NEAR])
    assert len(seen) == 40
    assert not list(run.glob("eval/*/*/batches"))


def test_a_replaced_checkpoint_is_not_measured(run, tmp_path):
    weights = tmp_path / "trajectory/global_step_8/actor/huggingface/model.safetensors"
    weights.write_bytes(weights.read_bytes())
    with pytest.raises(CheckpointChanged, match="last_observed is no longer what was collected"):
        evaluate(str(run), candidates=["last_observed"])


def test_the_next_step_is_named_when_something_is_missing(run, tmp_path):
    (run / "candidates" / FAR / "relex.json").write_text("{}")
    with pytest.raises(DataError, match="provenance is wrong"):
        evaluate(str(run))
    shutil.rmtree(run / "candidates")
    with pytest.raises(WindowNotReady, match="relex extrapolate"):
        evaluate(str(run))
    spec = json.loads((run / "spec.json").read_text())
    (run / "spec.json").write_text(json.dumps({**spec, "evaluation": None}))
    with pytest.raises(SpecError, match="no evaluation section"):
        evaluate(str(run))


def test_the_confirmation_split_cannot_select(run):
    select = evaluate(str(run), candidates=[NEAR, FAR])
    steps = {NEAR: 20, FAR: 32, "average": None}
    tied = [result.model_copy(update={"mean": 0.5}) for result in select]
    assert finalist(tied, steps).candidate == NEAR
    average = tied[0].model_copy(update={"candidate": "average"})
    assert finalist([*tied, average], steps).candidate == "average"
    assert finalist([tied[0], tied[1].model_copy(update={"mean": 0.6})], steps).candidate == FAR
    with pytest.raises(ValueError, match="must not select"):
        finalist([tied[0], tied[1].model_copy(update={"split": "confirm"})], steps)


def test_importing_the_stages_needs_no_torch():
    code = "import sys, relex_core.decide, relex_core.evaluate; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_a_random_model_scores_nothing_under_the_strict_grader(run, tmp_path):
    """Digits alone are no answer; the last number may well be right, and is counted apart."""
    folder = run / "candidates" / FAR
    torch.manual_seed(0)
    tensors = {
        name: torch.randn_like(t.float()).to(t.dtype) for name, t in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    lines = [json.dumps({"prompt": f"{i}=", "answer": str(i % 10)}) + "\n" for i in range(200)]
    (tmp_path / "select.jsonl").write_text("".join(lines))
    write_spec(tmp_path, task={"name": "digits", "file": "select.jsonl", "grader": "math"})
    [result] = evaluate(str(run), candidates=[FAR])
    assert (result.mean, result.no_answer_rate, result.statuses) == (0.0, 1.0, {"no_answer": 200})
    assert 0 <= result.loose_rate < 0.3
    assert result.interval[0] == 0 < result.interval[1]
