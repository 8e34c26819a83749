"""The machine the fit runs on: device, resident memory, threads."""

from __future__ import annotations

import ctypes
import logging
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path

from threadpoolctl import threadpool_limits

from relex_core.errors import SpecError
from relex_core.extras import install
from relex_core.fit.memory import HostMemory, Memory

log = logging.getLogger("relex")


def choose_memory(device: str) -> Memory:
    """Where the fit computes; "auto" is CUDA where there is one. torch is loaded only for CUDA.

    Raises:
        SpecError: there is no such device.
    """
    if device == "cpu" or (device == "auto" and not _has_cuda_driver()):
        return HostMemory()
    if device == "auto" and not find_spec("torch"):
        log.warning("this machine has a CUDA driver, but no torch, so the fit is on the CPU: %s", install("cuda"))
        return HostMemory()
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise SpecError(f"unknown device {device!r}", expected="auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cpu":
        return HostMemory()
    if chosen.type != "cuda":
        raise SpecError(f"unsupported device {device!r}", expected="auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise SpecError(
            f"device {device!r}: this machine or this build of torch has no CUDA", next_step="use device: auto"
        )
    from relex_core.fit.torch_memory import TorchMemory

    return TorchMemory(chosen)


def _has_cuda_driver() -> bool:
    """Whether there is any point in asking torch, which takes seconds to load."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return _status_bytes("VmRSS")


def peak_resident_bytes() -> int:
    """The most it ever was. (getrusage would count the parent's memory too, from before exec.)"""
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def one_thread_per_call() -> AbstractContextManager[object]:
    """The fit runs one thread per core itself; products that start threads of their own only get in the way."""
    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits
