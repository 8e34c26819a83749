"""GRPO on exact-match rewards: sample a group of answers a question, prefer those better than their group.

One update is made from each batch of samples, so the policy that samples is the policy that learns: the
probability ratio of PPO's clipped loss is 1, the clip never binds, and what remains is the policy gradient
with group-normalised advantages. There is no KL term.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, Qwen3ForCausalLM

from relex_core.demo.questions import EOS, answer_tokens, draw_pairs, prompt_tokens
from relex_core.demo.supervised import MAX_GRADIENT_NORM, answer_logits, set_learning_rate
from relex_core.demo.task import DemoTask


def build_optimizer(model: Qwen3ForCausalLM) -> torch.optim.AdamW:
    """AdamW over the float32 master weights; the learning rate is set at every step."""
    return torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999), weight_decay=0.0, fused=True)


def grpo_step(
    model: Qwen3ForCausalLM, optimizer: torch.optim.AdamW, task: DemoTask, train: Tensor, step: int, draw: Generator
) -> float:
    """Make GRPO step `step` (1, 2, …) on questions and samples from `draw`; returns the mean reward of the samples."""
    pairs = draw_pairs(train, task.prompts, draw)
    prompts, expected = prompt_tokens(task, pairs), answer_tokens(task, pairs)
    answers = sample_answers(model, prompts, task.samples, expected.shape[1], draw)
    rewards = exact_match(answers, expected.repeat_interleave(task.samples, dim=0))
    advantages = group_advantages(rewards.view(task.prompts, task.samples)).flatten()
    loss = policy_loss(model, prompts.repeat_interleave(task.samples, dim=0), answers, advantages)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    set_learning_rate(optimizer, task.grpo_lr * min(1.0, step / max(1, task.warmup_steps)))
    optimizer.step()
    return rewards.mean().item()


@torch.no_grad()
def sample_answers(model: Qwen3ForCausalLM, prompts: Tensor, samples: int, length: int, draw: Generator) -> Tensor:
    """Sample `length` tokens "n·samples a" after the prompts "n p" at temperature 1, whether or not ``<eos>`` came."""
    cache = DynamicCache(config=model.config)
    logits = model(input_ids=prompts, past_key_values=cache, logits_to_keep=1).logits[:, -1]
    cache.batch_repeat_interleave(samples)
    logits = logits.repeat_interleave(samples, dim=0)
    tokens: list[Tensor] = []
    while True:
        tokens.append(torch.multinomial(logits.softmax(-1), 1, generator=draw))
        if len(tokens) == length:
            return torch.cat(tokens, dim=1)
        logits = model(input_ids=tokens[-1], past_key_values=cache).logits[:, -1]


def exact_match(answers: Tensor, expected: Tensor) -> Tensor:
    """Reward "n": 1 where every token is right, else 0."""
    return (answers == expected).all(dim=1).float()


def group_advantages(rewards: Tensor) -> Tensor:
    """Rewards "questions samples" in units of their group's standard deviation from its mean; 0 where all are equal."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + 1e-6)


def policy_loss(model: Qwen3ForCausalLM, prompts: Tensor, answers: Tensor, advantages: Tensor) -> Tensor:
    """Minus the mean of advantage "n" times log-probability over the sampled tokens up to the first ``<eos>``."""
    logits = answer_logits(model, prompts, answers)
    surprise = cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none").view_as(answers)
    ended = (answers == EOS).cumsum(dim=1)
    counts = (ended - (answers == EOS).long()) == 0
    return (advantages[:, None] * surprise * counts).sum() / counts.sum()
