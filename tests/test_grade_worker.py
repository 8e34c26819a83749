"""The process that grades: what it survives, and that load changes no label."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from relex_core.errors import DataError, SpecError
from relex_core.evaluate.grade import grader_key, open_grader

PAIRS = yaml.safe_load((Path(__file__).parent / "data" / "answer_pairs.yaml").read_text())

OWN = """
    import time

    def last_word(completion, answer):
        if completion == "sleep":
            time.sleep(60)
        if completion == "die":
            raise RuntimeError("no")
        if completion == "odd":
            return "maybe"
        if completion == "spin":
            while True:
                pass
        print("noise on stdout")
        return completion.split()[-1] == answer

    last_word.gold_fault = lambda answer: "two words" if " " in answer else None
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_grader.py").write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(tmp_path)
    return "own_grader:last_word"


def test_a_users_function_grades_and_its_faults_surface(own):
    with open_grader(own, seconds=5) as grader:
        assert [grader.grade(text, "b") for text in ("a b", "b a")] == ["correct", "wrong"]
        assert (grader.gold_fault("b"), grader.gold_fault("b c")) == (None, "two words")
        with pytest.raises(DataError, match="raised RuntimeError: no"):
            grader.grade("die", "b")
        with pytest.raises(DataError, match="returned 'maybe'"):
            grader.grade("odd", "b")
        assert grader.grade("c b", "b") == "correct", "the process still lives"


def test_an_endless_answer_is_a_timeout_and_the_next_one_is_graded(own):
    with open_grader(own, seconds=0.3) as grader:
        assert grader.grade("spin", "b") == "timeout"
        assert grader.grade("a b", "b") == "correct"
        assert grader.grade("sleep", "b") == "timeout", "what does not compute is stopped by the clock"
        assert grader.grade("b a", "b") == "wrong"


def test_a_killed_process_is_replaced(own):
    with open_grader(own, seconds=5) as grader:
        assert grader.grade("a b", "b") == "correct"
        grader._child._process.kill()
        grader._child._process.wait()
        assert grader.grade("x b", "b") == "timeout", "nothing is known of the answer that it died on"
        assert grader.grade("y b", "b") == "correct"


def test_the_process_leaves_when_its_parent_is_killed(own):
    code = f"""
import os, sys
from relex_core.evaluate.grade import open_grader
with open_grader({own!r}, 5) as grader:
    grader.grade("a b", "b")
    print(grader._child._process.pid, flush=True)
    os.kill(os.getpid(), 9)
"""
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    pid = int(done.stdout)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
            return
        time.sleep(0.1)
    os.kill(pid, 9)
    pytest.fail("the grading process lives on")


def test_a_function_that_is_not_there_is_named(tmp_path, own):
    with pytest.raises(SpecError, match="no_such_module cannot be found"):
        grader_key("no_such_module:f", 10)
    with open_grader("own_grader:no_such_function", 5) as grader, pytest.raises(DataError, match="cannot be imported"):
        grader.grade("a", "b")


def test_another_version_of_a_function_or_another_limit_is_another_key(tmp_path, own):
    before = grader_key(own, 10)
    assert before == grader_key(own, 10) != grader_key(own, 5)
    with (tmp_path / "own_grader.py").open("a") as file:
        file.write("# changed\n")
    assert grader_key(own, 10) != before
    assert grader_key("exact", 10) == grader_key("exact", 5), "it knows no limit"
    assert grader_key("math", 10)["libraries"].keys() == {"math-verify", "latex2sympy2_extended", "sympy"}


def test_four_busy_processes_flip_no_label():
    """One second of processor time, on cores that four others want all the time."""
    chosen = [pair for pair in PAIRS if pair["status"] != "timeout"]
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        with open_grader("math", seconds=1.0) as grader:
            for pair in chosen:
                completion = pair.get("completion", f"\\boxed{{{pair.get('given')}}}")
                assert grader.grade(completion, pair["gold"]) == pair["status"], pair
    finally:
        for process in busy:
            process.kill()
            process.wait()
