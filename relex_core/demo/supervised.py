"""Supervised training of the base: next-token cross-entropy on the answers of the training questions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Qwen3ForCausalLM

from relex_core.demo.model import build_model
from relex_core.demo.questions import (
    SUPERVISED,
    answer_tokens,
    draw_pairs,
    generator,
    prompt_tokens,
    reverse_some,
    split_pairs,
)
from relex_core.demo.task import DemoTask
from relex_core.progress import progress

WARMUP_SHARE = 0.05
FINAL_LR_SHARE = 0.02
MAX_GRADIENT_NORM = 1.0


def train_supervised(task: DemoTask) -> Qwen3ForCausalLM:
    """Train the base from scratch, in float32; the same weights for the same task."""
    model = build_model(task)
    train = split_pairs(task)["train"]
    draw = generator(task, SUPERVISED)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    with progress("Supervised base", task.supervised_steps) as advance:
        for step in range(task.supervised_steps):
            pairs = draw_pairs(train, task.supervised_batch, draw)
            answers = reverse_some(answer_tokens(task, pairs), task.reversed_share, draw)
            logits = answer_logits(model, prompt_tokens(task, pairs), answers)
            loss = cross_entropy(logits.flatten(0, 1), answers.flatten())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
            set_learning_rate(optimizer, task.supervised_lr * one_cycle(step, task.supervised_steps))
            optimizer.step()
            advance(note=f"loss {loss.item():.2f}")
    return model


def answer_logits(model: Qwen3ForCausalLM, prompts: Tensor, answers: Tensor) -> Tensor:
    """Logits "n a vocabulary" of the answers "n a" after the prompts "n p", each token given those before it."""
    tokens = torch.cat([prompts, answers[:, :-1]], dim=1)
    logits: Tensor = model(input_ids=tokens, logits_to_keep=answers.shape[1], use_cache=False).logits
    return logits


def one_cycle(step: int, steps: int) -> float:
    """Share of the peak learning rate at `step` of 0..steps-1: linear up, then half a cosine down."""
    warmup = max(1, round(steps * WARMUP_SHARE))
    if step < warmup:
        return (step + 1) / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    return FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * cosine


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr
