"""Trajectories of real shards beside the same weights as safetensors, made once for a test session."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import random_base, random_walk
from support import SMALL, write_checkpoint

TESTS = Path(__file__).parents[1]
STEPS = [1, 2, 4]
GOLDEN_STEPS = [2, 4]

JOBS = {
    # name: kind, ranks, weights. 40, 70, 8 and 1 rows over 3 ranks: uneven, and empty on ranks 1 and 2.
    "fsdp2-float32": ("fsdp2", 3, "float32"),
    "fsdp2-bfloat16": ("fsdp2", 2, "bfloat16"),
    "fsdp1-float32": ("fsdp1", 2, "float32"),
    "hsdp": ("hsdp", 4, "bfloat16"),
    "sharded_tensor": ("sharded_tensor", 2, "bfloat16"),
    "tied-fsdp2": ("fsdp2", 3, "golden"),
    "tied-fsdp1": ("fsdp1", 2, "golden"),
    "odd": ("odd", 1, ""),
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with base/ (bfloat16), golden/base, and for each job its shards; the same as safetensors in
    float32/, bfloat16/ and golden/. Do not change what lies there; `copied` gives a copy."""
    root = tmp_path_factory.mktemp("fsdp")
    base = random_base(dtype=torch.bfloat16)
    write_checkpoint(root / "base", base)
    states = random_walk({name: tensor.float() for name, tensor in base.items()}, STEPS)
    for dtype in ("float32", "bfloat16"):
        for step, state in states.items():
            tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items()}
            write_checkpoint(root / dtype / f"global_step_{step}" / "actor" / "huggingface", tensors)
    for name in ("base", *(f"global_step_{step}" for step in GOLDEN_STEPS)):
        shutil.copytree(SMALL / "run" / name, root / "golden" / name)
    jobs = [job(root, name) for name in JOBS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "fsdp.save", json.dumps(jobs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    yield root


def job(root: Path, name: str) -> dict[str, Any]:
    kind, world, source = JOBS[name]
    steps = GOLDEN_STEPS if source == "golden" else STEPS if kind in ("fsdp1", "fsdp2") else STEPS[:1]
    return {"kind": kind, "world": world, "source": str(root / source), "out": str(root / name), "steps": steps}


def actor(root: Path, step: int) -> Path:
    return root / f"global_step_{step}" / "actor"
