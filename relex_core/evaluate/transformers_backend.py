"""The transformers backend: a thin decoding loop over any `AutoModelForCausalLM` folder on the local disk.

Why not `model.generate`: it takes no random generator of its own, and it is no faster (1024 prompts x 5 tokens on two
idle cores: 0.07 s against 0.08 s at 25 thousand parameters, 0.3 s for both at 0.8 million).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from relex_core.errors import DataError
from relex_core.evaluate.generate import Completion, Sampling
from relex_core.evaluate.loading import load_model, load_tokenizer

# Below this many parameters one thread decodes about as fast as two idle cores, and keeps its speed on busy ones, where
# threads that wait for each other at every small matrix cost 5 to 70 times as much (measured: 0.8 million parameters).
ONE_THREAD_BELOW = 5_000_000


class TransformersGenerator:
    """A model in evaluation mode. Prompts are literal: no chat template, no special tokens, padded on the left.

    Finished rows stay in their batch until all are done, so every candidate is decoded in batches of the same shape.
    """

    def __init__(self, weights: str, tokenizer: str, *, device: str, dtype: str) -> None:
        self._where = weights
        self._device = torch.device(device)
        self._tokenizer, stop = load_tokenizer(tokenizer)
        self._stop = torch.tensor(stop, dtype=torch.long, device=self._device)
        self._model = load_model(weights, getattr(torch, dtype)).to(self._device)
        self._positions: int | None = getattr(self._model.config, "max_position_embeddings", None)
        small = sum(weight.numel() for weight in self._model.parameters()) < ONE_THREAD_BELOW
        self._threads = 1 if small else torch.get_num_threads()

    def close(self) -> None:
        self._model = None

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        with torch.inference_mode(), _threads(self._threads):
            return self._generate(prompts, sampling)

    def _generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        encoded = self._tokenizer(list(prompts), return_tensors="pt", padding=True, add_special_tokens=False)
        tokens, mask = encoded["input_ids"].to(self._device), encoded["attention_mask"].to(self._device)
        random = torch.Generator(self._device).manual_seed(sampling.seed)
        positions = (mask.cumsum(1) - 1).clamp(min=0)  # each prompt's first token is at 0, wherever its padding ends
        done = torch.zeros(len(prompts), dtype=torch.bool, device=self._device)
        cache, written = None, []
        for _ in range(self._room(mask, sampling.max_tokens)):
            logits, cache = self._forward(tokens, mask, positions, cache)
            tokens = _choose(logits, sampling, random)
            written.append(tokens)
            done |= torch.isin(tokens[:, 0], self._stop)
            if done.all():
                break
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return [self._completion(row) for row in torch.cat(written, dim=1).tolist()]

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits "B V" after the last of `tokens` "B L", in float32, and the grown cache."""
        output = self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1].float()
        if not logits.isfinite().all():
            raise DataError(
                "the model's logits are not finite",
                where=self._where,
                expected="finite weights of sensible size",
                next_step="leave this candidate out: its target step or scale is too far",
            )
        return logits, output.past_key_values

    def _room(self, mask: Tensor, max_tokens: int) -> int:
        """How many tokens fit after the longest prompt of the batch."""
        lengths = mask.sum(1)
        if not lengths.all():
            raise DataError("the tokenizer makes no tokens of a prompt", where=self._where, expected="at least one")
        longest = int(lengths.max())
        room = max_tokens if self._positions is None else min(max_tokens, self._positions - longest)
        if room < 1:
            raise DataError(
                f"a prompt has {longest} tokens",
                where=self._where,
                expected=f"fewer than the model's {self._positions} positions",
                next_step="shorten the prompt, or remove it from the task",
            )
        return room

    def _completion(self, row: list[int]) -> Completion:
        """One row of generated tokens, cut at its stop token; what follows that is an artefact of the batch."""
        stops = set(self._stop.tolist())
        end = next((i for i, token in enumerate(row) if token in stops), None)
        text = self._tokenizer.decode(row[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return Completion(text, len(row), "length") if end is None else Completion(text, end + 1, "stop")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use that many threads for the length of a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_memory() -> None:
    """Return the memory of a closed model before the next is loaded."""
    gc.collect()
    torch.cuda.empty_cache()


def _choose(logits: Tensor, sampling: Sampling, random: torch.Generator) -> Tensor:
    """The next token of each row "B 1": the likeliest, or one drawn from the nucleus of probability top_p."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    probabilities = (logits / sampling.temperature).softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        outside = (
            ordered.cumsum(-1) - ordered >= sampling.top_p
        )  # probability before this token: the first always stays
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(outside, 0.0))
    return torch.multinomial(probabilities, 1, generator=random)
