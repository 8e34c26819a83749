"""The same work done by others: the RELEX authors' scripts, and mergekit."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from measuring import Measured, measured
from safetensors.numpy import load_file, save_file


def authors_scripts(checkout: Path, data: Path, steps: int, target: int) -> Measured:
    """The authors' two scripts on the same files, as their README calls them."""
    out = data / "reference"
    shutil.rmtree(out, ignore_errors=True)
    scripts = checkout / "scripts"
    deltas = measured(
        [
            *(sys.executable, scripts / "precompute_deltas.py", "--base_model", data / "base"),
            *("--checkpoint_dir", data / "run", "--output_dir", out / "deltas"),
            *("--max_checkpoints", str(steps), "--num_workers", "2"),
        ]
    )
    extrapolation = measured(
        [
            *(sys.executable, scripts / "svd_extrapolation.py", "--base_model", data / "base"),
            *("--delta_dir", out / "deltas", "--history_steps", str(steps), "--rank", "1"),
            *("--fit_method", "linear", "--mode", "extrapolate", "--target_steps", str(target)),
            *("--output_dir", out / "relex", "--num_workers", "2"),
        ]
    )
    return deltas + extrapolation


def mergekit_linear(python: Path, data: Path, run: Path) -> Measured:
    """base + c · direction as a linear merge of two models; the direction is first made to look like a model."""
    direction, out = data / "direction-model", data / "mergekit"
    shutil.rmtree(out, ignore_errors=True)
    if not direction.exists():
        shutil.copytree(data / "base", direction, ignore=shutil.ignore_patterns("*.safetensors"))
        tensors = {}
        for path in sorted((run / "fit").glob("direction-*.safetensors")):
            tensors |= load_file(path)
        save_file(tensors, direction / "model.safetensors", metadata={"format": "pt"})
    models = [{"model": str(data / "base"), "parameters": {"weight": 1.0}}]
    models.append({"model": str(direction), "parameters": {"weight": 0.5}})
    config = {
        **{"merge_method": "linear", "parameters": {"normalize": False}, "models": models},
        **{"dtype": "float32", "out_dtype": "bfloat16"},
    }
    recipe = data / "mergekit.yaml"
    recipe.write_text(json.dumps(config))  # JSON is YAML
    return measured([python.with_name("mergekit-yaml"), recipe, out])
