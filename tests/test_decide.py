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
from relex_core.evaluate.tasks import Question, Task
from relex_core.manifest import BaseRecord, CheckpointRecord, WindowManifest
from relex_core.spec import resolve_spec

FAR, NEAR = "relex-step00500-scale1.00", "relex-step00100-scale1.00"
CONDITIONS = {"backend": "transformers", "device": "cpu", "dtype": "float32", "versions": {"torch": "2"}}
LAST_STEP = 75


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

    def evaluation(self, name, split, correct, sha256=None, **conditions):
        """`correct`: one 0 or 1 a question."""
        known = {c.name: c for c in [*references(self.manifest), *written_candidates(str(self.path))]}
        spec = getattr(self.resolved.evaluation, split)
        sha256 = sha256 or f"file of {split}"
        task = Task("addition", "t.jsonl", (Question(sha256, "1", "1"),), sha256)
        key = evaluation_key(known[name].digest, self.manifest.digest, split, task, spec, {**CONDITIONS, **conditions})
        rows = [
            {"id": str(i), "sample": 0, "tokens": 5, "finish_reason": "stop", "status": "correct" if c else "wrong"}
            for i, c in enumerate(correct)
        ]
        samples = to_jsonl(rows)
        folder = layout.evaluation(name, "addition", split)
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


def test_nothing_is_deleted_when_the_winner_has_no_weights(run):
    confirm(run, answers(0.5, seed=1), answers(0.3, seed=1))
    decision = decide(str(run.path))
    (run.path / "candidates" / NEAR / "model-00001-of-00001.safetensors").unlink()
    (run.path / "candidates" / NEAR / "model.safetensors.index.json").unlink()
    with pytest.raises(DataError, match="has no weights"):
        delete_losers(str(run.path), decision)
    assert weights(run) == [FAR]
