"""The RL run on disk: verl's layout, one bfloat16 checkpoint a step, and the state from which training goes on.

The state file is written first and everything else of a step is a function of it (and of the base), so a run
killed at any moment is made whole by writing the last step again, and goes on bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from relex_core.demo.grpo import build_optimizer, grpo_step
from relex_core.demo.model import read_master_weights, write_weights
from relex_core.demo.publish import publish_file, publish_folder, publish_text
from relex_core.demo.questions import GRPO, generator, split_pairs
from relex_core.demo.task import DemoTask
from relex_core.progress import progress


@dataclass
class Trainer:
    """Everything that GRPO changes: float32 master weights, AdamW's moments, and the mean reward of each finished step.

    No random state is kept: the draws of a step derive from the task's seed and the step's number.
    """

    model: Qwen3ForCausalLM
    optimizer: torch.optim.AdamW
    rewards: list[float] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The last finished step; 0 is the base."""
        return len(self.rewards)


def train_trajectory(task: DemoTask, base: Path, trajectory: Path, state: Path, to_step: int) -> None:
    """Go on with the RL run in `trajectory` from its last finished step up to `to_step`, publishing every step."""
    trainer = load_trainer(base, state)
    if trainer.step:
        publish_step(trainer, base, trajectory)
    if trainer.step >= to_step:
        return
    train: Tensor = split_pairs(task)["train"]
    with progress("GRPO", to_step - trainer.step) as advance:
        for step in range(trainer.step + 1, to_step + 1):
            draw = generator(task, GRPO, step)
            reward = grpo_step(trainer.model, trainer.optimizer, task, train, step, draw)
            trainer.rewards.append(reward)
            save_trainer(trainer, state)
            publish_step(trainer, base, trajectory)
            advance(note=f"step {step}, reward {reward:.3f}")


def load_trainer(base: Path, state: Path) -> Trainer:
    """The trainer as it was after its last finished step, or at the base if no step was finished yet."""
    model = read_master_weights(base)
    trainer = Trainer(model, build_optimizer(model))
    if state.exists():
        saved: dict[str, Any] = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        trainer.optimizer.load_state_dict(saved["optimizer"])
        trainer.rewards = saved["rewards"]
    return trainer


def save_trainer(trainer: Trainer, state: Path) -> None:
    """Write the trainer's state: tensors and numbers only, about twelve bytes a parameter."""
    saved = {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "rewards": trainer.rewards,
    }
    publish_file(state, lambda path: torch.save(saved, path))


def publish_step(trainer: Trainer, base: Path, trajectory: Path) -> None:
    """Publish the last finished step as verl does: weights, log, and last the file that names the latest step."""
    folder = trajectory / f"global_step_{trainer.step}"
    if not folder.exists():
        publish_folder(folder, lambda path: write_weights(path / "actor" / "huggingface", trainer.model, base))
    lines = [json.dumps({"step": step, "reward": reward}) for step, reward in enumerate(trainer.rewards, start=1)]
    publish_text(trajectory / "log.jsonl", "\n".join(lines) + "\n")
    publish_text(trajectory / "latest_checkpointed_iteration.txt", str(trainer.step))
