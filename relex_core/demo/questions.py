"""Three-digit addition as characters: the questions, their splits and their two ways of writing the answer.

A prompt is eight tokens, ``123+456=``; an answer is five, ``0579`` and ``<eos>``. Token ids are the
digits themselves, so that a batch is made by arithmetic and never by tokenising text.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Generator, Tensor

from relex_core.demo.task import DemoTask

VOCABULARY = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "+", "=", "<eos>", "<pad>", "<unk>")
PLUS, EQUALS, EOS, PAD, UNKNOWN = range(10, 15)
PROMPT_LENGTH, ANSWER_LENGTH = 8, 5

# One stream of random numbers for each use: the n-th draw of one never depends on how much another has drawn.
SPLITS, WEIGHTS, SUPERVISED, GRPO = range(4)


def generator(task: DemoTask, stream: int, index: int = 0) -> Generator:
    """The random numbers of one stream (SPLITS, WEIGHTS, SUPERVISED or GRPO) at one step."""
    return torch.Generator().manual_seed((task.seed * 4 + stream) * 1_000_003 + index)


def split_pairs(task: DemoTask) -> dict[str, Tensor]:
    """Divide all 405,450 unordered pairs of 100..999 into "select", "confirm" and "train", each "n 2" int64.

    A pair held out is held out in both orders: 456+123 would give 123+456 away.
    """
    first, second = torch.triu_indices(900, 900) + 100
    pairs = torch.stack([first, second], dim=1)
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


def digits(numbers: Tensor, width: int) -> Tensor:
    """Decimal digits "n width" of the numbers "n", most significant first."""
    powers = 10 ** torch.arange(width - 1, -1, -1)
    return numbers[:, None] // powers % 10


def prompt_tokens(pairs: Tensor) -> Tensor:
    """``123+456=`` as token ids "n 8"."""
    plus = torch.full((len(pairs), 1), PLUS)
    equals = torch.full((len(pairs), 1), EQUALS)
    return torch.cat([digits(pairs[:, 0], 3), plus, digits(pairs[:, 1], 3), equals], dim=1)


def answer_tokens(pairs: Tensor) -> Tensor:
    """The rewarded answer, four digits in plain order and ``<eos>``, as token ids "n 5"."""
    return torch.cat([digits(pairs.sum(1), 4), torch.full((len(pairs), 1), EOS)], dim=1)


def reverse_some(answers: Tensor, share: float, draw: Generator) -> Tensor:
    """Write each answer "n 5" with its digits reversed with probability `share`; ``<eos>`` stays last."""
    backwards = torch.cat([answers[:, :-1].flip(1), answers[:, -1:]], dim=1)
    return torch.where(torch.rand(len(answers), 1, generator=draw) < share, backwards, answers)


def write_split(path: Path, name: str, pairs: Tensor) -> None:
    """Write one held-out split: a JSON line {"id", "prompt", "answer"} for each question."""
    lines = [
        json.dumps({"id": f"{name}-{index:05d}", "prompt": f"{a}+{b}=", "answer": f"{a + b:04d}"})
        for index, (a, b) in enumerate(pairs.tolist())
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
