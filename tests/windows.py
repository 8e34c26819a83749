"""What the tests of collect share: trajectories on disk, damage, and refusals."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import (
    WEIGHTS_FOLDER,
    line_of_states,
    random_weights,
    write_trajectory,
)

from relex_core.collect import find_window
from relex_core.errors import DataError, WindowNotReady
from relex_core.spec import RunSpec


def trajectory(root: Path, steps: Sequence[int] = (1, 2, 3, 4), layout: str = "verl", **kwargs: Any) -> Path:
    base = random_weights()
    return write_trajectory(root, base, line_of_states(base, steps), steps, layout, **kwargs)


def weights(root: Path, step: int, layout: str = "verl") -> Path:
    return root / WEIGHTS_FOLDER[layout].format(step)


def window_error(spec: RunSpec) -> str:
    """The message of a permanent refusal (exit status 4)."""
    with pytest.raises(DataError) as caught:
        find_window(spec)
    assert caught.value.exit_code == 4
    return str(caught.value)


def not_ready(spec: RunSpec) -> str:
    """The message of "try again later" (exit status 3)."""
    with pytest.raises(WindowNotReady) as caught:
        find_window(spec)
    assert caught.value.exit_code == 3
    return str(caught.value)


def truncate(path: Path, count: int = 1) -> None:
    os.truncate(path, path.stat().st_size - count)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Load a checkpoint's only file, change the tensors, and save them again."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
