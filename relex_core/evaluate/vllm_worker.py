"""The engine's process: `python -m relex_core.evaluate.vllm_worker WEIGHTS TOKENIZER DTYPE GPUS MEMORY`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from relex_core.errors import DataError
from relex_core.evaluate.loading import load_tokenizer
from relex_core.evaluate.process import serve

Answers = list[dict[str, object]]


def prepare(weights: str, tokenizer: str, dtype: str, gpus: str, memory: str) -> Callable[[Mapping[str, Any]], Answers]:
    """Load the engine."""
    from vllm import LLM, SamplingParams

    encoder, stop = load_tokenizer(tokenizer)
    engine = LLM(
        model=weights,
        tokenizer=tokenizer,
        dtype=dtype,
        tensor_parallel_size=int(gpus),
        gpu_memory_utilization=float(memory),
        trust_remote_code=False,
        generation_config="vllm",  # the sampling of the spec, not that of the folder
        seed=0,
        enable_prefix_caching=False,  # what was asked before, in a run that was not resumed, must not matter
    )

    def answer(request: Mapping[str, Any]) -> Answers:
        sampling = request["sampling"]
        parameters = [
            SamplingParams(
                temperature=sampling["temperature"],
                top_p=sampling["top_p"],
                max_tokens=sampling["max_tokens"],
                seed=seed,
                stop_token_ids=stop,
                skip_special_tokens=False,
                spaces_between_special_tokens=False,
            )
            for seed in request["seeds"]
        ]
        # Tokens, not text: the engine would add special tokens of its own.
        prompts = [{"prompt_token_ids": encoder.encode(text, add_special_tokens=False)} for text in request["prompts"]]
        try:
            outputs = engine.generate(prompts, parameters, use_tqdm=False)
        except ValueError as error:  # a prompt is longer than the model's positions
            raise DataError(f"the vLLM engine refuses: {error}", where=weights) from error
        return [_completion(output.outputs[0], weights) for output in outputs]

    return answer


def _completion(output: Any, weights: str) -> dict[str, object]:
    if output.finish_reason not in ("stop", "length"):
        raise DataError(f"the vLLM engine gave up on a prompt: {output.finish_reason}", where=weights)
    return {"text": output.text, "tokens": len(output.token_ids), "finish_reason": output.finish_reason}


if __name__ == "__main__":
    serve(partial(prepare, *sys.argv[1:]))
