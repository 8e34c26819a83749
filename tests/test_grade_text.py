"""Graders that need no algebra, the paper's conventions, and the last box."""

import pytest

from relex_core.evaluate.grading.paper import Paper
from relex_core.evaluate.grading.text import Choice, last_box, loose_match


@pytest.mark.parametrize(
    "completion, answer, status",
    [
        (r"\boxed{B}", "B", "correct"),
        (r"\boxed{\text{(B)}}", "(B)", "correct"),
        ("(b)", "B", "no_answer"),
        ("B.", "B", "correct"),
        ("I think B", "B", "no_answer"),
        (r"\boxed{C}", "B", "wrong"),
        (r"B is wrong, \boxed{C}", "C", "correct"),
        ("B", "42", "unparseable_gold"),
        ("", "B", "no_answer"),
    ],
)
def test_choice(completion, answer, status):
    assert Choice().grade(completion, answer) == status
    assert (Choice().gold_fault(answer) is None) == (status != "unparseable_gold")


@pytest.mark.parametrize(
    "completion, answer, status, why",
    [
        (r"\boxed{500}", "5", "correct", "a factor of 100 counts as percent"),
        (r"\boxed{0.05}", "5", "correct", "and its inverse"),
        (r"\boxed{5.0004}", "5", "correct", "relative 1e-4"),
        (r"\boxed{5.001}", "5", "wrong", "beyond 1e-4"),
        ("So the answer is 7.", "7", "correct", "after 'he answer is'"),
        ("Perhaps 3, then 7 apples", "7", "correct", "the last number"),
        (r"\boxed{7", "7", "correct", "a box that is never closed"),
        (r"\boxed{30^\circ}", "30", "correct", "degrees are dropped"),
        (r"\boxed{12\text{ cm}}", "12", "correct", "a text at the end is dropped"),
        (r"\boxed{k=5}", "5", "correct", "a short left side is dropped"),
        (r"\boxed{\frac12}", r"The sum is \boxed{\frac{1}{2}}", "correct", "gold as a worked solution"),
        (r"\boxed{(1,2)}", "(1,2.0001)", "correct", "part by part, relative 1e-4"),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", "correct", "algebra"),
        (r"\boxed{x+1}", "x+2", "wrong", "algebra"),
        (r"\boxed{2-x=y}", "x+y=2", "correct", "an equation up to its sign"),
        (r"\boxed{y=5}", "x=5", "correct", "a short left side is dropped, whatever it says"),
        (
            r"\boxed{5000}",
            r"50\%",
            "wrong",
            "a plain gold answer stays as it is: 50 % is 0.5, and 5000 is neither 50 nor 0.005",
        ),
        (r"\boxed{0.5}", r"50\%", "correct", "a percent sign in the gold answer"),
        (r"\boxed{[5, 8]}", "5,8", "correct", "brackets around the whole"),
        (r"\boxed{[x,y)}", "(x,z)", "wrong", "intervals, part by part"),
        (r"\boxed{ab}", "ba", "wrong", "letters are one symbol"),
        ("no number at all", "7", "no_answer", "nothing to extract"),
    ],
)
def test_paper_conventions(completion, answer, status, why):
    assert Paper().grade(completion, answer) == status, why


@pytest.mark.parametrize(
    "text, box",
    [
        ("none", None),
        (r"\boxed{a}\boxed{b}", "b"),
        (r"\boxed{a}\boxed{b", "a"),
        (r"\boxed{{a}{b}}", "{a}{b}"),
        (r"\boxed{\}}", r"\}"),
        (r"\boxed{x\boxed{y}z}", "xyz"),
        (r"\boxed{ a } }", "a"),
        (r"\boxedx{a}", None),
        ("\\boxed{a\nb}", "a\nb"),
    ],
)
def test_last_box(text, box):
    assert last_box(text) == box


@pytest.mark.parametrize(
    "completion, answer, match",
    [
        ("first 3 then 7", "7", True),
        ("first 7 then 3", "7", False),
        ("1,234.50", "1234.5", True),
        ("it is -7.", "-7", True),
        ("7", r"\frac12", False),
        ("no number", "7", False),
        ("3", r"so \boxed{3}", True),
    ],
)
def test_loose_match_takes_the_last_number(completion, answer, match):
    assert loose_match(completion, answer) is match
