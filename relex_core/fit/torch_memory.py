"""Arrays as torch tensors, on a CUDA device. Has never run on one: the tests use it on the CPU.

    pinned buffer --copy, row by row--> device --gram.py--> host

Every thread of the fit has a stream of its own, so that one thread's copies overlap another's arithmetic; with two
stripes per thread in pinned memory, reading overlaps both.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from relex_core.dtypes import NUMPY_DTYPES
from relex_core.stripes import BLOCK_COLUMNS

TORCH_DTYPES = {
    NUMPY_DTYPES["F64"]: torch.float64,
    NUMPY_DTYPES["F32"]: torch.float32,
    NUMPY_DTYPES["F16"]: torch.float16,
    NUMPY_DTYPES["BF16"]: torch.bfloat16,
}


class TorchMemory:
    """A device of torch; see `Memory`."""

    maps = False  # only pinned memory is copied while the host goes on

    def __init__(self, device: torch.device) -> None:
        self._device, self.name = device, str(device)
        self._own = threading.local()
        # Ten bits of each delta are not enough; these are torch's defaults, here made sure of.
        torch.backends.cuda.matmul.allow_tf32 = False

    def empty(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        return torch.empty(shape, dtype=getattr(torch, dtype), device=self._device)

    def buffer(self, shape: tuple[int, ...]) -> np.ndarray:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda").numpy()

    def load(self, array: np.ndarray) -> Tensor:
        # bfloat16 is unknown to torch.from_numpy: bytes are. Rows of a stripe do not lie side by side, and only
        # contiguous pinned memory is copied without the host waiting.
        rows = array if array.ndim == 2 else array[None]
        loaded = torch.empty(rows.shape, dtype=TORCH_DTYPES[array.dtype], device=self._device)
        for target, row in zip(loaded, rows, strict=True):
            target.view(torch.uint8).copy_(torch.from_numpy(row.view(np.uint8)), non_blocking=True)
        return loaded if array.ndim == 2 else loaded[0]

    def fetch(self, array: Tensor) -> np.ndarray:
        return array.cpu().numpy()  # waits for this thread's stream

    def self_product(self, tile: Tensor) -> Tensor:
        return torch.mm(tile, tile.T)

    def tile_columns(self, steps: int) -> int:
        return BLOCK_COLUMNS  # a device has no use for small tiles

    def kernels(self, steps: int) -> None:
        return None

    def in_order(self) -> AbstractContextManager[object]:
        if self._device.type != "cuda":
            return nullcontext()
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._own.stream)
