"""Real LoRA runs: a tiny Llama, PEFT adapters trained by real gradient steps, and the same steps merged by PEFT.

run = train(tmp_path, steps=[1, 2, 3], r=4)      # tmp_path/base, .../adapters/checkpoint-N, .../merged/checkpoint-N
spec = run.spec("adapters")
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from relex_core.spec import RunSpec, resolve_spec

disable_progress_bar()
logging.getLogger("transformers").setLevel(logging.ERROR)

VOCAB = 48


@dataclass(frozen=True)
class LoraRun:
    """Where everything of a run lies."""

    root: Path
    steps: tuple[int, ...]

    @property
    def base(self) -> Path:
        return self.root / "base"

    def adapter(self, step: int) -> Path:
        return self.root / "adapters" / f"checkpoint-{step}"

    def spec(self, trajectory: str, out: str = "", **sections: Any) -> RunSpec:
        """Of the trajectory "adapters" or "merged"."""
        window = {"t_cut": max(self.steps), "settle_seconds": 0, **sections.pop("window", {})}
        data = {"base": str(self.base), "trajectory": trajectory, "run_root": out or f"run-{trajectory}"}
        return resolve_spec({**data, "window": window, **sections}, where="test", folder=self.root)


def tiny_model(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A Llama of 26 thousand weights, seeded."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"vocab_size": VOCAB, "num_key_value_heads": 2, "tie_word_embeddings": False}
    config = LlamaConfig(**{**shape, **more, **changes})
    return LlamaForCausalLM(config).to(dtype)


def train(
    root: Path,
    steps: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    base: Any = None,
    model: Mapping[str, Any] | None = None,
    autocast: bool = True,
    merge: bool = True,
    **lora: Any,
) -> LoraRun:
    """Train adapters for max(steps) optimizer steps and save them at `steps`, as PEFT and the HF Trainer do.

    Args:
        dtype: of the base.
        base: another model than the tiny Llama.
        model: changes of the Llama's config.
        autocast: train the adapter in float32 whatever the base's dtype, as PEFT does by default.
        merge: also save each step merged by PEFT's merge_and_unload, as float32 checkpoints.
        lora: of LoraConfig.
    """
    run = LoraRun(root, tuple(steps))
    base = tiny_model(dtype, **(model or {})) if base is None else base
    base.save_pretrained(run.base)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora})
    torch.manual_seed(1)
    adapted = get_peft_model(base, config, autocast_adapter_dtype=autocast)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=5e-3)
    tokens = torch.randint(0, base.config.vocab_size, (8, 12))
    for step in range(1, max(steps) + 1):
        adapted(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in steps:
            save_step(adapted, run.adapter(step), step)
            if merge:
                save_merged(run, step)
    return run


def save_step(model: Any, folder: Path, step: int) -> None:
    """One adapter, with the HF Trainer's marker."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that it saves the embedding too
        model.save_pretrained(folder)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))


def save_merged(run: LoraRun, step: int) -> None:
    """The same step as full weights: PEFT's own merge."""
    folder = run.root / "merged" / f"checkpoint-{step}"
    merged(run.base, run.adapter(step)).save_pretrained(folder)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))


def merged(base: Path, adapter: Path) -> Any:
    """Base and adapter, merged by PEFT in float32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
