"""adapter_config.json, as PEFT writes it: rank and scaling of each module, and what relex does not take.

    Δ = scaling · B A        scaling = alpha / r, or alpha / √r (rsLoRA); rank_pattern and alpha_pattern by module

A field that could change the weights in another way is refused by name. So is a field that is not known here and that
is set: PEFT adds variants of LoRA with almost every version.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from relex_core.manifest import ADAPTER_WEIGHTS

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = ADAPTER_WEIGHTS

# Initialisations that start from B A = 0, so that the run starts from the base. The others (PiSSA, OLoRA, CorDA,
# LoftQ, LoRA-GA, MiCA) change the base, or start elsewhere.
FROM_THE_BASE: tuple[JsonValue, ...] = (True, "gaussian", "eva", "orthogonal")

# Fields that say how an adapter was trained, where it belongs, or what the names of its tensors repeat.
HARMLESS = {
    *("auto_mapping", "base_model_class", "bias", "corda_config", "eva_config", "exclude_modules", "inference_mode"),
    *("layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core"),
    *("modules_to_save", "parent_library", "peft_version", "qalora_group_size", "revision", "runtime_config"),
    *("target_modules", "task_type"),
}

REFUSED = {
    "use_dora": "DoRA scales each row by its norm: that is no low-rank update",
    "use_qalora": "QALoRA pools the inputs",
    "use_bdlora": "block-diagonal LoRA is not read",
    "lora_bias": "biases of lora_B are not read",
    "layer_replication": "it makes another model out of the base's layers",
    "alora_invocation_tokens": "an activated LoRA is no update of the weights",
    "trainable_token_indices": "single trained rows of the embedding are not read",
    "target_parameters": "adapters of single parameters (mixtures of experts) are not read",
    "megatron_config": "Megatron's parallel layers are not read",
    "arrow_config": "Arrow routes between adapters",
    "ensure_weight_tying": "tied adapters are not read",
}


class AdapterConfig(BaseModel):
    """What relex needs of adapter_config.json; everything else is kept as it stands in `model_extra`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    peft_type: str
    r: int = Field(ge=1)
    lora_alpha: float = Field(allow_inf_nan=False)
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    """Weights are stored "in out" (GPT-2's Conv1D), so that Δ is the transposed product."""
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    init_lora_weights: JsonValue = True
    base_model_name_or_path: str | None = None

    def rank(self, module: str) -> int:
        """r of one module, named as in the base ("model.layers.0.self_attn.q_proj")."""
        patterns = self.rank_pattern or {}
        return next((patterns[key] for key in _matching(patterns, module)), self.r)

    def scaling(self, module: str) -> float:
        """What B A is multiplied by in one module."""
        patterns, rank = self.alpha_pattern or {}, self.rank(module)
        alpha = next((patterns[key] for key in _matching(patterns, module)), self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    @property
    def problems(self) -> list[str]:
        """Why relex cannot take adapters with this config."""
        if self.peft_type != "LORA":
            return [f"{CONFIG_FILE} says peft_type {self.peft_type:.40}: only LORA is read"]
        extra = self.model_extra or {}
        found = [f"{CONFIG_FILE} sets {name}: {why}" for name, why in REFUSED.items() if extra.get(name)]
        known = HARMLESS | REFUSED.keys()
        found += [
            f"{CONFIG_FILE} sets {name[:80]}, which relex does not know"
            for name, value in extra.items()
            if value and name not in known
        ]
        if self.init_lora_weights not in FROM_THE_BASE:
            found.append(
                f"{CONFIG_FILE} has init_lora_weights {self.init_lora_weights!r:.40}: "
                "the run did not start from the base's own weights"
            )
        ranks, alphas = (self.rank_pattern or {}).values(), (self.alpha_pattern or {}).values()
        if min(ranks, default=1) < 1 or not all(map(math.isfinite, alphas)):
            found.append(f"{CONFIG_FILE} has a rank below 1 or an alpha that is no number")
        return found + [
            f"{CONFIG_FILE} has a pattern that is no regular expression: {key[:80]!r}"
            for key in [*(self.rank_pattern or {}), *(self.alpha_pattern or {})]
            if not _is_pattern(key)
        ]


def parse_adapter_config(data: bytes) -> AdapterConfig:
    """Read adapter_config.json.

    Raises:
        ValueError: it is not JSON (perhaps it is being written).
        ValidationError: it is no config of an adapter; also a ValueError.
    """
    try:
        return AdapterConfig.model_validate(json.loads(data))
    except RecursionError as error:
        raise ValueError(str(error)) from None


def faults(error: ValidationError) -> str:
    """What is wrong with a config, in one line."""
    return "; ".join(
        f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}" for fault in error.errors(include_url=False)
    )


def _matching(patterns: Iterable[str], module: str) -> Iterator[str]:
    """The patterns that fit a module, as PEFT matches them: the whole name, or what follows a dot."""
    return (key for key in patterns if re.match(rf"(.*\.)?({key})$", module))


def _is_pattern(key: str) -> bool:
    try:
        re.compile(rf"(.*\.)?({key})$")
    except re.error:
        return False
    return True
