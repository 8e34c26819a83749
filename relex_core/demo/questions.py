"""Addition as characters: the questions, their splits and the two ways of writing an answer.

With three digits a prompt is eight tokens, ``123+456=``, and an answer is five, ``0579`` and ``<eos>``; every
number has the same length. Token ids are the digits themselves: a batch is made by arithmetic, not from text.
Shapes below: p = length of a prompt, a = length of an answer with its ``<eos>``.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Generator, Tensor

from relex_core.demo.task import DemoTask

VOCABULARY = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "+", "=", "<eos>", "<pad>", "<unk>")
PLUS, EQUALS, EOS, PAD, UNKNOWN = range(10, 15)

# One stream of random numbers for each use: the n-th draw of one never depends on how much another has drawn.
SPLITS, WEIGHTS, SUPERVISED, GRPO = range(4)


def generator(task: DemoTask, stream: int, index: int = 0) -> Generator:
    """The random numbers of one stream (SPLITS, WEIGHTS, SUPERVISED or GRPO) at one step."""
    return torch.Generator().manual_seed((task.seed * 4 + stream) * 1_000_003 + index)


def split_pairs(task: DemoTask) -> dict[str, Tensor]:
    """Divide all unordered pairs of numbers (405,450 of three digits) into "select", "confirm" and "train", each "n 2".

    A pair held out is held out in both orders: 456+123 would give 123+456 away.
    """
    smallest = 10 ** (task.digits - 1)
    pairs = torch.triu_indices(9 * smallest, 9 * smallest).T + smallest
    draw = generator(task, SPLITS)
    pairs = pairs[torch.randperm(len(pairs), generator=draw)]
    rest = len(pairs) - task.select_questions - task.confirm_questions
    select, confirm, train = pairs.split([task.select_questions, task.confirm_questions, rest])
    return {"select": swap_half(select, draw), "confirm": swap_half(confirm, draw), "train": train}


def swap_half(pairs: Tensor, draw: Generator) -> Tensor:
    """Exchange the two operands of each pair "n 2" with probability one half."""
    swap = torch.rand(len(pairs), 1, generator=draw) < 0.5
    return torch.where(swap, pairs.flip(1), pairs)


def draw_pairs(train: Tensor, count: int, draw: Generator) -> Tensor:
    """Draw `count` training questions, "n 2", with replacement."""
    return swap_half(train[torch.randint(len(train), (count,), generator=draw)], draw)


def to_digits(numbers: Tensor, width: int) -> Tensor:
    """Decimal digits "n width" of the numbers "n", most significant first."""
    powers = 10 ** torch.arange(width - 1, -1, -1)
    return numbers[:, None] // powers % 10


def prompt_tokens(task: DemoTask, pairs: Tensor) -> Tensor:
    """``123+456=`` for each pair "n 2", as token ids "n p"."""
    plus = torch.full((len(pairs), 1), PLUS)
    equals = torch.full((len(pairs), 1), EQUALS)
    return torch.cat([to_digits(pairs[:, 0], task.digits), plus, to_digits(pairs[:, 1], task.digits), equals], dim=1)


def answer_tokens(task: DemoTask, pairs: Tensor) -> Tensor:
    """The rewarded answer, digits in plain order and ``<eos>``, for each pair "n 2", as token ids "n a"."""
    return torch.cat([to_digits(pairs.sum(1), task.digits + 1), torch.full((len(pairs), 1), EOS)], dim=1)


def reverse_some(answers: Tensor, share: float, draw: Generator) -> Tensor:
    """Write each answer "n a" with its digits reversed with probability `share`; ``<eos>`` stays last."""
    backwards = torch.cat([answers[:, :-1].flip(1), answers[:, -1:]], dim=1)
    return torch.where(torch.rand(len(answers), 1, generator=draw) < share, backwards, answers)


def write_split(path: Path, task: DemoTask, pairs: Tensor) -> None:
    """Write one held-out split: a JSON line {"id", "prompt", "answer"} for each question."""
    width = task.digits + 1
    lines = [
        json.dumps({"id": f"{path.stem}-{index:05d}", "prompt": f"{a}+{b}=", "answer": f"{a + b:0{width}d}"})
        for index, (a, b) in enumerate(pairs.tolist())
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
