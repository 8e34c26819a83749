"""A finished run, once more: nothing is done twice, and nothing that was decided otherwise is published or deleted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from kfp_support import make_spec, scripted_run, spec_data
from safetensors.torch import load_file, save_file

from relex_core.candidate import write_companions, write_provenance
from relex_core.collect import collect
from relex_core.decide import decide
from relex_core.errors import (
    CheckpointChanged,
    DataError,
    ObjectExists,
    ObjectNotFound,
    SpecError,
    WindowNotReady,
)
from relex_core.evaluate import evaluate
from relex_core.evaluate.candidates import written_candidates
from relex_core.evaluate.generate import Completion
from relex_core.evaluate.samples import Batch, BatchStore, samples_key, to_jsonl
from relex_core.evaluate.stage import Evaluation
from relex_core.evaluate.tasks import Question
from relex_core.extrapolate import extrapolate
from relex_core.gate import gate
from relex_core.manifest import load_manifest
from relex_core.publish import NOTHING_YET, publish, published
from relex_core.run import RunResult, run
from relex_core.storage import ObjectInfo, Store, open_store, replace_seen, write_bytes

WON, LOST = "relex-step00020-scale1.00", "relex-step00040-scale1.00"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return scripted_run(tmp_path, candidates=0.9, last_observed=0.2)


def weights(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("run/candidates/*/*.safetensors"))


def events(folder: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (folder / "run/events.jsonl").read_text().splitlines()]


def test_a_finished_run_is_not_done_again(folder: Path) -> None:
    first = run(make_spec(folder))
    assert first.decision is not None and first.decision.candidate == WON
    assert weights(folder) == [WON]
    before = events(folder)
    again = run(make_spec(folder))
    assert again.decision == first.decision
    assert [candidate.name for candidate in again.candidates] == [WON]
    assert events(folder) == before


def step_of(weights: Path) -> int:
    return int(weights.parents[2].name.removeprefix("global_step_"))


def test_a_run_whose_only_candidate_holds_ends_with_a_decision(folder: Path) -> None:
    """Of a walk without drift no predictor beats the last observed checkpoint."""
    [base] = folder.glob("trajectory/base/*.safetensors")
    state, random = load_file(base), torch.Generator().manual_seed(0)
    for path in sorted(folder.glob("trajectory/global_step_*/actor/huggingface/*.safetensors"), key=step_of):
        state = {name: w + 0.01 * torch.randn(w.shape, generator=random).to(w.dtype) for name, w in state.items()}
        save_file(state, path, metadata={"format": "pt"})
    spec = make_spec(
        folder, candidates={"target_steps": [20, 40], "scales": [], "baselines": ["last_observed", "auto"]}
    )
    decision = run(spec).decision
    assert decision is not None and set(decision.candidates) == {"auto-step00020"}
    relex = json.loads((folder / "run/candidates/auto-step00020/relex.json").read_text())
    assert set(relex["predictors"].values()) == {"hold"}
    assert gate(spec).state == "done"


def corrected_answers(folder: Path) -> None:
    questions = folder / "select.jsonl"
    questions.write_text(questions.read_text().replace('"answer": "0"', '"answer": "zero"'))


def other_answers(folder: Path, split: str) -> None:
    """What was wrong is right now: the candidates' lead over the last observed checkpoint turns around."""
    rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
    (folder / f"{split}.jsonl").write_text("".join(json.dumps({**row, "answer": "x"}) + "\n" for row in rows))


def test_an_outcome_of_other_questions_is_none(folder: Path) -> None:
    spec = make_spec(folder)
    run(spec)
    (folder / "confirm.jsonl").touch()
    assert gate(spec).state == "done", "only what the files hold counts"
    other_answers(folder, "confirm")
    assert gate(spec).state == "ready"
    with pytest.raises(WindowNotReady, match="out of date: the questions are others now"):
        publish(spec.run_root)
    assert (published(spec.run_root).decision, weights(folder)) == ("promote", [WON])
    run(spec)
    assert (published(spec.run_root).decision, weights(folder)) == ("keep_observed", [])
    assert gate(spec).state == "done"


@pytest.mark.parametrize("split", ["select", "confirm"])
def test_nothing_is_deleted_after_a_decision_on_other_questions(folder: Path, split: str) -> None:
    spec = make_spec(folder, candidates={"target_steps": [20, 40], "keep": "all"})
    run(spec)
    (folder / "run/published.json").unlink()
    collect(make_spec(folder))
    other_answers(folder, split)
    with pytest.raises(WindowNotReady, match="out of date: the questions are others now"):
        publish(spec.run_root)
    assert published(spec.run_root) == NOTHING_YET
    assert weights(folder) == [WON, LOST]


@pytest.mark.parametrize(
    "change",
    [
        corrected_answers,
        lambda folder: (folder / "run/published.json").unlink(),
        lambda folder: (folder / "run/decision.json").unlink(),
        lambda folder: (folder / "run/decision.json").write_text("{}"),
        lambda folder: (folder / "run/candidates" / WON / "relex.json").write_text("{"),
        lambda folder: next((folder / "run/candidates" / WON).glob("*.safetensors")).unlink(),
    ],
)
def test_a_run_of_which_something_changed_goes_through_all_stages(
    folder: Path, change: Callable[[Path], object]
) -> None:
    run(make_spec(folder))
    before = len(events(folder))
    change(folder)
    decision = run(make_spec(folder)).decision
    assert decision is not None and decision.candidate == WON
    assert {LOST, WON} == decision.candidates.keys()
    assert len(events(folder)) > before
    assert weights(folder) == [WON]


def test_a_decision_by_other_rules_is_not_published(folder: Path) -> None:
    run(make_spec(folder))
    outcome = published(str(folder / "run"))
    collect(make_spec(folder, decision={"beat_base": False, "min_gain": 0.95}))
    with pytest.raises(WindowNotReady, match="out of date: the spec has other rules"):
        publish(str(folder / "run"))
    assert published(str(folder / "run")) == outcome
    decide(str(folder / "run"))
    assert publish(str(folder / "run")).decision == "keep_observed"
    assert weights(folder) == []


def test_candidates_that_took_no_part_are_neither_published_nor_deleted(folder: Path) -> None:
    run(make_spec(folder))
    extrapolate(str(folder / "run"), target_steps=[33])
    with pytest.raises(WindowNotReady, match=r"relex-step00033-scale1\.00 took no part"):
        publish(str(folder / "run"))
    assert weights(folder) == [WON, "relex-step00033-scale1.00"]
    evaluate(str(folder / "run"))
    decide(str(folder / "run"))
    publish(str(folder / "run"))
    assert len(weights(folder)) == 1


def test_candidates_of_another_dtype_are_other_candidates(folder: Path) -> None:
    run(make_spec(folder))
    collect(make_spec(folder, candidates={"target_steps": [20, 40], "dtype": "float16"}))
    extrapolate(str(folder / "run"))
    with pytest.raises(WindowNotReady, match=f"{WON}, {LOST} took no part"):
        publish(str(folder / "run"))
    assert weights(folder) == [WON, LOST]


def test_losers_of_an_earlier_decision_stay_out_where_they_cannot_be_measured(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(make_spec(folder))
    corrected_answers(folder)
    decision = run(make_spec(folder, candidates={"target_steps": [30]})).decision
    assert decision is not None
    assert decision.candidates.keys() == {WON, "relex-step00030-scale1.00"}
    assert f"left out, for their weights were deleted after a decision: {LOST}" in caplog.text
    assert f"not in the spec, but among the candidates: {WON}" in caplog.text


def test_where_all_have_lost_they_are_to_be_written_again(tmp_path: Path) -> None:
    folder = scripted_run(tmp_path, candidates=0.2, last_observed=0.9)
    run(make_spec(folder))
    assert weights(folder) == []
    corrected_answers(folder)
    with pytest.raises(WindowNotReady, match="no candidate has weights"):
        evaluate(str(folder / "run"))
    again = run(make_spec(folder)).decision
    assert again is not None and again.candidates.keys() == {WON, LOST}


def test_candidates_that_no_spec_asks_for_may_be_measured(folder: Path) -> None:
    run(make_spec(folder, evaluation=None))
    collect(make_spec(folder, candidates={"scales": [], "baselines": ["last_observed"]}))
    evaluate(str(folder / "run"))
    assert decide(str(folder / "run")).candidates.keys() == {WON, LOST}


def test_losers_of_an_earlier_decision_stay_in_where_they_were_measured(folder: Path) -> None:
    run(make_spec(folder))
    decision = run(make_spec(folder, candidates={"target_steps": [30]})).decision
    assert decision is not None
    assert decision.candidates.keys() == {WON, LOST, "relex-step00030-scale1.00"}


@pytest.mark.parametrize("line", ['{"time": "2026', "{}", "[]", "null", "\udcff"])
def test_a_damaged_log_is_no_reason_to_stop(folder: Path, caplog: pytest.LogCaptureFixture, line: str) -> None:
    run(make_spec(folder))
    log = folder / "run/events.jsonl"
    log.write_bytes(log.read_bytes() + line.encode(errors="surrogateescape"))
    extrapolate(str(folder / "run"), target_steps=[33])
    assert json.loads(log.read_bytes().splitlines()[-1])["event"] == "extrapolated"
    evaluate(str(folder / "run"))
    assert decide(str(folder / "run")).cost.pipeline_seconds["evaluate"] > 0
    assert ("is no event" in caplog.text) == (line != "{}")


def test_a_decision_between_no_candidates_is_refused_before_the_fit(folder: Path) -> None:
    spec = make_spec(folder, candidates={"scales": [], "baselines": ["last_observed"]})
    with pytest.raises(SpecError, match="asks for no candidate"):
        run(spec)
    assert not (folder / "run/fit").exists()
    with pytest.raises(SpecError, match="asks for no candidate"):
        evaluate(str(folder / "run"))


def test_the_mark_of_a_process_that_writes_the_same_candidate_is_no_file_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make_spec(folder, evaluation=None))
    real, marks = write_provenance, sorted(folder.glob("run/candidates/*/relex.json"))
    alone = [mark.read_bytes() for mark in marks]

    def later(*arguments: Any) -> None:
        real(*arguments)
        real(*arguments)

    for mark in marks:
        mark.unlink()
    monkeypatch.setattr("relex_core.extrapolate.write_provenance", later)
    extrapolate(str(folder / "run"))
    assert [mark.read_bytes() for mark in marks] == alone


def test_batches_that_another_process_has_merged_are_read_from_its_samples(folder: Path) -> None:
    store = open_store(str(folder))
    batch = Batch(0, 0, 7, (Question("1 + 1 =", "2", "q"),))
    slower = BatchStore(store, "eval/x", "sha256:key")
    slower.write(batch, [Completion("2", 1, "stop")])
    assert slower.missing([batch]) == []
    row = {"id": "q", "sample": 0, "text": "2", "tokens": 1, "finish_reason": "stop", "generation": slower.key}
    write_bytes(store, samples_key("eval/x"), to_jsonl([row]))
    other = Batch(1, 0, 7, (Question("1 + 2 =", "3", "other"),))
    slower.write(other, [Completion("3", 1, "stop")])
    BatchStore(store, "eval/x", "sha256:older").write(batch, [Completion("4", 1, "stop")])
    BatchStore(store, "eval/x", "sha256:key").remove([batch, other])
    [left] = (folder / "eval/x/batches").iterdir()
    assert left.name.endswith("b00001.jsonl"), "a process that measures more of the same evaluation still needs it"
    left.unlink()
    assert slower.read(batch) == [Completion("2", 1, "stop")]
    with pytest.raises(ObjectNotFound):
        slower.read(other)


def test_the_first_of_two_processes_to_write_a_batch_counts(folder: Path) -> None:
    faster, slower = (BatchStore(open_store(str(folder)), "eval/x", "sha256:key") for _ in range(2))
    batch = Batch(0, 0, 7, (Question("1 + 1 =", "2", "q"),))
    for process, answer in ((faster, "2"), (slower, "3")):
        process.write(batch, [Completion(answer, 1, "stop")])
    assert slower.read(batch) == [Completion("2", 1, "stop")]


def while_measuring(monkeypatch: pytest.MonkeyPatch, candidate: str, other: Callable[[], object]) -> None:
    """Let another process do something when the first batches of a candidate are about to be generated."""
    real, waiting = Evaluation._generate, [other]

    def interrupted(evaluation: Evaluation, finished: BatchStore, advance: Callable[..., None]) -> None:
        if evaluation.candidate.name == candidate and waiting:
            waiting.pop()()
        real(evaluation, finished, advance)

    monkeypatch.setattr(Evaluation, "_generate", interrupted)


def test_a_result_that_another_process_wrote_meanwhile_is_not_written_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been decided upon, and is there at every moment."""
    run(make_spec(folder, evaluation=None))
    spec = make_spec(folder)
    collect(spec)
    written: dict[Path, int] = {}

    def other() -> None:
        evaluate(spec.run_root)
        decide(spec.run_root)
        written.update({path: path.stat().st_ino for path in folder.glob("run/eval/*/*/*.json*")})

    while_measuring(monkeypatch, "base", other)
    evaluate(spec.run_root)
    assert len(written) > 10
    assert {path: path.stat().st_ino for path in folder.glob("run/eval/*/*/*.json*")} == written


@pytest.mark.parametrize("key", ["samples.jsonl", "summary.json"])
def test_a_slower_process_does_not_replace_what_it_has_not_seen(
    folder: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """It is about to store a part of what the faster one, meanwhile, measured whole and decided on."""
    spec = make_spec(folder, candidates={"target_steps": list(range(20, 40, 2))})
    run(make_spec(folder, evaluation=None, candidates={"target_steps": list(range(20, 40, 2))}))
    collect(spec)
    real, waiting, decided = replace_seen, [True], list[str]()

    def slower(store: Store, name: str, data: bytes, seen: ObjectInfo | None) -> ObjectInfo:
        if waiting and name.endswith(key) and "relex-step" in name:
            waiting.pop()
            evaluate(spec.run_root)
            decided.append(decide(spec.run_root).model_dump_json(exclude={"cost"}))
            stored = (folder / "run" / name).read_bytes()
            with pytest.raises((ObjectExists, CheckpointChanged)):
                real(store, name, data, seen)
            assert (folder / "run" / name).read_bytes() == stored
        return real(store, name, data, seen)

    monkeypatch.setattr("relex_core.evaluate.stage.replace_seen", slower)
    evaluate(spec.run_root)
    [before] = decided
    assert decide(spec.run_root).model_dump_json(exclude={"cost"}) == before


def test_samples_that_are_not_the_summarys_are_measured_again(folder: Path) -> None:
    """A writer was killed between the two."""
    spec = make_spec(folder)
    run(spec)
    samples = next(folder.glob("run/eval/base/*-confirm/samples.jsonl"))
    whole = samples.read_bytes()
    samples.write_bytes(b"".join(whole.splitlines(keepends=True)[:-2]))
    with pytest.raises(DataError, match="the samples are not those") as caught:
        decide(spec.run_root)
    assert caught.value.next_step == f"relex evaluate {spec.run_root}"
    evaluate(spec.run_root)
    assert samples.read_bytes() == whole
    decide(spec.run_root)


def test_a_run_that_another_process_has_finished_meanwhile_is_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the other one has deleted the loser that this one was about to load."""
    spec, results = make_spec(folder), list[RunResult]()

    def other() -> None:
        results.append(run(spec))
        (folder / "run/candidates" / LOST / "script.json").unlink()  # what the scripted backend loads

    while_measuring(monkeypatch, LOST, other)
    assert run(spec).decision == results[0].decision
    assert weights(folder) == [WON]


def test_a_run_that_another_process_published_before_its_marks_were_written_is_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has deleted the loser's weights: what is left is no candidate."""
    spec, results = make_spec(folder), list[RunResult]()

    def other(*arguments: Any) -> None:
        monkeypatch.setattr("relex_core.extrapolate.write_companions", write_companions)
        for candidate in (WON, LOST):
            assert not (folder / "run/candidates" / candidate / "relex.json").exists()
        results.append(run(spec))
        for mark in folder.glob("run/candidates/*/relex.json"):
            mark.unlink()  # by this process, if it was about to begin
        write_companions(*arguments)

    monkeypatch.setattr("relex_core.extrapolate.write_companions", other)
    assert run(spec).decision == results[0].decision
    assert [path.parent.name for path in folder.glob("run/candidates/*/relex.json")] == [WON]
    assert weights(folder) == [WON]
    assert run(spec).decision == results[0].decision
    assert {candidate.name for candidate in extrapolate(spec.run_root)} == {WON, LOST}


def test_a_mark_that_lists_no_weights_is_none(folder: Path) -> None:
    spec = make_spec(folder)
    run(spec)
    mark = folder / "run/candidates" / LOST / "relex.json"
    told = json.loads(mark.read_text())
    del told["files"]["model.safetensors"]
    mark.write_text(json.dumps(told))
    digest = load_manifest(spec.run_root).digest
    assert [c.name for c in written_candidates(spec.run_root, digest) if c.weights] == [WON]
    assert {candidate.name for candidate in extrapolate(spec.run_root)} == {WON, LOST}
    assert weights(folder) == [WON, LOST]


def test_an_error_of_a_run_that_nobody_finished_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    while_measuring(monkeypatch, LOST, (folder / "run/candidates" / LOST / "script.json").unlink)
    with pytest.raises(DataError, match="no script"):
        run(make_spec(folder))


def test_two_runs_of_one_directory_end_well(folder: Path) -> None:
    (folder / "relex.yaml").write_text(yaml.safe_dump({**spec_data(), "run_root": "run"}))
    command = [sys.executable, "-m", "relex_core", "run", str(folder / "relex.yaml")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert open_store(str(folder / "run")).stat("published.json").size
