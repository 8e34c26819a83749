"""A synthetic trajectory shaped like a real model: Qwen3 tensor names and shapes, a bf16 walk with drift.

Every step moves all weights along a common direction plus independent noise, from float32 masters, as a real run
does; the bytes are as incompressible as there. By default nearly every bf16 weight changes sooner or later: the worst
case. With --move 1e-6, which is what Adam does at a learning rate of 1e-6, 1 to 2 % change in a step, as reported of
real runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3 import Qwen3Config

MOVE = 5e-5
LAYER_PARAMETERS_PER_HIDDEN_SQUARED = 11.5  # q, o: 1 each; k, v: 0.25 each; three MLP matrices: 3 each


def config_for(parameters: float) -> Qwen3Config:
    """A config of about that many parameters."""
    hidden = max(64, round((parameters / 220) ** 0.5 / 64) * 64)
    vocabulary = min(151936, round(parameters * 0.25 / hidden / 128) * 128)
    layers = max(2, round((parameters - vocabulary * hidden) / (LAYER_PARAMETERS_PER_HIDDEN_SQUARED * hidden**2)))
    return Qwen3Config(
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        head_dim=64,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        dtype="bfloat16",
        architectures=["Qwen3ForCausalLM"],
    )


def shapes(config: Qwen3Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all weight tensors."""
    hidden, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        for name, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            yield f"{prefix}.self_attn.{name}_proj.weight", (heads * head, hidden)
            yield f"{prefix}.self_attn.{name}_norm.weight", (head,)
        yield f"{prefix}.self_attn.v_proj.weight", (config.num_key_value_heads * head, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, config.num_attention_heads * head)
        for name in ("gate", "up"):
            yield f"{prefix}.mlp.{name}_proj.weight", (inner, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)


def build(out: Path, parameters: float, steps: int, move: float, seed: int = 0) -> Path:
    """Write OUT/base and OUT/run/global_step_N; a finished build is reused.

    Args:
        move: standard deviation of a weight's own move in a step; the common direction adds 0.4 of it.
    """
    config = config_for(parameters)
    done = out / "done.json"
    wanted = {"parameters": parameters, "steps": steps, "move": move, "seed": seed}
    if done.exists() and json.loads(done.read_text()) == wanted:
        return out
    generator = torch.Generator().manual_seed(seed)
    masters = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes(config)}
    drift = {name: 0.4 * move * torch.randn(shape, generator=generator) for name, shape in shapes(config)}
    _save(masters, config, out / "base")
    _tokenizer(out / "base")
    for step in range(1, steps + 1):
        for name, master in masters.items():
            master += drift[name] + move * torch.randn(master.shape, generator=generator)
        _save(masters, config, out / "run" / f"global_step_{step}")
    done.write_text(json.dumps(wanted))
    return out


def _save(masters: dict[str, torch.Tensor], config: Qwen3Config, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tensors = {name: master.to(torch.bfloat16) for name, master in masters.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parameters", type=float, default=62e6)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument(
        "--move", type=float, default=MOVE, help="of a weight in a step; weights are 0.02 (default: %(default)s)"
    )
    arguments = parser.parse_args()
    print(build(arguments.out, arguments.parameters, arguments.steps, arguments.move))
