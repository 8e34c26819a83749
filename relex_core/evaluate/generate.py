"""Generation: one protocol for every backend, and what all candidates of one comparison must have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal, Protocol

from relex_core.spec import EvaluationSpec


@dataclass(frozen=True)
class Sampling:
    """How one batch is decoded."""

    temperature: float
    """0 is greedy; `seed` and `top_p` then do nothing."""
    top_p: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt."""

    text: str
    """Without the stop token; other special tokens are left in, so that they cannot hide inside an answer."""
    tokens: int
    """Generated tokens, the stop token included."""
    finish_reason: Literal["stop", "length"]


class Generator(Protocol):
    """A loaded model. The same prompts with the same sampling give the same completions."""

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        """Complete one batch, in order.

        Raises:
            DataError: the logits are not finite, or a prompt does not fit into the model's positions.
        """


def batch_seed(seed: int, batch: int, sample: int) -> int:
    """The seed of batch `batch` of the `sample`-th completions: 48 bits that do not collide in practice.

    It depends on nothing else, so a resumed run repeats it, and all candidates share their random numbers.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{batch}/{sample}".encode()).digest()[:6], "big")


def conditions(spec: EvaluationSpec) -> dict[str, object]:
    """What makes two generations comparable besides task and sampling: backend, device, dtype and versions."""
    device = _device(spec.device)
    names = ("relex", "torch", "transformers", "tokenizers")
    return {
        "backend": spec.backend,
        "device": device,
        "dtype": _dtype(device),
        "versions": {name: version(name) for name in names},
    }


@contextmanager
def open_generator(spec: EvaluationSpec, weights: str, tokenizer: str) -> Iterator[Generator]:
    """Load a model for the length of a block, and free its memory afterwards.

    Args:
        spec: names the backend and device.
        weights: folder with config.json and safetensors, on the local disk.
        tokenizer: folder of the base, whose tokenizer and stop tokens all candidates use.

    Raises:
        DataError: the folder cannot be loaded, or holds fewer weights than the model needs.
    """
    from relex_core.evaluate.transformers_backend import TransformersGenerator, free_memory

    device = _device(spec.device)
    generator = TransformersGenerator(weights, tokenizer, device=device, dtype=_dtype(device))
    try:
        yield generator
    finally:
        generator.close()
        free_memory()


def _device(wanted: str) -> str:
    import torch

    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(device: str) -> str:
    """One dtype for all candidates, whatever they are stored in: greedy answers depend on it."""
    return "float32" if device == "cpu" else "bfloat16"
