"""Models and tokenizers from folders on the local disk: nothing is downloaded, no code of a folder is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from relex_core.errors import DataError
from relex_core.evaluate.scratch import local_companions


def load_tokenizer(folder: str) -> tuple[Any, list[int]]:
    """The base's tokenizer, and every token that ends an answer: its own eos and those of the generation config."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", local_files_only=True)
        try:
            config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except OSError:  # the file is optional
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if tokenizer.vocab_size < 2:  # transformers makes one up for a folder without tokenizer files
            raise ValueError("the folder has no tokenizer files")
    except (OSError, ValueError) as error:
        raise DataError(
            f"the base's tokenizer cannot be loaded: {error}",
            where=folder,
            expected="tokenizer.json, or what this kind of model uses",
            next_step="put the model's tokenizer files into the base's folder",
        ) from error
    eos = config.eos_token_id
    stop = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
    if tokenizer.pad_token_id is None:  # any token will do: padding is masked
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer, sorted(stop)


def load_model(folder: str, dtype: torch.dtype) -> Any:
    """A model in evaluation mode, all of whose weights came from the folder's safetensors.

    Raises:
        DataError: a file is missing or torn, or weights are missing or have another shape.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]  # relex shows its own
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        # Neither pickles nor code of the folder; mismatched shapes are reported below, by name.
        model, report = load(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(
            f"the model cannot be loaded: {error}",
            where=folder,
            expected="config.json and safetensors weights",
            next_step="restore this checkpoint; only a candidate may be deleted: relex extrapolate RUN writes it again",
        ) from error
    # transformers would fill these with random numbers and only warn.
    absent = sorted(str(name) for name in [*report["missing_keys"], *report["mismatched_keys"]])
    if absent:
        raise DataError(
            f"{len(absent)} weights are missing or have another shape: {', '.join(absent[:5])}",
            where=folder,
            expected="all weights that config.json implies",
            next_step="write this checkpoint again",
        )
    return model.eval()


def chat_renderer(uri: str, system: str | None) -> Callable[[str], str]:
    """Puts a user's message into the chat template of the base's tokenizer.

    Args:
        uri: the base; a path or gs://.

    Raises:
        DataError: the tokenizer has no chat template.
    """
    with local_companions(uri) as folder:
        tokenizer, _ = load_tokenizer(folder)
    if not tokenizer.chat_template:
        raise DataError(
            "the base's tokenizer has no chat template",
            where=uri,
            expected="chat_template in tokenizer_config.json",
            next_step="write the format into task.prompt.template, without chat",
        )
    before = [] if system is None else [{"role": "system", "content": system}]

    def render(question: str) -> str:
        messages = [*before, {"role": "user", "content": question}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    return render
