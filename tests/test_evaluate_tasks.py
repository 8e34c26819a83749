"""Task files: what is read, and what is refused before anything is generated."""

import hashlib
import json

import pytest

from relex_core.errors import DataError
from relex_core.evaluate.grade import exact
from relex_core.evaluate.tasks import load_splits, load_task
from relex_core.spec import EvaluationSpec, TaskSpec


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return TaskSpec(name="addition", file=str(path))


def row(prompt, answer="1", **more):
    return {"prompt": prompt, "answer": answer, **more}


def test_questions_come_in_the_order_of_the_file_with_ids_and_digest(tmp_path):
    spec = write(tmp_path / "a.jsonl", row("1+1=", "2", id="first"), "", row("1+2=", "3", level=5))
    task = load_task(spec)
    assert [(q.id, q.prompt, q.answer) for q in task.questions] == [("first", "1+1=", "2"), ("3", "1+2=", "3")]
    assert task.sha256 == hashlib.sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "bad, message",
    [
        ('{"prompt": "2+2="', "JSON"),
        ("[1]", "should be an object"),
        (json.dumps({"prompt": "2+2="}), "answer: Field required"),
        (json.dumps({"answer": "4"}), "prompt: Field required"),
        (json.dumps(row("2+2=", " ")), "answer: empty"),
        (json.dumps(row("", "4")), "prompt: empty"),
        (json.dumps(row("2+2=", 4)), "answer: Input should be a valid string"),
        (json.dumps(row("1+1= ", "4")), r"already in .*a\.jsonl, line 1"),
        (json.dumps(row("2+2=", "4", id="1")), "id '1' is taken"),
    ],
)
def test_a_bad_line_is_refused_by_file_and_line(tmp_path, bad, message):
    spec = write(tmp_path / "a.jsonl", row("1+1=", "2"), bad, row("1+2=", "3"))
    with pytest.raises(DataError, match=message) as caught:
        load_task(spec)
    assert f"{tmp_path / 'a.jsonl'}, line 2" in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("rows", [[], [row("1+1=", "2")]])
def test_a_file_without_enough_questions_for_error_bars_is_refused(tmp_path, rows):
    with pytest.raises(DataError, match=f"has {len(rows)} questions"):
        load_task(write(tmp_path / "a.jsonl", *rows))


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="not there"):
        load_task(TaskSpec(name="addition", file=str(tmp_path / "none.jsonl")))


def test_a_question_in_both_splits_is_refused_and_named(tmp_path):
    select = write(tmp_path / "s.jsonl", row("1+1="), row("1+2="), row("1+3="))
    confirm = write(tmp_path / "c.jsonl", row("2+1="), row(" 1+3="), row("2+3="))
    spec = EvaluationSpec.model_validate({"select": {"task": select}, "confirm": {"task": confirm}})
    with pytest.raises(DataError, match=r"share 1 questions, for example ' 1\+3='"):
        load_splits(spec)
    other = write(tmp_path / "c.jsonl", row("2+1="), row("2+3="))
    spec = EvaluationSpec.model_validate({"select": {"task": select}, "confirm": {"task": other}})
    counts = {split: [len(task.questions) for task in tasks] for split, tasks in load_splits(spec).items()}
    assert counts == {"select": [3], "confirm": [2], "guard": []}


@pytest.mark.parametrize(
    "completion, answer, status",
    [
        ("0579", "0579", "correct"),
        (" 0579\n", "0579", "correct"),
        ("0579", " 0579", "correct"),
        ("579", "0579", "wrong"),
        ("05790", "0579", "wrong"),
        ("0579<pad>", "0579", "wrong"),
        ("", "0579", "no_answer"),
        (" \n", "0579", "no_answer"),
    ],
)
def test_exact_grader(completion, answer, status):
    assert exact(completion, answer) == status
