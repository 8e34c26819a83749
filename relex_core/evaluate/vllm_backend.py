"""The vLLM backend: an offline engine in a process of its own for each candidate.

The engine itself has not been run by this project, whose tests have no GPU: they run this process and its protocol with
a stand-in for the library.

A process for each candidate, because an engine does not give back all of a GPU's memory while its process lives. Every
prompt has its own seed, so that the answers of one batch, and the k samples of a question, share no random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from relex_core.errors import DataError
from relex_core.evaluate.generate import VLLM_DTYPE, Completion, Sampling, row_seed
from relex_core.evaluate.process import Child, ChildDied
from relex_core.spec import EvaluationSpec

START_SECONDS = 1800.0
"""Loading weights and compiling kernels."""
BATCH_SECONDS = 24 * 3600.0
CLOSE_SECONDS = 60.0
"""For the engine's own processes to end and give their GPUs' memory back; what is left of them is killed."""


class VllmGenerator:
    """The engine's process, loaded."""

    def __init__(self, weights: str, tokenizer: str, spec: EvaluationSpec) -> None:
        for uri in (weights, tokenizer):
            if not Path(uri).is_dir():
                raise DataError("there is no such folder", where=uri)
        self._where = weights
        arguments = [weights, tokenizer, VLLM_DTYPE, str(spec.tensor_parallel), str(spec.gpu_memory)]
        self._child = Child("relex_core.evaluate.vllm_worker", arguments, start_seconds=START_SECONDS)

    def close(self) -> None:
        self._child.close(patience=CLOSE_SECONDS)

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        seeds = [row_seed(sampling.seed, row) for row in range(len(prompts))]
        request = {"prompts": list(prompts), "seeds": seeds, "sampling": asdict(sampling)}
        try:
            answers = self._child.ask(request, BATCH_SECONDS)
        except ChildDied as error:
            raise DataError(
                f"the vLLM engine ended: {error}",
                where=self._where,
                next_step="lower evaluation.gpu_memory or batch_size; finished batches are kept",
            ) from None
        return [Completion(**answer) for answer in answers]
