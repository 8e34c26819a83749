"""Task files: what is read, and what is refused before anything is generated."""

import hashlib
import json
import shutil
import sys
import types
from pathlib import Path

import pytest
from pydantic import ValidationError

from relex_core.errors import DataError, SpecError, StorageError
from relex_core.evaluate.grading.text import Exact
from relex_core.evaluate.tasks import load_splits, load_task
from relex_core.spec import EvaluationSpec, PromptSpec, TaskSpec, resolve_spec


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


def test_keys_of_other_names_are_shown_and_lead_to_task_fields(tmp_path):
    spec = write(tmp_path / "a.jsonl", {"question": "1+1=", "answer": "2"}, {"question": "1+2=", "answer": "3"})
    with pytest.raises(DataError) as caught:
        load_task(spec)
    assert caught.value.what == "prompt: Field required; the keys here: 'question', 'answer'"
    assert caught.value.expected.startswith('{"prompt": "12+34=", "answer": "46"}')
    assert "task.fields: {question: KEY, answer: KEY}" in caught.value.next_step
    chosen = TaskSpec(name="addition", file=spec.file, fields={"question": "question"})
    assert [question.prompt for question in load_task(chosen).questions] == ["1+1=", "1+2="]


@pytest.mark.parametrize("bad", [{"question": "1+1=", "answer": "2"}, {"problem": "", "solution": "2"}, [1], "{"])
def test_what_is_expected_of_a_line_has_the_keys_of_task_fields(tmp_path, bad):
    file = write(tmp_path / "a.jsonl", bad).file
    spec = TaskSpec(name="addition", file=file, fields={"question": "problem", "answer": "solution"})
    with pytest.raises(DataError) as caught:
        load_task(spec)
    assert caught.value.expected.startswith('{"problem": "12+34=", "solution": "46"}')


def test_a_line_of_many_keys_shows_some_and_a_null_is_not_a_lacking_key(tmp_path):
    many = {f"key-{index}": index for index in range(30)}
    with pytest.raises(
        DataError, match=r"prompt: Field required; the keys here: 'key-0', .*'key-9', \.\.\.\n"
    ) as caught:
        load_task(write(tmp_path / "a.jsonl", many))
    assert "key-10" not in caught.value.what
    with pytest.raises(DataError, match="the keys here: none"):
        load_task(write(tmp_path / "a.jsonl", {}))
    with pytest.raises(DataError, match="answer: null") as caught:
        load_task(write(tmp_path / "a.jsonl", row("1+1=", None)))
    assert caught.value.next_step == "correct the line"


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
    assert Exact().grade(completion, answer) == status


EXAMPLES = sorted((Path(__file__).parent.parent / "examples" / "tasks").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_tasks_are_valid_splits(path):
    task = {"task": {"name": "a", "file": "a.jsonl"}}
    spec = EvaluationSpec.model_validate({"select": task, "confirm": str(path)})
    [split] = spec.confirm_splits
    assert split.task.grader == "math"
    greedy = split.temperature == 0
    assert split.samples == (1 if greedy else 8)
    more = EvaluationSpec.model_validate({"select": task, "confirm": {"definition": str(path), "max_tokens": 9}})
    assert more.confirm_splits[0] == split.model_copy(update={"max_tokens": 9})


def test_the_papers_prompt_is_exact():
    """As in the authors' eval.py, for the Qwen models."""
    spec = EvaluationSpec.model_validate(
        {name: str(EXAMPLES[0].parent / "math.yaml") for name in ("select", "confirm")}
    )
    task = spec.confirm_splits[0].task
    assert task.prompt.template == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{question}\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
    )
    names = {path.stem for path in EXAMPLES}
    assert {"math", "aime25", "aime26", "hmmt_feb25", "amc23", "olympiadbench"} <= names
    assert (task.hub.id, task.fields.question, task.fields.answer) == ("TianHongZXY/MATH", "problem", "solution")


def test_a_definition_is_found_beside_the_spec_and_its_file_beside_the_definition(tmp_path):
    (tmp_path / "tasks").mkdir()
    write(tmp_path / "tasks" / "a.jsonl", row("1+1="), row("1+2="))
    (tmp_path / "tasks" / "a.yaml").write_text("task: {name: a, file: a.jsonl}\nmax_tokens: 7\n")
    data = {"base": "b", "trajectory": "t", "window": {"t_cut": 2}}
    evaluation = {
        "select": "tasks/a.yaml",
        "confirm": ["tasks/a.yaml"],
        "guards": [{"definition": "tasks/a.yaml", "margin": 0.1}],
    }
    spec = resolve_spec({**data, "evaluation": evaluation}, where="spec", folder=tmp_path)
    assert [
        split.task.file for split in (spec.evaluation.select, *spec.evaluation.confirm, *spec.evaluation.guards)
    ] == [str(tmp_path / "tasks" / "a.jsonl")] * 3
    assert (spec.evaluation.select.max_tokens, spec.evaluation.guards[0].margin) == (7, 0.1)
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(SpecError, match=r"evaluation\.confirm: the task definition .*none\.yaml cannot be read"):
        resolve_spec({**data, "evaluation": {**evaluation, "confirm": "none.yaml"}}, where="spec", folder=tmp_path)


@pytest.mark.parametrize(
    "task, message",
    [
        ({"name": "a"}, "it has none"),
        ({"name": "a", "file": "a", "hub": {"id": "x"}}, "it has file, hub"),
        ({"name": "a", "hub": {"id": "x", "revision": "main"}}, "revision"),
        ({"name": "a", "file": "a", "prompt": {"template": "no place"}}, "lacks {question}"),
        ({"name": "a", "file": "a", "prompt": {"system": "s", "template": "{question}"}}, "system needs chat"),
        ({"name": "a", "file": "a", "grader": "other"}, "grader"),
        ({"name": "a", "hub": {"id": "x"}, "sha256": 64 * "0"}, "belongs to a file"),
    ],
)
def test_tasks_that_make_no_sense_are_refused(task, message):
    with pytest.raises(ValidationError, match=message):
        TaskSpec.model_validate(task)


def test_another_file_than_the_pinned_one_is_refused(tmp_path):
    spec = write(tmp_path / "a.jsonl", row("1+1="), row("1+2="))
    digest = load_task(spec).sha256
    assert load_task(spec.model_copy(update={"sha256": digest})).sha256 == digest
    with pytest.raises(DataError, match="another one"):
        load_task(spec.model_copy(update={"sha256": 64 * "0"}))


def test_fields_and_template_make_the_prompt(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"problem": f"{i}+1?", "final_answer": [str(i + 1), "ignored"], "key": f"q{i}"} for i in range(2)]
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    fields = {"question": "problem", "answer": "final_answer", "id": "key"}
    spec = {"name": "a", "file": str(file), "fields": fields, "prompt": {"template": "Q: {question} {brace}\nA:"}}
    task = load_task(TaskSpec.model_validate(spec))
    assert [(q.id, q.prompt, q.answer) for q in task.questions] == [
        ("q0", "Q: 0+1? {brace}\nA:", "1"),
        ("q1", "Q: 1+1? {brace}\nA:", "2"),
    ]
    plain = load_task(TaskSpec.model_validate({**spec, "prompt": None}))
    assert plain.prompts_digest != task.prompts_digest
    assert plain.sha256 == task.sha256


def test_the_same_question_in_two_splits_is_found_under_any_template(tmp_path):
    select = write(tmp_path / "s.jsonl", row("1+1="), row("1+2="))
    confirm = write(tmp_path / "c.jsonl", row("1+1="), row("2+2="))
    other = confirm.model_copy(update={"prompt": PromptSpec(template="? {question}")})
    with pytest.raises(DataError, match="share 1 questions"):
        load_splits(EvaluationSpec.model_validate({"select": {"task": select}, "confirm": {"task": other}}))
    guard = {"task": other, "margin": 0.1}
    fine = write(tmp_path / "f.jsonl", row("3+1="), row("3+2="))
    with pytest.raises(DataError, match="select and guard share"):
        load_splits(
            EvaluationSpec.model_validate({"select": {"task": select}, "confirm": {"task": fine}, "guards": [guard]})
        )


def test_the_chat_template_of_the_base_is_used(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(Path(__file__).parent / "data" / "small" / "run" / "base", base)
    spec = write(tmp_path / "a.jsonl", row("1+1="), row("1+2="))
    spec = spec.model_copy(update={"prompt": PromptSpec(chat=True, system="Be brief.")})
    with pytest.raises(DataError, match="no chat template"):
        load_task(spec, str(base))
    config = json.loads((base / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
    )
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_task(spec, str(base)).questions[0].prompt == "[system]Be brief.[user]1+1=[a]"


def generated(seed, size=30, **config):
    fields = {"dataset": "chain_sum", "size": size, "seed": seed, "config": config}
    return TaskSpec.model_validate({"name": "sums", "generated": fields, "grader": "math"})


def test_generated_tasks_repeat_with_their_seed_and_share_nothing():
    small = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}  # a few hundred different sums
    spec = EvaluationSpec.model_validate(
        {"select": {"task": generated(1, 40, **small)}, "confirm": {"task": generated(2, 40, **small)}}
    )
    splits = load_splits(spec)
    select, confirm = ([q.text for q in splits[name][0].questions] for name in ("select", "confirm"))
    assert len({*select, *confirm}) == 80
    alone = [q.text for q in load_task(generated(2, 40, **small)).questions]
    assert set(alone) & set(select), "without the other split there would be shared ones"
    assert [q.text for q in load_splits(spec)["confirm"][0].questions] == confirm
    with pytest.raises(DataError, match="different questions in"):
        load_task(generated(1, 5000, **small))
    with pytest.raises(DataError, match="reasoning-gym refuses"):
        load_task(generated(1, 5, no_such_option=1))


def test_the_hub_is_read_through_datasets_at_its_revision(monkeypatch):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        if kwargs["split"] == "gone":
            raise ConnectionError("offline")
        return [{"problem": f"{i}+0?", "solution": rf"so \boxed{{{i}}}"} for i in range(3)]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    hub = {"id": "a/b", "revision": 40 * "a", "split": "test", "config": "c"}
    spec = {"name": "m", "hub": hub, "fields": {"question": "problem", "answer": "solution"}, "grader": "math"}
    task = load_task(TaskSpec.model_validate(spec))
    assert [(q.id, q.answer) for q in task.questions] == [(str(i + 1), rf"so \boxed{{{i}}}") for i in range(3)]
    assert calls == [(("a/b", "c"), {"split": "test", "revision": 40 * "a"})]
    assert task.warnings == ()
    [warning] = load_task(TaskSpec.model_validate({**spec, "hub": {"id": "a/b"}})).warnings
    assert "a/b at its newest revision" in warning
    with pytest.raises(StorageError, match="ConnectionError: offline"):
        load_task(TaskSpec.model_validate({**spec, "hub": {**hub, "split": "gone"}}))
