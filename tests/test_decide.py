"""Decisions from written samples: no model is involved."""

import json
import random

import pytest

from relex_core import layout
from relex_core.decide import decide, delete_losers
from relex_core.errors import DataError, SpecError, WindowNotReady
from relex_core.evaluate import evaluation_key
from relex_core.evaluate.candidates import references, written_candidates
from relex_core.evaluate.results import outcomes, summarise
from relex_core.evaluate.samples import to_jsonl
from relex_core.evaluate.statistics import paired_difference
from relex_core.evaluate.tasks import Question, Task, splits_of
from relex_core.manifest import BaseRecord, CheckpointRecord, WindowManifest
from relex_core.spec import resolve_spec

FAR, NEAR = "relex-step00500-scale1.00", "relex-step00100-scale1.00"
CONDITIONS = {"backend": "transformers", "device": "cpu", "dtype": "float32", "versions": {"torch": "2"}}
LAST_STEP = 75
STATUS = {0: "wrong", 1: "correct", None: "timeout"}


class Run:
    """A run directory with two candidates and evaluations with known outcomes."""

    def __init__(self, folder):
        self.path = folder / "run"
        self.manifest = WindowManifest(
            base=BaseRecord(uri=str(folder / "base"), files=()),
            checkpoints=tuple(
                CheckpointRecord(step=step, uri=f"{folder}/step_{step}", files=()) for step in (25, LAST_STEP)
            ),
            tensors=(),
            t_cut=LAST_STEP,
        ).with_digest()
        self.write(layout.WINDOW, self.manifest.model_dump_json())
        self.spec()
        self.candidate(FAR, 500)
        self.candidate(NEAR, 100)

    def write(self, key, text):
        path = self.path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def spec(self, **sections):
        split = {"task": {"name": "addition", "file": "t.jsonl"}}
        data = {
            "base": "base",
            "trajectory": "trajectory",
            "run_root": str(self.path),
            "window": {"t_cut": LAST_STEP},
            "evaluation": {"select": split, "confirm": split},
            "cost": {"gpu_hours_per_step": 0.5},
            **sections,
        }
        self.resolved = resolve_spec(data, where="spec", folder=self.path)
        self.write(layout.SPEC, self.resolved.model_dump_json())

    def candidate(self, name, step, scale=1.0):
        provenance = {"name": name, "method": "relex", "target_step": step, "scale": scale}
        self.write(f"candidates/{name}/relex.json", json.dumps(provenance))
        self.write(f"candidates/{name}/config.json", "{}")
        self.write(f"candidates/{name}/model-00001-of-00001.safetensors", "weights")
        self.write(f"candidates/{name}/model.safetensors.index.json", "{}")

    def evaluation(self, name, split, correct, sha256=None, task="addition", **conditions):
        """`correct`: one 0 or 1 a question, None for a time-out of the grader."""
        known = {
            c.name: c for c in [*references(self.manifest), *written_candidates(str(self.path), self.manifest.digest)]
        }
        spec = next(one for one in splits_of(self.resolved.evaluation, split) if one.task.name == task)
        sha256 = sha256 or f"file of {split}"
        questions = Task(task, "t.jsonl", (Question(sha256, "1", "1"),), sha256)
        key = evaluation_key(
            known[name].digest, self.manifest.digest, split, questions, spec, {**CONDITIONS, **conditions}
        )
        rows = [
            {"id": str(i), "sample": 0, "tokens": 5, "finish_reason": "stop", "status": STATUS[c]}
            for i, c in enumerate(correct)
        ]
        samples = to_jsonl(rows)
        folder = layout.evaluation(name, task, split)
        self.write(f"{folder}/samples.jsonl", samples.decode())
        self.write(f"{folder}/summary.json", summarise(name, split, key, rows, samples).model_dump_json())
        return outcomes(rows)


def answers(rate, n=400, seed=0):
    """`rate` of the questions correct. The easier ones are the same for every rate, as for related models."""
    difficulty = random.Random(seed)
    return [int(difficulty.random() < rate) for _ in range(n)]


@pytest.fixture
def run(tmp_path):
    """NEAR wins the selection by far; on confirm nothing is written yet but for the base."""
    run = Run(tmp_path)
    for name, rate in {"base": 0.1, "last_observed": 0.3, FAR: 0.35, NEAR: 0.6}.items():
        run.evaluation(name, "select", answers(rate))
    run.evaluation("base", "confirm", answers(0.1, seed=1))
    return run


def confirm(run, finalist, last, name=NEAR):
    return run.evaluation(name, "confirm", finalist), run.evaluation("last_observed", "confirm", last)


def test_a_confirmed_gain_is_promoted(run):
    first, second = confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    decision = decide(str(run.path))
    assert (decision.decision, decision.candidate, decision.step, decision.scale) == ("promote", NEAR, 100, 1.0)
    assert (decision.training_steps_saved, decision.cost.gpu_hours_saved) == (25, 12.5)
    against_last, against_base, last_against_base = decision.evidence
    expected = paired_difference(first, second)
    assert against_last.interval == expected.interval
    assert against_last.interval[0] > 0
    assert (against_last.candidate, against_last.reference) == (NEAR, "last_observed")
    assert (against_base.reference, last_against_base.candidate) == ("base", "last_observed")
    assert against_base.difference > against_last.difference > 0


@pytest.mark.parametrize("base, verdict", [(0.1, "promote"), (0.5, "keep_observed"), (0.7, "keep_observed")])
def test_undoing_what_rl_did_is_no_progress(run, base, verdict):
    """RL fell from the base's accuracy to 0.3; the finalist is back at 0.5."""
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    run.evaluation("base", "confirm", answers(base, seed=1))
    decision = decide(str(run.path))
    assert decision.decision == verdict
    assert decision.tests[0].held, "it is better than the last observed checkpoint all the same"
    [against_base] = decision.base_tests
    assert (against_base.comparison.reference, against_base.threshold) == ("base", 0)
    assert against_base.held == (verdict == "promote")
    assert ("RL lowered the accuracy" in decision.reason) == (base > 0.3)
    assert ("better than both" in decision.reason) == (base == 0.7)
    run.spec(decision={"beat_base": False})
    free = decide(str(run.path))
    assert (free.decision, free.base_tests) == ("promote", ())


def test_of_two_tasks_the_base_may_be_beaten_on_one_and_must_win_none(run):
    two_tasks(run)
    better, equal, worse = pair_of(30, 0), pair_of(3, 3), pair_of(0, 30)
    for words, verdict in ((equal, "promote"), (worse, "keep_observed")):
        confirm_both(run, addition=better, words=equal)
        for task, (finalist, base) in {"addition": better, "words": words}.items():
            run.evaluation(NEAR, "confirm", finalist, task=task)
            run.evaluation("base", "confirm", base, task=task)
        run.evaluation("last_observed", "confirm", words[0], task="words")
        assert decide(str(run.path)).decision == verdict


def test_the_file_is_the_decision_and_the_same_bytes_every_time(run):
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    decision = decide(str(run.path))
    first = (run.path / "decision.json").read_bytes()
    assert type(decision).model_validate_json(first) == decision
    assert {"decision", "candidate", "step", "scale", "evidence", "training_steps_saved", "cost"} <= set(
        json.loads(first)
    )
    decide(str(run.path))
    assert (run.path / "decision.json").read_bytes() == first


@pytest.mark.parametrize("finalist, last", [(0.3, 0.3), (0.31, 0.3), (0.2, 0.3), (0.0, 0.0), (1.0, 1.0)])
def test_a_tie_a_small_gain_or_a_loss_keeps_what_was_observed(run, finalist, last):
    """Whatever the selection said: there NEAR is ahead by 30 points."""
    confirm(run, answers(finalist, seed=1), [*answers(last, seed=1)[:-1], int(last > 0)])
    decision = decide(str(run.path))
    assert (decision.decision, decision.candidate, decision.step) == ("keep_observed", "last_observed", LAST_STEP)
    assert (decision.finalist, decision.scale, decision.training_steps_saved) == (NEAR, None, 0)
    assert decision.cost.gpu_hours_saved == 0


def test_the_whole_interval_must_lie_above_the_margin(run):
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    low, high = decide(str(run.path)).evidence[0].interval
    for min_gain, verdict in ((low - 1e-6, "promote"), (low, "keep_observed"), ((low + high) / 2, "keep_observed")):
        run.spec(decision={"min_gain": min_gain})
        assert decide(str(run.path)).decision == verdict
    run.spec(decision={"confidence": 0.999999999})
    assert decide(str(run.path)).evidence[0].interval[0] < low


def test_agreement_does_not_prove_non_inferiority_on_few_questions(run):
    """With a negative margin, ten equal answers say little and 400 say enough."""
    run.spec(decision={"min_gain": -0.02})
    for n, verdict in ((10, "keep_observed"), (400, "promote")):
        run.evaluation("base", "confirm", answers(0.1, n, seed=1))
        confirm(run, answers(0.5, n, seed=1), answers(0.5, n, seed=1))
        assert decide(str(run.path)).decision == verdict


def test_every_further_finalist_raises_the_bar(run):
    """The same confirmation questions met FAR before: its result is one more chance for luck."""
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    once = decide(str(run.path))
    run.evaluation(FAR, "confirm", answers(0.3, seed=1), sha256="another file")
    assert decide(str(run.path)) == once
    run.evaluation(FAR, "confirm", answers(0.3, seed=1))
    twice = decide(str(run.path))
    assert (once.looks, twice.looks) == (1, 2)
    assert twice.evidence[0].confidence == pytest.approx(0.975)
    assert twice.evidence[0].interval[0] < once.evidence[0].interval[0]


def test_candidates_without_a_target_step_save_no_steps(run):
    run.candidate("trailing_average-20", None, None)
    run.evaluation("trailing_average-20", "select", answers(0.9))
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1), name="trailing_average-20")
    run.spec(cost={})
    decision = decide(str(run.path))
    assert (decision.decision, decision.candidate, decision.step) == ("promote", "trailing_average-20", None)
    assert (decision.training_steps_saved, decision.cost.gpu_hours_saved) == (0, None)


def test_the_table_shows_the_three_and_then_the_rest(run):
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    decision = decide(str(run.path))
    rows = {row["candidate"]: row for row in decision.table()}
    assert list(rows) == [NEAR, "last_observed", "base", FAR]
    gain = decision.evidence[0]
    assert rows[NEAR]["gain"] == f"{gain.difference:+.3f} [{gain.interval[0]:+.3f}, {gain.interval[1]:+.3f}]"
    assert (rows[FAR]["confirm"], rows[FAR]["gain"], rows["base"]["gain"]) == ("", "", "")
    assert rows[FAR]["select"].startswith(f"{decision.select[3].mean:.3f} ± ")


def test_a_time_out_moves_no_candidate_down_the_table(run):
    """A question that could not be graded was asked all the same."""
    worse = "relex-step00200-scale1.00"
    run.candidate(worse, 200)
    run.evaluation(worse, "select", answers(0.05))
    run.evaluation(FAR, "select", [None, *answers(0.35)[1:]])
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    decision = decide(str(run.path))
    assert [row["candidate"] for row in decision.table()] == [NEAR, "last_observed", "base", FAR, worse]
    [far] = [standing for standing in decision.select if standing.candidate == FAR]
    assert (far.n, far.asked) == (399, 400)


def test_missing_evaluations_are_not_ready_and_name_the_next_step(run):
    with pytest.raises(WindowNotReady, match=f"confirm yet: {NEAR}, last_observed[^,]*") as caught:
        decide(str(run.path))
    assert f"relex evaluate {run.path}" in str(caught.value)
    run.candidate("relex-step00300-scale1.00", 300)
    with pytest.raises(WindowNotReady, match="select yet: relex-step00300"):
        decide(str(run.path))
    assert not (run.path / "decision.json").exists()


def test_without_an_evaluation_section_there_is_nothing_to_decide(run):
    run.spec(evaluation=None)
    with pytest.raises(SpecError, match="no evaluation section"):
        decide(str(run.path))


def test_evaluations_that_do_not_belong_together_are_refused(run):
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    run.evaluation(NEAR, "confirm", answers(0.5, seed=1), dtype="bfloat16")
    with pytest.raises(DataError, match="under another dtype"):
        decide(str(run.path))
    run.evaluation(NEAR, "confirm", answers(0.5, seed=1), sha256="another file")
    with pytest.raises(DataError, match="under another task"):
        decide(str(run.path))
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    run.candidate(NEAR, 100, scale=0.5)
    with pytest.raises(DataError, match=f"{NEAR} was evaluated on select under another candidate"):
        decide(str(run.path))


def test_a_spec_that_samples_otherwise_makes_evaluations_stale(run):
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    split = {"task": {"name": "addition", "file": "t.jsonl"}}
    run.spec(evaluation={"select": split, "confirm": {**split, "temperature": 0.7}})
    with pytest.raises(DataError, match="on confirm under another sampling"):
        decide(str(run.path))


def test_edited_samples_are_refused(run):
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    samples = run.path / layout.evaluation(NEAR, "addition", "confirm") / "samples.jsonl"
    samples.write_text(samples.read_text().replace("wrong", "correct"))
    with pytest.raises(DataError, match="the samples are not those"):
        decide(str(run.path))


def weights(run):
    return sorted(path.parent.name for path in run.path.glob("candidates/*/*.safetensors"))


def test_losers_lose_their_weights_and_nothing_else(run):
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    decision = decide(str(run.path))
    run.spec(candidates={"keep": "all"})
    assert (delete_losers(str(run.path), decision), weights(run)) == ([], [NEAR, FAR])
    run.spec()
    assert (delete_losers(str(run.path), decision), weights(run)) == ([FAR], [NEAR])
    assert sorted(path.name for path in (run.path / "candidates" / FAR).iterdir()) == ["config.json", "relex.json"]
    assert delete_losers(str(run.path), decision) == []
    assert decide(str(run.path)) == decision


def test_when_nothing_is_promoted_all_candidates_go(run):
    confirm(run, answers(0.3, seed=1), answers(0.3, seed=1))
    assert delete_losers(str(run.path), decide(str(run.path))) == [NEAR, FAR]
    assert weights(run) == []


def test_a_candidate_that_took_no_part_keeps_its_weights(run):
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    decision = decide(str(run.path))
    run.candidate("relex-step00333-scale1.00", 333)
    assert delete_losers(str(run.path), decision) == [FAR]
    assert weights(run) == [NEAR, "relex-step00333-scale1.00"]


def test_nothing_is_deleted_when_the_winner_has_no_weights(run):
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    decision = decide(str(run.path))
    (run.path / "candidates" / NEAR / "model-00001-of-00001.safetensors").unlink()
    (run.path / "candidates" / NEAR / "model.safetensors.index.json").unlink()
    with pytest.raises(DataError, match="has no weights"):
        delete_losers(str(run.path), decision)
    assert weights(run) == [FAR]


def two_tasks(run, **evaluation):
    """`addition` and `words` on confirm, `guard` as a guard."""
    split = {"task": {"name": "addition", "file": "t.jsonl"}}
    words = {"task": {"name": "words", "file": "w.jsonl"}}
    run.spec(evaluation={"select": split, "confirm": [split, words], **evaluation})
    for name, rate in {"base": 0.1, "last_observed": 0.3, FAR: 0.35, NEAR: 0.6}.items():
        run.evaluation(name, "select", answers(rate))
    for task in ("addition", "words"):
        run.evaluation("base", "confirm", answers(0.1, seed=1), task=task)


def pair_of(better, worse, n=100):
    """Outcomes of two models that differ on so many of n questions."""
    same = [1] * (n - better - worse)
    return [1] * better + [0] * worse + same, [0] * better + [1] * worse + same


def confirm_both(run, **pairs):
    for task, (a, b) in pairs.items():
        run.evaluation(NEAR, "confirm", a, task=task)
        run.evaluation("last_observed", "confirm", b, task=task)
        run.evaluation("base", "confirm", [0] * len(a), task=task)


def test_holm_asks_more_of_the_best_of_two_tasks(run):
    """8 better and 1 worse: p = 0.039. Enough for the only task, not for the best of two; 10 and 1, p = 0.012, is."""
    two_tasks(run)
    for better, verdict in ((8, "keep_observed"), (10, "promote")):
        confirm_both(run, addition=pair_of(better, 1), words=pair_of(3, 3))
        decision = decide(str(run.path))
        assert decision.decision == verdict
        confidence = {test.task: test.comparison.confidence for test in decision.tests}
        assert confidence == {"addition": 0.975, "words": 0.95}
        assert decision.tests[0].comparison.p_value < 0.05
    run.spec()
    confirm(run, *pair_of(8, 1))
    run.evaluation("base", "confirm", [0] * 100)
    assert decide(str(run.path)).decision == "promote"


@pytest.mark.parametrize(
    "better, worse, verdict, words",
    [
        (18, 8, "promote", "p = 0.076 by McNemar's exact test, which is more careful here than the interval;"),
        (30, 5, "promote", "p = 2.2e-05; smallest"),
        (14, 12, "keep_observed", "p = 0.85; smallest"),
    ],
)
def test_a_p_value_that_the_interval_does_not_agree_with_says_why(run, better, worse, verdict, words):
    confirm(run, *pair_of(better, worse))
    run.evaluation("base", "confirm", [0] * 100)
    decision = decide(str(run.path))
    assert decision.decision == verdict
    assert words in decision.reason
    assert ("the interval decides" in decision.reason) == ("careful" in words)


def test_holm_steps_down(run):
    """Once the surer task is shown at 97.5 %, the other needs 95 % only."""
    two_tasks(run)
    confirm_both(run, addition=pair_of(8, 1), words=pair_of(60, 0))
    tests = {test.task: test for test in decide(str(run.path)).tests}
    assert (tests["words"].comparison.confidence, tests["addition"].comparison.confidence) == (0.975, 0.95)
    assert tests["words"].p_above < tests["addition"].p_above < 0.05
    assert tests["words"].held and tests["addition"].held


def test_a_gain_on_one_task_does_not_outweigh_a_loss_on_another(run):
    two_tasks(run)
    for task, (finalist, last) in {"addition": (0.6, 0.3), "words": (0.2, 0.4)}.items():
        run.evaluation(NEAR, "confirm", answers(finalist, seed=1), task=task)
        run.evaluation("last_observed", "confirm", answers(last, seed=1), task=task)
    decision = decide(str(run.path))
    assert [test.held for test in decision.tests] == [True, False]
    assert decision.decision == "keep_observed"
    assert "does not outweigh" in decision.reason
    assert len(decision.evidence) == 6


@pytest.mark.parametrize("beat_base", [True, False])
def test_what_is_merely_not_shown_is_not_called_a_loss(run, beat_base):
    """No interval lies below 0 and there is no guard: `words` is open, and so is the comparison with the base."""
    two_tasks(run)
    last = {"addition": answers(0.3, seed=1), "words": answers(0.29, seed=6)}
    for task, rate in {"addition": 0.5, "words": 0.3}.items():
        run.evaluation(NEAR, "confirm", answers(rate, seed=1), task=task)
        run.evaluation("base", "confirm", answers(rate, seed=1) if beat_base else [0] * 400, task=task)
        run.evaluation("last_observed", "confirm", last[task], task=task)
    rule = {"rule": "superior"} if beat_base else {"rule": "non_inferior", "margin": 0.02}
    run.spec(evaluation=run.resolved.evaluation.model_dump(), decision=rule)
    decision = decide(str(run.path))
    assert (decision.decision, [test.held for test in decision.tests]) == ("keep_observed", [True, False])
    assert "does not outweigh" not in decision.reason
    assert ("not shown to be better than the base" in decision.reason) == beat_base


def test_a_promotion_does_not_advise_to_keep_the_base(run):
    """RL lowered `addition`, and the finalist undoes that; on `words` it is better than the base."""
    two_tasks(run)
    rates = {"addition": (0.5, 0.3, 0.5), "words": (0.3, 0.3, 0.1)}
    for task, of_task in rates.items():
        for name, rate in zip((NEAR, "last_observed", "base"), of_task, strict=True):
            run.evaluation(name, "confirm", answers(rate, seed=1), task=task)
    decision = decide(str(run.path))
    assert decision.decision == "promote"
    assert decision.reason.endswith("the finalist does no more than undo that")
    run.evaluation("base", "confirm", answers(0.3, seed=1), task="words")
    decision = decide(str(run.path))
    assert decision.decision == "keep_observed"
    assert decision.reason.endswith("the finalist does no more than undo that; consider keeping the base")


@pytest.mark.parametrize("margin, verdict", [(0.05, "promote"), (0.002, "keep_observed")])
def test_non_inferiority_is_a_rule_of_its_own(run, margin, verdict):
    confirm(run, answers(0.3, seed=1), answers(0.3, seed=1))
    run.spec(decision={"rule": "non_inferior", "margin": margin})
    decision = decide(str(run.path))
    low = decision.evidence[0].interval[0]
    assert (decision.decision, decision.tests[0].threshold) == (verdict, -margin)
    assert (low > -margin) == (verdict == "promote")
    run.spec(decision={"margin": margin})
    assert decide(str(run.path)).decision == "keep_observed", "equal is not superior"


def test_non_inferiority_must_hold_on_every_task(run):
    two_tasks(run)
    for task, last in {"addition": 0.3, "words": 0.36}.items():
        run.evaluation(NEAR, "confirm", answers(0.3, seed=1), task=task)
        run.evaluation("last_observed", "confirm", answers(last, seed=1), task=task)
    evaluation = run.resolved.evaluation.model_dump()
    run.spec(evaluation=evaluation, decision={"rule": "non_inferior", "margin": 0.05})
    decision = decide(str(run.path))
    assert ([test.held for test in decision.tests], decision.decision) == ([True, False], "keep_observed")
    assert {test.comparison.confidence for test in decision.tests} == {0.95}


@pytest.mark.parametrize(
    "guard, require, verdict",
    [
        (0.50, "shown", "promote"),
        (0.48, "shown", "keep_observed"),
        (0.48, "not_refuted", "promote"),
        (0.40, "not_refuted", "keep_observed"),
    ],
)
def test_a_guard_that_falls_blocks_the_promotion(run, guard, require, verdict):
    split = {"task": {"name": "addition", "file": "t.jsonl"}}
    guards = [{"task": {"name": "guard", "file": "g.jsonl"}, "margin": 0.02, "require": require}]
    run.spec(evaluation={"select": split, "confirm": split, "guards": guards})
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    with pytest.raises(WindowNotReady, match="guard"):
        decide(str(run.path))
    run.evaluation(NEAR, "guard", answers(guard, seed=2), task="guard")
    run.evaluation("last_observed", "guard", answers(0.5, seed=2), task="guard")
    decision = decide(str(run.path))
    assert (decision.decision, decision.tests[-1].split, decision.tests[-1].threshold) == (verdict, "guard", -0.02)
    words = {
        ("shown", "promote"): "which lies above -0.020;",
        ("shown", "keep_observed"): "which does not lie wholly above -0.020;",
        ("not_refuted", "promote"): "which does not lie wholly below -0.020, as this guard asks;",
        ("not_refuted", "keep_observed"): "which lies wholly below -0.020;",
    }
    assert words[require, verdict] in decision.reason
    run.spec(evaluation={"select": split, "confirm": split, "guards": [{**guards[0], "margin": 0.2}]})
    assert decide(str(run.path)).decision == "promote", "margins can change without a new evaluation"


def with_timeouts(run, name, correct, timeouts):
    run.evaluation(name, "confirm", [None if i < timeouts else c for i, c in enumerate(correct)])


def test_time_outs_are_left_out_and_only_matter_where_they_could_turn_the_verdict(run):
    good, bad = answers(0.5, seed=1), answers(0.3, seed=1)
    confirm(run, good, bad)
    with_timeouts(run, NEAR, good, 3)
    few = decide(str(run.path))
    assert (few.decision, few.evidence[0].n, few.confirm[0].timeout_rate) == ("promote", 397, 3 / 400)
    with_timeouts(run, NEAR, good, 200)
    many = decide(str(run.path))
    assert (many.decision, many.candidate, many.training_steps_saved) == ("not_ready", "last_observed", 0)
    assert "50.00%" in many.reason
    assert delete_losers(str(run.path), many) == []
    assert sorted(weights(run)) == sorted([FAR, NEAR])
    confirm(run, answers(0.1, seed=1), answers(0.9, seed=1))
    with_timeouts(run, NEAR, answers(0.1, seed=1), 20)
    assert decide(str(run.path)).decision == "keep_observed", "not even 20 hits would have helped"


def test_where_hardly_any_question_is_known_of_both_nothing_is_compared(run):
    """Each has two graded answers, to different questions."""
    run.evaluation("base", "confirm", [0, 1, 0, 1])
    confirm(run, [None, None, 1, 1], [0, 0, None, None])
    with pytest.raises(DataError, match="0 questions were graded for both") as caught:
        decide(str(run.path))
    for named in (NEAR, "last_observed 50.00%", "addition, confirm", "evaluation.grading_seconds"):
        assert named in str(caught.value)


def test_what_is_saved_is_training_minus_the_pipeline(run):
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    events = [
        {"event": "fitted", "seconds": 3600},
        {"event": "evaluated", "seconds": 1800},
        {"event": "evaluated", "seconds": 1800},
        {"event": "extrapolated"},
        {"event": "other", "seconds": 9},
    ]
    run.write(layout.EVENTS, "".join(json.dumps({"time": "t", **event}) + "\n" for event in events))
    run.spec(cost={"gpu_hours_per_step": 0.5, "fit_gpus": 0.25, "evaluation_gpus": 2})
    cost = decide(str(run.path)).cost
    assert cost.pipeline_seconds == {"fit": 3600, "extrapolate": 0, "evaluate": 3600}
    assert (cost.training_gpu_hours_saved, cost.pipeline_gpu_hours, cost.gpu_hours_saved) == (12.5, 2.25, 10.25)
    run.spec(decision={"min_gain": 0.9})
    kept = decide(str(run.path)).cost
    assert (kept.training_gpu_hours_saved, kept.gpu_hours_saved) == (0, -1.0)


def test_evaluations_under_another_grader_are_refused(run):
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    graded = {"task": {"name": "addition", "file": "t.jsonl", "grader": "choice"}}
    run.spec(evaluation={"select": {"task": {"name": "addition", "file": "t.jsonl"}}, "confirm": graded})
    with pytest.raises(DataError, match="on confirm under another grader"):
        decide(str(run.path))
