"""Whether this machine has what an evaluation needs: asked before the hours of a fit, and nothing of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from relex_core.errors import SpecError
from relex_core.evaluate.grade import refuse_unusable
from relex_core.extras import install
from relex_core.spec import EvaluationSpec

_MODELS = ("torch", "transformers", "tokenizers", "safetensors")
MODULES: Mapping[str, tuple[str, ...]] = {"scripted": (), "transformers": _MODELS, "vllm": (*_MODELS, "vllm")}
"""By backend: what it imports when the first model is opened."""


def refuse_unready(spec: EvaluationSpec) -> None:
    """Look for the libraries of the backend and the graders of all tasks.

    A user's function is not called, so that its module lacks it is seen only when the gold answers are checked.

    Raises:
        SpecError: something is not installed, or a grader's module is not there.
    """
    for module in ("scipy", *MODULES[spec.backend]):
        if find_spec(module) is None:
            raise SpecError(
                f"{module} is not installed",
                where=f"evaluation.backend: {spec.backend}",
                next_step=install("vllm" if spec.backend == "vllm" else "eval"),
            )
    for split in (*spec.select_splits, *spec.confirm_splits, *spec.guards):
        refuse_unusable(split.task.grader)
