"""Generation: one protocol for every backend, and what all candidates of one comparison must have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, Protocol

from relex_core.errors import SpecError
from relex_core.evaluate.scratch import local_checkpoint, local_companions
from relex_core.extras import install
from relex_core.spec import EvaluationSpec

VLLM_DTYPE = "bfloat16"


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


def row_seed(seed: int, row: int) -> int:
    """The seed of one prompt of a batch, for backends that draw each prompt's tokens on their own."""
    return batch_seed(seed, row, -1)


def conditions(spec: EvaluationSpec) -> dict[str, object]:
    """What makes two generations comparable besides task and sampling: backend, device, dtype and versions."""
    if spec.backend == "scripted":
        return {"backend": "scripted", "device": "none", "dtype": "none", "versions": _versions("relex")}
    if spec.backend == "vllm":
        return {
            "backend": f"vllm, tensor parallel {spec.tensor_parallel}",
            "device": "cuda",
            "dtype": VLLM_DTYPE,
            "versions": _versions("relex", "torch", "transformers", "tokenizers", "vllm"),
        }
    device = _device(spec.device)
    return {
        "backend": spec.backend,
        "device": device,
        "dtype": _dtype(device),
        "versions": _versions("relex", "torch", "transformers", "tokenizers"),
    }


def _versions(*names: str) -> dict[str, str]:
    try:
        return {name: version(name) for name in names}
    except PackageNotFoundError as error:
        raise SpecError(
            f"the backend needs {error.name}", where="evaluation.backend", next_step=install("eval", "vllm")
        ) from None


@contextmanager
def open_generator(spec: EvaluationSpec, weights: str, tokenizer: str) -> Iterator[Generator]:
    """Load a model for the length of a block, and free its memory afterwards.

    Args:
        spec: names the backend and device.
        weights: a checkpoint anywhere; what is no local Hugging Face folder is copied to the scratch folder meanwhile.
        tokenizer: the base, whose tokenizer and stop tokens all candidates use.

    Raises:
        DataError: the checkpoint cannot be loaded, or holds fewer weights than the model needs.
        StorageError: the storage failed, or the scratch folder has no room for a copy.
    """
    if spec.backend == "scripted":
        from relex_core.evaluate.scripted_backend import ScriptedGenerator

        yield ScriptedGenerator(weights)
        return
    with (
        local_checkpoint(weights, tokenizer) as folder,
        local_companions(tokenizer) as base,
        _open_model(spec, folder, base) as generator,
    ):
        yield generator


@contextmanager
def _open_model(spec: EvaluationSpec, weights: str, tokenizer: str) -> Iterator[Generator]:
    """`open_generator` for folders on the local disk."""
    if spec.backend == "vllm":
        from relex_core.evaluate.vllm_backend import VllmGenerator

        engine = VllmGenerator(weights, tokenizer, spec)
        try:
            yield engine
        finally:
            engine.close()
        return
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
