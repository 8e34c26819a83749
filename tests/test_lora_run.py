"""A LoRA run from its adapters to the decision: every stage as `relex run` does it, with a real model and tokenizer."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from lora_runs import LoraRun, train
from support import SMALL
from transformers import AutoModelForCausalLM

from relex_core.checkpoints.adapter_config import WEIGHTS_FILE
from relex_core.errors import DataError
from relex_core.evaluate.scratch import local_checkpoint
from relex_core.run import run as run_all

BASE = SMALL / "run" / "base"
STEPS = (1, 2, 3, 4, 5, 6)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> LoraRun:
    root = tmp_path_factory.mktemp("lora")
    run = train(root, STEPS, base=AutoModelForCausalLM.from_pretrained(BASE), merge=False, r=2)
    shutil.rmtree(run.base)
    shutil.copytree(BASE, run.base)
    for name, seed in (("select", 1), ("confirm", 2)):
        (root / f"{name}.jsonl").write_text(questions(seed))
    return run


def questions(seed: int) -> str:
    numbers = random.Random(seed)
    pairs = {(numbers.randrange(50) + 50 * seed, numbers.randrange(100)) for _ in range(40)}
    return "\n".join(
        json.dumps({"prompt": f"{a:03d}+{b:03d}=", "answer": f"{a + b:04d}"}) for a, b in sorted(pairs)[:20]
    )


def split(run: LoraRun, name: str) -> dict[str, Any]:
    return {"task": {"name": "addition", "file": str(run.root / f"{name}.jsonl")}, "max_tokens": 6, "batch_size": 20}


@pytest.mark.parametrize("write", ["observed", "merged"])
def test_all_stages(lora: LoraRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str) -> None:
    monkeypatch.setenv("RELEX_SCRATCH", str(tmp_path / "scratch"))
    evaluation = {"device": "cpu", "select": split(lora, "select"), "confirm": split(lora, "confirm")}
    chosen = {"target_steps": [9], "scales": [1.0, 0.5], "write": write, "adapter_rank": 1, "keep": "all"}
    spec = lora.spec("adapters", out=str(tmp_path / "run"), evaluation=evaluation, candidates=chosen)
    result = run_all(spec)
    assert result.decision is not None
    names = {standing.candidate for standing in result.decision.select}
    assert names == {"base", "last_observed", "relex-step00009-scale1.00", "relex-step00009-scale0.50"}
    answers = {
        name: (tmp_path / "run" / "eval" / name / "addition-select" / "samples.jsonl").read_text() for name in names
    }
    assert answers["base"] != answers["last_observed"]  # the adapter was at work
    folder = tmp_path / "run" / "candidates" / "relex-step00009-scale1.00"
    assert (folder / WEIGHTS_FILE).exists() == (write == "observed")
    page = (tmp_path / "run" / "report.html").read_text()
    assert ("Adapters were cut" in page) == (write == "observed")
    assert not any((tmp_path / "scratch").glob("*")) and (write == "merged" or (tmp_path / "scratch").exists())


def test_an_adapter_needs_its_base(lora: LoraRun, tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="not a complete checkpoint"),
        local_checkpoint(str(lora.adapter(1)), str(tmp_path)),
    ):
        pass


def test_what_the_hf_trainer_leaves(tmp_path: Path) -> None:
    """Its own folders, with optimizer states and arguments beside the adapter."""
    import torch
    from lora_runs import tiny_model
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 48, (12, 8))]
    base = tiny_model()
    base.save_pretrained(tmp_path / "base")
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "adapters"),
        max_steps=3,
        save_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    run = LoraRun(tmp_path, (1, 2, 3))
    assert run.adapter(1).joinpath("optimizer.pt").exists()
    spec = run.spec("adapters", window={"every": 1}, candidates={"target_steps": [6]})
    result = run_all(spec)
    assert result.window.adapters and result.window.steps == (1, 2, 3)
    assert result.fit.summary.moved == 2
    assert (Path(spec.run_root) / "candidates" / result.candidates[0].name / WEIGHTS_FILE).exists()
