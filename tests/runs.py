"""Small runs on disk for the tests of fit and extrapolate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from relex_core.collect import collect
from relex_core.spec import resolve_spec

Tensors = Mapping[str, torch.Tensor]

SHAPES = {
    "model.embed_tokens.weight": (40, 8),
    "model.layers.0.mlp.weight": (70, 33),
    "model.layers.0.norm.weight": (8,),
    "model.scalar": (1,),
    "lm_head.weight": (40, 8),
}


def random_base(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: (0.02 * torch.randn(shape, generator=generator)).to(dtype) for name, shape in SHAPES.items()}


def random_walk(
    base: Tensors, steps: list[int], seed: int = 1, size: float = 1e-3
) -> dict[int, dict[str, torch.Tensor]]:
    """A walk with drift from `base`, in its dtypes; integer tensors stay."""
    generator = torch.Generator().manual_seed(seed)
    masters = {name: tensor.double() for name, tensor in base.items()}
    drift = {name: size * torch.randn(t.shape, generator=generator, dtype=torch.float64) for name, t in base.items()}
    states, last = {}, 0
    for step in steps:
        for name in masters:
            noise = torch.randn(masters[name].shape, generator=generator, dtype=torch.float64)
            masters[name] = masters[name] + (step - last) * drift[name] + size * (step - last) ** 0.5 * noise
        last = step
        states[step] = {n: m.to(base[n].dtype) if base[n].is_floating_point() else base[n] for n, m in masters.items()}
    return states


def write_run(root: Path, base: Tensors, states: Mapping[int, Tensors], *, out: str = "run", **sections: Any) -> str:
    """Write base and trajectory once, collect them with the given spec sections, return the run directory."""
    if not (root / "base").exists():
        save(root / "base", base)
        for step, tensors in states.items():
            save(root / "trajectory" / f"global_step_{step}", tensors)
    spec = {"base": str(root / "base"), "trajectory": str(root / "trajectory"), **sections}
    spec["window"] = {"settle_seconds": 0, **(sections.get("window") or {"t_cut": max(states)})}
    collect(resolve_spec(spec, where="test", folder=root, out=str(root / out)))
    return str(root / out)


def save(folder: Path, tensors: Tensors) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "test", "dtype": "bfloat16"}))
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def stored(run: str, column: str = "direction") -> dict[str, torch.Tensor]:
    """All tensors of one stored column."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(Path(run, "fit").glob(f"{column}-*-of-*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def candidate(run: str, name: str) -> dict[str, torch.Tensor]:
    """All tensors of one candidate."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(Path(run, "candidates", name).glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors
