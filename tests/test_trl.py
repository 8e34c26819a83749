"""A short real GRPO run of TRL: its checkpoints are collected and fitted as they lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from relex_core.collect import collect
from relex_core.extrapolate import extrapolate
from relex_core.fit import fit
from relex_core.spec import resolve_spec

BASE = Path(__file__).parent / "data" / "small" / "run" / "base"

pytestmark = pytest.mark.slow


def train(out: Path, steps: int) -> None:
    """GRPO on two-digit additions, rewarded for each even digit of the answer; saves every step."""
    trl = pytest.importorskip("trl", reason="pip install '.[trl]'")
    from datasets import Dataset
    from transformers import AutoTokenizer

    def reward(completions: list[str], **_: object) -> list[float]:
        return [float(sum(digit in "02468" for digit in completion)) for completion in completions]

    questions = Dataset.from_list([{"prompt": f"{a}+{b}="} for a in range(10, 30) for b in range(40, 44)])
    arguments = trl.GRPOConfig(
        output_dir=str(out),
        max_steps=steps,
        save_steps=1,
        logging_steps=1,
        per_device_train_batch_size=8,
        num_generations=8,
        max_completion_length=5,
        learning_rate=1e-3,
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        seed=0,
    )
    tokenizer = AutoTokenizer.from_pretrained(BASE, padding_side="left")
    trainer = trl.GRPOTrainer(
        model=str(BASE), args=arguments, train_dataset=questions, reward_funcs=reward, processing_class=tokenizer
    )
    trainer.train()


def test_checkpoints_of_a_real_trl_run_are_fitted(tmp_path: Path) -> None:
    train(tmp_path / "grpo", steps=5)
    spec = {
        "base": str(BASE),
        "trajectory": str(tmp_path / "grpo"),
        "window": {"t_cut": 5, "every": 1},
        "candidates": {"target_steps": [10]},
    }
    run = str(tmp_path / "run")
    manifest = collect(resolve_spec(spec, where="test", folder=tmp_path, out=run))
    assert manifest.steps == (1, 2, 3, 4, 5)
    assert {tensor.dtype for tensor in manifest.tensors} <= {"F32", "BF16"}
    artifact = fit(run)
    assert artifact.summary.moved > 0
    assert [candidate.name for candidate in extrapolate(run)] == ["relex-step00010-scale1.00"]
