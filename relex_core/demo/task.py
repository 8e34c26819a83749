"""The demo's two tasks: every number that a run depends on, in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class DemoTask:
    """A tiny RLVR run: the questions, the model, the supervised base and the GRPO run on it.

    Args:
        name: what the command line calls it.
        seed: every draw (weights, splits, batches, samples) derives from it.
        digits: length of the two numbers to add.
        reversed_share: part of the supervised answers that is written with the digits reversed; RL never rewards these.
        hidden_size, layers, heads, kv_heads, head_dim, ffn_size: shape of the Qwen3 model.
        supervised_steps, supervised_batch, supervised_lr: training of the base; batch in answers, lr at its peak.
        prompts, samples: questions a GRPO step, and answers sampled for each of them.
        grpo_lr, warmup_steps: constant AdamW learning rate after a linear warm-up of so many steps.
        t_cut: last GRPO step of the observation window.
        target_steps: steps worth extrapolating to.
        select_questions, confirm_questions: sizes of the two held-out splits.
    """

    name: str
    seed: int
    digits: int
    reversed_share: float
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    supervised_steps: int
    supervised_batch: int
    supervised_lr: float
    prompts: int
    samples: int
    grpo_lr: float
    warmup_steps: int
    t_cut: int
    target_steps: tuple[int, ...]
    select_questions: int = 1000
    confirm_questions: int = 2000

    def identity(self) -> dict[str, object]:
        """The fields that the trained weights and the splits depend on; the window may be chosen anew over them."""
        fields = asdict(self)
        return {name: value for name, value in fields.items() if name not in ("t_cut", "target_steps")}


# RL shifts a preference, as it does with answer formats: the base knows both orders and prefers the wrong one.
FORMAT = DemoTask(
    name="format",
    seed=0,
    digits=3,
    reversed_share=0.7,
    hidden_size=64,
    layers=2,
    heads=8,
    kv_heads=8,
    head_dim=16,
    ffn_size=192,
    supervised_steps=1200,
    supervised_batch=128,
    supervised_lr=3e-3,
    prompts=64,
    samples=16,
    grpo_lr=1e-5,
    warmup_steps=5,
    t_cut=45,
    target_steps=(45, 100, 200, 300),
)

# RL must teach a skill that the base half has: every weight wanders, and extrapolation seldom pays.
ADDITION = DemoTask(
    name="addition",
    seed=0,
    digits=3,
    reversed_share=0.0,
    hidden_size=128,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=32,
    ffn_size=384,
    supervised_steps=200,
    supervised_batch=256,
    supervised_lr=1e-3,
    prompts=32,
    samples=16,
    grpo_lr=5e-5,
    warmup_steps=5,
    t_cut=80,
    target_steps=(80, 120, 200),
)

DEMO_TASKS: dict[str, DemoTask] = {task.name: task for task in (FORMAT, ADDITION)}
