"""The evaluate stage with scripted answers: regrading, search, several tasks, guards. No model is involved."""

import json
import random
import shutil
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from relex_core.collect import collect
from relex_core.decide import decide
from relex_core.errors import DataError, WindowNotReady
from relex_core.evaluate import evaluate
from relex_core.evaluate.scripted_backend import ScriptedGenerator
from relex_core.evaluate.search import part, rounds
from relex_core.report import build_report
from relex_core.spec import resolve_spec
from relex_core.storage import replace_seen
from relex_core.tables import decision_text, results_text

DATA = Path(__file__).parent / "data" / "small" / "run"
QUESTIONS = {"select": 64, "confirm": 40, "other": 40, "guard": 40}


class Run:
    """A run directory whose models know a given share of the answers."""

    def __init__(self, folder):
        self.folder, self.path = folder, folder / "run"
        shutil.copytree(DATA, folder / "trajectory")
        for name, count in QUESTIONS.items():
            rows = [{"prompt": f"{name} {i}", "answer": str(i)} for i in range(count)]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.script(folder / "trajectory/base", 0.1)
        self.script(folder / "trajectory/global_step_8/actor/huggingface", 0.3)

    def script(self, model, share, **by_file):
        """`share` of the answers are right; `by_file`: other shares for some of the files."""
        script = {}
        for name, count in QUESTIONS.items():
            known = random.Random(name).sample(range(count), round(by_file.get(name, share) * count))
            script |= {f"{name} {i}": str(i) if i in known else "x" for i in range(count)}
        (model / "script.json").write_text(json.dumps(script))

    def split(self, name, **more):
        return {"task": {"name": name, "file": f"{name}.jsonl", **more.pop("task", {})}, "batch_size": 4, **more}

    def spec(self, **evaluation):
        data = {
            "base": "trajectory/base",
            "trajectory": "trajectory",
            "run_root": "run",
            "window": {"t_cut": 8},
            "evaluation": {
                "backend": "scripted",
                "select": self.split("select"),
                "confirm": self.split("confirm"),
                **evaluation,
            },
        }
        collect(resolve_spec(data, where="spec", folder=self.folder))

    def candidate(self, name, step, share, **by_file):
        folder = self.path / "candidates" / name
        folder.mkdir(parents=True)
        self.script(folder, share, **by_file)
        provenance = {"name": name, "method": "relex", "target_step": step, "scale": 1.0}
        (folder / "relex.json").write_text(json.dumps(provenance))

    def evaluations(self):
        files = (path for path in (self.path / "eval").rglob("*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): path.read_bytes() for path in files}

    def statuses(self, candidate, task):
        lines = (self.path / "eval" / candidate / task / "samples.jsonl").read_text().splitlines()
        return [json.loads(line)["status"] for line in lines]


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path)
    run.spec()
    return run


@pytest.fixture
def asked(monkeypatch):
    """Every prompt that reaches a model, in order."""
    seen = []
    real = ScriptedGenerator.generate

    def counting(self, prompts, sampling):
        seen.extend(prompts)
        return real(self, prompts, sampling)

    monkeypatch.setattr(ScriptedGenerator, "generate", counting)
    return seen


def test_another_grader_grades_the_same_completions(run, asked, tmp_path, monkeypatch):
    run.candidate("a", 20, 0.5)
    evaluate(str(run.path))
    count, before = len(asked), run.statuses("a", "confirm-confirm")
    (tmp_path / "opposite.py").write_text("def grade(completion, answer):\n    return completion != answer\n")
    monkeypatch.syspath_prepend(tmp_path)
    other = {"task": {"grader": "opposite:grade"}}
    run.spec(select=run.split("select", **other), confirm=run.split("confirm", **other))
    results = evaluate(str(run.path))
    flipped = {"correct": "wrong", "wrong": "correct"}
    assert run.statuses("a", "confirm-confirm") == [flipped[status] for status in before]
    assert [r.mean for r in results if (r.candidate, r.split) == ("a", "select")] == [0.5]
    (tmp_path / "opposite.py").write_text(
        "def grade(completion, answer):\n    return 'timeout' if answer < '2' else True\n"
    )
    [again] = evaluate(str(run.path), candidates=["a"])
    assert (again.mean, again.timeout_rate, again.n) == (1.0, 12 / 64, 52), "another version of it grades anew"
    assert len(asked) == count, "nothing is generated again"


def test_a_corrected_gold_answer_is_graded_not_generated(run, asked):
    run.candidate("a", 20, 0.0)
    [before] = evaluate(str(run.path), candidates=["a"])
    rows = [{"prompt": f"select {i}", "answer": "x" if i < 16 else str(i)} for i in range(64)]
    (run.folder / "select.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [after] = evaluate(str(run.path), candidates=["a"])
    assert (before.mean, after.mean, len(asked)) == (0.0, 0.25, 64)
    rows[5]["prompt"] += "?"
    (run.folder / "select.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="no answer to"):
        evaluate(str(run.path), candidates=["a"])


def test_bad_golds_fail_before_anything_is_generated(run, asked):
    run.candidate("a", 20, 0.5)
    run.spec(confirm=run.split("confirm", task={"grader": "choice"}))
    with pytest.raises(DataError, match=r"40 gold answers of task confirm cannot.* 1: '0' \(it is not one letter"):
        evaluate(str(run.path))
    assert not asked


def test_rounds_of_the_search():
    def sizes(*arguments):
        return [(one.candidates, one.share) for one in rounds(*arguments)]

    assert sizes(8, 100, "auto") == [(8, 1.0)]
    assert sizes(9, 100, "auto") == [(9, 0.25), (4, 1.0)]
    assert sizes(64, 100, "auto") == [(64, 1 / 16), (16, 0.25), (4, 1.0)]
    assert sizes(64, 100, "full") == [(64, 1.0)]
    assert sizes(8, 4, "halving") == [(8, 0.25), (4, 1.0)]
    assert sizes(64, 3, "halving") == [(64, 1.0)], "too few batches to take a part of"
    assert sizes(3, 100, "halving") == [(3, 1.0)]


def test_parts_are_nested_whole_batches():
    quarter, half = part(16, 0.25, seed=3), part(16, 0.5, seed=3)
    assert (len(quarter), len(half), part(16, 1.0, 3)) == (4, 8, None)
    assert quarter < half
    assert quarter == part(16, 0.25, seed=3) != part(16, 0.25, seed=4)


def many(run, count=12):
    """Candidates from bad to good; c07 is the best."""
    for i in range(count):
        run.candidate(f"c{i:02d}", 100 + i, 0.9 if i == 7 else 0.03 * i)


def test_halving_asks_most_candidates_little_and_finds_the_best(run, asked):
    many(run)
    results = evaluate(str(run.path))
    in_full = [r.candidate for r in results if r.split == "select" and r.n == 64]
    assert len(in_full) == 2 + 4
    assert {r.n for r in results if r.split == "select"} == {16, 64}
    assert len(asked) == 2 * 64 + 12 * 16 + 4 * 48 + 3 * 40
    assert [r.candidate for r in results if r.split == "confirm"] == ["c07", "last_observed", "base"]
    decision = decide(str(run.path))
    assert (decision.decision, decision.candidate) == ("promote", "c07")
    assert [row["candidate"] for row in decision.table()][:3] == ["c07", "last_observed", "base"]
    before = run.evaluations()
    assert evaluate(str(run.path)) == results
    assert (len(asked), run.evaluations()) == (632, before)


def test_the_search_does_not_depend_on_what_is_known_already(run, asked):
    """A weak candidate that was measured in full is still judged by its part alone; and it loses no answers."""
    many(run)
    [full] = evaluate(str(run.path), candidates=["c00"])
    assert (full.n, len(asked)) == (64, 64)
    results = evaluate(str(run.path))
    assert next(r.n for r in results if (r.candidate, r.split) == ("c00", "select")) == 16
    assert evaluate(str(run.path), candidates=["c00"]) == [full]
    assert len(asked) == 632 + 48
    shutil.rmtree(run.path / "eval")
    assert evaluate(str(run.path)) == results


@pytest.mark.parametrize("after", [150, 400, 560])
def test_a_search_that_was_stopped_goes_on(run, monkeypatch, after):
    many(run)
    evaluate(str(run.path))
    whole = run.evaluations()
    shutil.rmtree(run.path / "eval")
    real, left = ScriptedGenerator.generate, [after]

    def stopping(self, prompts, sampling):
        left[0] -= len(prompts)
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(self, prompts, sampling)

    with monkeypatch.context() as patch:
        patch.setattr(ScriptedGenerator, "generate", stopping)
        with pytest.raises(KeyboardInterrupt):
            evaluate(str(run.path))
    with pytest.raises(WindowNotReady):
        decide(str(run.path))
    evaluate(str(run.path))
    assert run.evaluations() == whole


def test_regrading_in_a_search_keeps_all_answers(run, asked):
    many(run)
    evaluate(str(run.path))
    run.spec(select=run.split("select", task={"grader": "exact", "fields": {"id": "none"}}))
    assert len(asked) == 632
    rows = [{"prompt": f"select {i}", "answer": f"{i} "} for i in range(64)]  # other bytes, the same meaning
    (run.folder / "select.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate(str(run.path))
    assert len(asked) == 632


def test_a_time_out_does_not_make_a_search_look_unfinished(run, tmp_path, monkeypatch):
    """64 questions in batches of 21 are four batches, though only 63 can be graded."""
    (tmp_path / "slow.py").write_text("def grade(text, gold):\n    return 'timeout' if gold == '0' else text == gold\n")
    monkeypatch.syspath_prepend(tmp_path)
    run.spec(select=run.split("select", batch_size=21, task={"grader": "slow:grade"}))
    many(run, 9)
    results = evaluate(str(run.path))
    base = results[0]
    assert (base.n, base.asked) == (63, 64)
    assert {r.asked for r in results if r.split == "select"} == {21, 64}
    assert decide(str(run.path)).candidate == "c07"


def test_several_tasks_and_guards(run, asked):
    run.spec(
        confirm=[run.split("confirm"), run.split("other")],
        guards=[run.split("guard", margin=0.1)],
    )
    run.candidate("a", 20, 0.9, guard=0.25)
    run.candidate("b", 30, 0.2)
    results = evaluate(str(run.path))
    assert [(r.candidate, r.task, r.split) for r in results[4:]] == [
        *((name, task, "confirm") for name in ("a", "last_observed", "base") for task in ("confirm", "other")),
        ("a", "guard", "guard"),
        ("last_observed", "guard", "guard"),
    ]
    decision = decide(str(run.path))
    assert decision.decision == "keep_observed", "40 questions do not show that 0.25 is no 10 points below 0.3"
    assert [(test.task, test.held) for test in decision.tests] == [("confirm", True), ("other", True), ("guard", False)]
    run.spec(
        confirm=[run.split("confirm"), run.split("other")],
        guards=[run.split("guard", margin=0.1, require="not_refuted")],
    )
    count = len(asked)
    evaluate(str(run.path))
    assert decide(str(run.path)).decision == "promote"
    assert len(asked) == count, "a guard's margin is no part of what was generated"


def test_selection_on_two_tasks_takes_the_best_mean(run):
    run.spec(select=[run.split("select"), run.split("other")], confirm=run.split("confirm"))
    run.candidate("a", 20, 0.9, other=0.1)
    run.candidate("b", 30, 0.6, other=0.6)
    results = evaluate(str(run.path))
    assert next(r.candidate for r in results if r.split == "confirm") == "b"
    assert decide(str(run.path)).finalist == "b"


def test_several_scripted_answers_are_chosen_by_the_seed(run):
    model = run.folder / "model"
    model.mkdir()
    (model / "script.json").write_text(json.dumps({"q": ["a", "bcd"], "r": "x"}))
    from relex_core.evaluate.generate import Sampling

    def answers(seed):
        return [
            (c.text, c.tokens, c.finish_reason)
            for c in ScriptedGenerator(str(model)).generate(["q"], Sampling(1, 1, 2, seed))
        ]

    assert answers(0) == [("a", 1, "stop")]
    assert answers(1) == [("bc", 2, "length")]


def test_what_the_pipeline_took_is_measured(run):
    """Each evaluation that was worked on leaves its seconds in events.jsonl; a repetition adds none."""
    run.candidate("a", 20, 0.5)
    evaluate(str(run.path))
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    seconds = [event["seconds"] for event in events if event["event"] == "evaluated"]
    assert len(seconds) == 6
    cost = decide(str(run.path)).cost
    assert cost.pipeline_seconds["evaluate"] == pytest.approx(sum(seconds), abs=0.002)
    assert cost.pipeline_gpu_hours == pytest.approx(sum(seconds) / 3600, abs=1e-6)
    evaluate(str(run.path))
    assert decide(str(run.path)).cost == cost


def test_weights_written_anew_under_the_same_name_are_another_finalist(run, monkeypatch):
    """The questions have met all of them, whatever the file says now; also after a kill while it was replaced."""
    run.candidate("a", 20, 0.9)
    provenance = run.path / "candidates/a/relex.json"
    written = json.loads(provenance.read_text())

    def looks(dtype):
        provenance.write_text(json.dumps({**written, "dtype": dtype}))
        evaluate(str(run.path))
        return decide(str(run.path)).looks

    assert [looks(dtype) for dtype in ("float32", "bfloat16", "bfloat16", "float32")] == [1, 2, 2, 2]

    def killed(store, key, data, seen):
        if key.endswith("confirm-confirm/samples.jsonl"):
            raise KeyboardInterrupt
        return replace_seen(store, key, data, seen)

    with monkeypatch.context() as patch:
        patch.setattr("relex_core.evaluate.stage.replace_seen", killed)
        with pytest.raises(KeyboardInterrupt):
            looks("float16")
    assert looks("int8") == 3, "float16 gave no answer that anybody saw"
    assert decide(str(run.path)).tests[0].comparison.confidence == pytest.approx(1 - 0.05 / 3)
    run.spec(confirm=run.split("other"))
    assert looks("int8") == 1, "other questions"


VLLM = """
    import json, os, subprocess
    print("noise while importing")
    from types import SimpleNamespace as Space

    class SamplingParams:
        def __init__(self, **fields):
            self.fields = fields

    class LLM:
        def __init__(self, model, **fields):
            assert fields["trust_remote_code"] is False
            print("noise on stdout")
            self.log = open(os.environ["VLLM_LOG"], "a")
            engine = subprocess.Popen(["sleep", "600"])  # as the engine's core and workers, which hold the GPUs
            self.log.write(json.dumps({"pid": os.getpid(), "engine": engine.pid, "model": model, **fields}) + "\\n")

        def generate(self, prompts, parameters, use_tqdm):
            for prompt, one in zip(prompts, parameters, strict=True):
                self.log.write(json.dumps({**prompt, **one.fields}) + "\\n")
            self.log.flush()
            if len(prompts[0]["prompt_token_ids"]) > 10:
                raise ValueError("too long")
            reason = "abort" if prompts[0]["prompt_token_ids"][0] == 9 else "stop"
            output = Space(text="0579", token_ids=[0, 5, 7, 9, 12], finish_reason=reason)
            return [Space(outputs=[output]) for _ in prompts]
"""


def ended(pid, seconds=20):
    """Whether a process is gone, or a zombie that nobody has waited for, within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_the_vllm_process_and_its_protocol(tmp_path, monkeypatch):
    """With a stand-in for the library: one process for each candidate, a seed for each prompt, faults come through."""
    from relex_core.evaluate.generate import Completion, Sampling, batch_seed
    from relex_core.evaluate.vllm_backend import VllmGenerator
    from relex_core.spec import EvaluationSpec

    (tmp_path / "vllm.py").write_text(textwrap.dedent(VLLM))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VLLM_LOG", str(tmp_path / "log"))
    task = {"task": {"name": "a", "file": "a.jsonl"}}
    spec = EvaluationSpec.model_validate({"backend": "vllm", "tensor_parallel": 2, "select": task, "confirm": task})
    base = str(DATA / "base")
    generator = VllmGenerator(base, base, spec)
    sampling = [Sampling(0.7, 0.8, 6, batch_seed(0, 0, sample)) for sample in range(2)]
    answers = [generator.generate(["1+2=", "3+4="], one) for one in sampling]
    assert answers == [[Completion("0579", 5, "stop")] * 2] * 2
    with pytest.raises(DataError, match="too long"):
        generator.generate(["12345678901="], sampling[0])
    with pytest.raises(DataError, match="gave up on a prompt: abort"):
        generator.generate(["9+1="], sampling[0])
    generator.close()
    start, *prompts = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert (start["tensor_parallel_size"], start["dtype"], start["gpu_memory_utilization"]) == (2, "bfloat16", 0.85)
    assert prompts[0]["prompt_token_ids"] == [1, 10, 2, 11]
    assert (prompts[0]["temperature"], prompts[0]["top_p"], prompts[0]["max_tokens"]) == (0.7, 0.8, 6)
    assert prompts[0]["stop_token_ids"] == [12]
    assert len({prompt["seed"] for prompt in prompts[:4]}) == 4
    assert start["enable_prefix_caching"] is False
    assert not Path(f"/proc/{start['pid']}").exists(), "the process is gone, and its memory with it"
    assert ended(start["engine"]), "and so are those it started"


def test_a_grader_that_does_not_read_the_answers_is_named_wherever_its_numbers_are(tmp_path):
    """All models box their answers, and `exact`, the default, wants them bare."""
    run = Run(tmp_path)
    run.candidate("a", 20, 0.9)
    models = ("trajectory/base", "trajectory/global_step_8/actor/huggingface", "run/candidates/a")
    for script in [tmp_path / model / "script.json" for model in models]:
        boxed = {question: f"\\boxed{{{answer}}}" for question, answer in json.loads(script.read_text()).items()}
        script.write_text(json.dumps(boxed))
    run.spec()
    results = evaluate(str(run.path))
    last = next(r for r in results if (r.candidate, r.split) == ("last_observed", "select"))
    assert (last.mean, last.loose_rate) == (0, 19 / 64)
    [warning] = last.warnings
    assert "the grader exact seems to be the wrong one: set grader: math" in warning
    assert {r.candidate for r in results if r.warnings} == {"last_observed", "a"}, "the base knows too little to tell"
    decision = decide(str(run.path))
    assert warning in decision.warnings and len(decision.warnings) == 2, "one for each task"
    notice = next(notice for notice in build_report(str(run.path)).notices if notice.title == "The evaluation warns")
    assert warning in notice.text
    math = {"task": {"grader": "math"}}
    run.spec(select=run.split("select", **math), confirm=run.split("confirm", **math))
    assert not any(result.warnings for result in evaluate(str(run.path)))
    assert decide(str(run.path)).decision == "promote"


def test_a_data_set_without_a_pinned_revision_is_named_wherever_its_numbers_are(tmp_path, monkeypatch, caplog):
    rows = [{"prompt": f"confirm {i}", "answer": str(i)} for i in range(QUESTIONS["confirm"])]
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: rows))
    run = Run(tmp_path)
    run.spec(confirm={"task": {"name": "confirm", "hub": {"id": "some/questions"}}, "batch_size": 4})
    run.candidate("relex-step00020-scale1.00", 20, 0.6)
    results = evaluate(str(run.path))
    decision = decide(str(run.path))
    [warning] = decision.warnings
    assert "some/questions at its newest revision" in warning
    assert {result.split for result in results if result.warnings == (warning,)} == {"confirm"}
    assert f"warning: {warning}" in results_text(results)
    assert f"warning: {warning}" in decision_text(decision)
    assert warning in caplog.text
