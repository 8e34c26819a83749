"""Real checkpoints, trajectories and specs on disk, in a few lines.

base = random_weights(seed=0)
write_trajectory(tmp_path, base, line_of_states(base, [1, 2, 3]), [1, 2, 3])     # verl's layout
manifest = collect(make_spec(tmp_path, t_cut=3, fit={"rank": 2}))                # run directory: tmp_path/run
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from relex_core.spec import RunSpec, resolve_spec

SMALL = Path(__file__).parent / "data" / "small"
"""A real tiny RLVR run (`run`: base and steps 1..16 in verl's layout) and the authors' outputs for it (`reference`)."""

CONFIG = {"model_type": "qwen3", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 16, "dtype": "bfloat16"}

WEIGHTS_FOLDER = {
    "verl": "global_step_{}/actor/huggingface",
    "authors": "global_step_{}",
    "hf": "checkpoint-{}",
    "openrlhf": "global_step{}_hf",
    "skyrl": "global_step_{}/policy",
    "prime-rl": "step_{}",
    "verl-megatron": "global_step_{}/actor/model/huggingface",
}


def write_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], shards: int = 1, config: Mapping[str, object] | None = None
) -> Path:
    """Write config.json and `tensors` as the real safetensors library does; with `shards` > 1 also an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else dict(config)))
    names = list(tensors)
    if shards == 1:
        save_file({name: tensors[name].contiguous() for name in names}, folder / "model.safetensors")
        return folder
    weight_map = {}
    for shard in range(shards):
        file = shard_name(shard + 1, shards)
        inside = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({name: tensors[name].contiguous() for name in inside}, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(inside, file))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def shard_name(number: int, shards: int) -> str:
    return f"model-{number:05d}-of-{shards:05d}.safetensors"


def write_trajectory(
    root: Path,
    base: Mapping[str, Tensor],
    states: Sequence[Mapping[str, Tensor]],
    steps: Sequence[int],
    layout: str = "verl",
    shards: int = 1,
) -> Path:
    """Write root/base and one checkpoint per step, with the framework's own completion markers.

    Args:
        states: the weights at each step.
        layout: a key of WEIGHTS_FOLDER.
        shards: files per checkpoint, the base included.
    """
    write_checkpoint(root / "base", base, shards)
    for step, state in zip(steps, states, strict=True):
        folder = write_checkpoint(root / WEIGHTS_FOLDER[layout].format(step), state, shards)
        if layout == "hf":
            (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        if layout == "prime-rl":
            (folder / "STABLE").touch()
    if layout.startswith("verl"):
        (root / "latest_checkpointed_iteration.txt").write_text(str(max(steps)))
    return root


def make_spec(root: Path, t_cut: int, **sections: Any) -> RunSpec:
    """The spec of a trajectory that `write_trajectory` wrote: base root/base, run directory root/run.

    Args:
        sections: more of the spec, for example fit={"rank": 2}; `window` is merged with `t_cut` and no second listing.
    """
    window = {"t_cut": t_cut, "settle_seconds": 0, **sections.pop("window", {})}
    data = {"base": "base", "trajectory": ".", "run_root": "run", "window": window, **sections}
    return resolve_spec(data, where="test", folder=root)


def random_weights(seed: int = 0, dtype: torch.dtype = torch.bfloat16, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """A small model's weights near 0.02; by default five tensors of several shapes, one of one element."""
    generator = torch.Generator().manual_seed(seed)
    chosen = shapes or {
        "embed": (16, 8),
        "layer.q_proj": (8, 8),
        "layer.down_proj": (8, 24),
        "layer.norm": (8,),
        "scalar": (1,),
    }
    return {name: (0.02 * torch.randn(shape, generator=generator)).to(dtype) for name, shape in chosen.items()}


def line_of_states(
    base: Mapping[str, Tensor], steps: Sequence[int], speed: float = 1e-3, seed: int = 1
) -> list[dict[str, Tensor]]:
    """Weights that move from `base` along one direction, `speed` per step and weight: an exact rank-1 line
    (up to the rounding of the tensors' dtype). Integer tensors stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    directions = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}

    def at(name: str, tensor: Tensor, step: int) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.clone()
        return (tensor.double() + speed * step * directions[name].double()).to(tensor.dtype)

    return [{name: at(name, tensor, step) for name, tensor in base.items()} for step in steps]
