"""From the names of tensors to module types: which tensors are looked at together.

    model.layers.3.self_attn.q_proj.weight  ->  q_proj           model.embed_tokens.weight   ->  embed
    model.layers.3.mlp.down_proj.weight     ->  mlp.down_proj    model.norm.weight           ->  norm
    model.layers.3.mlp.experts.7.up_proj.weight -> mlp.experts.up_proj      lm_head.weight   ->  lm_head

A new architecture needs no entry here: a name that is not known keeps its path without numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EMBEDDINGS = frozenset({"embed_tokens", "wte", "wpe", "word_embeddings", "embed_in", "tok_embeddings"})
ATTENTION = frozenset({"self_attn", "attn", "attention", "self_attention", "cross_attn"})
TOWERS = frozenset({"visual", "vision_tower", "vision_model", "audio_tower"})
"""Parts of a multimodal model whose layers are not those of the language model."""


def module_type(name: str) -> str:
    """The module type of one tensor, from its Hugging Face name."""
    parts = [part for part in name.split(".") if not part.isdigit()]
    suffix = ""
    if parts[-1] == "bias" and len(parts) > 1:
        suffix = ".bias"
    if parts[-1] in ("weight", "bias") and len(parts) > 1:
        parts = parts[:-1]
    if "norm" in parts[-1].lower() or parts[-1] in ("ln_1", "ln_2", "ln_f"):
        return _within(name, "norm")
    if parts[-1] in EMBEDDINGS:
        return _within(name, "embed")
    if parts[-1] == "lm_head":
        return "lm_head" + suffix
    return _within(name, ".".join(_inside_layer(name, parts)) + suffix)


def layer_number(name: str) -> int | None:
    """The first number in the name: the layer; None outside the layers."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _inside_layer(name: str, parts: Sequence[str]) -> Sequence[str]:
    """The path below the layer's number, without the attention block's own name."""
    pieces = name.split(".")
    first = next((row for row, piece in enumerate(pieces) if piece.isdigit()), None)
    inside = parts[first:] if first is not None else parts
    kept = [part for part in inside if part not in ATTENTION]
    return kept or parts


def _within(name: str, kind: str) -> str:
    tower = next((part for part in name.split(".") if part in TOWERS), None)
    return f"{tower}.{kind}" if tower else kind


def membership(names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Module types in order of first appearance, then "model", and which tensors belong to each.

    Returns:
        Types "types + 1", and a matrix of 0 and 1, "types+1 N": multiply it with anything additive over tensors.
    """
    kinds = [module_type(name) for name in names]
    types = tuple(dict.fromkeys(kinds))
    rows = [[float(kind == other) for other in kinds] for kind in types]
    return (*types, MODEL), np.array([*rows, [1.0] * len(names)]).reshape(len(types) + 1, len(names))


MODEL = "model"
"""Name of the group that holds all tensors."""
