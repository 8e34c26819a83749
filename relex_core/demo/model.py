"""The tiny Qwen3 model and its character tokenizer, as Hugging Face folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from relex_core.demo.questions import EOS, PAD, VOCABULARY, WEIGHTS, generator
from relex_core.demo.task import DemoTask

MAX_LENGTH = 64
# Transformers' 0.02 is meant for wide models; at these widths the carry is then learned several times later.
INITIALIZER_RANGE = 0.06


def build_model(task: DemoTask) -> Qwen3ForCausalLM:
    """An untrained float32 model; the same weights for the same task, whatever was drawn before."""
    config = Qwen3Config(
        vocab_size=16,
        hidden_size=task.hidden_size,
        intermediate_size=task.ffn_size,
        num_hidden_layers=task.layers,
        num_attention_heads=task.heads,
        num_key_value_heads=task.kv_heads,
        head_dim=task.head_dim,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    # Transformers draws from torch's global stream; borrow it and give it back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(task, WEIGHTS).initial_seed())
        return Qwen3ForCausalLM(config)


def build_tokenizer() -> Any:
    """One token a character; nothing is added before or after a text."""
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    wrap: Any = PreTrainedTokenizerFast
    return wrap(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=MAX_LENGTH,
        padding_side="left",
    )


def write_base(folder: Path, model: Qwen3ForCausalLM) -> None:
    """Write a complete base: config, generation config, tokenizer and bfloat16 weights. Converts `model` itself."""
    _quieten()
    half: Any = model
    half.to(torch.bfloat16).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def read_master_weights(base: Path) -> Qwen3ForCausalLM:
    """The saved bfloat16 base as a float32 model: what RL starts from is exactly what is on disk."""
    _quieten()
    load: Any = Qwen3ForCausalLM.from_pretrained
    model: Qwen3ForCausalLM = load(base, dtype=torch.float32, local_files_only=True)
    return model


def write_weights(folder: Path, model: Qwen3ForCausalLM, base: Path) -> None:
    """Write `model` as a bfloat16 Hugging Face checkpoint with the base's config; tied weights once, as in the base."""
    folder.mkdir(parents=True)
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(base / name, folder / name)
    weights = {name: weight.detach().to(torch.bfloat16) for name, weight in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _quieten() -> None:
    disable: Any = disable_progress_bar
    disable()  # relex shows its own
