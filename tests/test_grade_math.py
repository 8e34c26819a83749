"""The `math` grader on tricky answers, one case a line in data/answer_pairs.yaml."""

from pathlib import Path

import pytest
import yaml

from relex_core.evaluate.grade import open_grader

PAIRS = yaml.safe_load((Path(__file__).parent / "data" / "answer_pairs.yaml").read_text())


def completion(pair):
    return pair.get("completion", f"\\boxed{{{pair.get('given')}}}")


@pytest.fixture(scope="module")
def grader():
    with open_grader("math", seconds=3.0) as grader:
        yield grader


@pytest.mark.parametrize("pair", PAIRS, ids=[f"{completion(pair)} | {pair['gold']}" for pair in PAIRS])
def test_answer_pairs(grader, pair):
    assert grader.grade(completion(pair), pair["gold"]) == pair["status"], pair["reason"]


def test_there_are_enough_pairs_and_each_has_a_reason():
    assert len(PAIRS) >= 80
    assert all(pair["reason"] and len(pair) == 4 + pair.get("miss", False) for pair in PAIRS)


@pytest.mark.parametrize(
    "pair", [p for p in PAIRS if "given" in p and p["status"] == "correct"], ids=lambda p: p["gold"]
)
def test_every_gold_answer_is_equal_to_itself(grader, pair):
    assert grader.gold_fault(pair["gold"]) is None
    if "boxed" not in pair["gold"]:
        assert grader.grade(f"\\boxed{{{pair['gold']}}}", pair["gold"]) == "correct"
