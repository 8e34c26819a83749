"""How benchmarks measure: whole processes, their start included; peak memory is the operating system's."""

from __future__ import annotations

import compileall
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import relex_core

RELEX = (sys.executable, "-m", "relex_core")


@dataclass(frozen=True)
class Measured:
    """One finished command, or several in a row."""

    seconds: float
    peak_bytes: int = 0

    def __add__(self, other: Measured) -> Measured:
        return Measured(self.seconds + other.seconds, max(self.peak_bytes, other.peak_bytes))


def compile_bytecode() -> None:
    """As pip does when it installs relex; Python may have been told not to (PYTHONDONTWRITEBYTECODE)."""
    compileall.compile_dir(Path(relex_core.__file__).parent, quiet=1)


def measured(command: Iterable[str | Path]) -> Measured:
    """Run a command and wait for it. Raises CalledProcessError if it fails."""
    arguments = [str(part) for part in command]
    started = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise subprocess.CalledProcessError(status, arguments, stderr=errors.decode()[-3000:])
    return Measured(time.perf_counter() - started, usage.ru_maxrss * 1024)


def repeated(run: Callable[[], Measured], times: int) -> Measured:
    """Median time and largest peak of several runs."""
    return in_turns(times, run)[0]


def in_turns(times: int, *runs: Callable[[], Measured]) -> list[Measured]:
    """`repeated` for several that are compared: each of them runs once, then each once more, and so on."""
    rounds = [[run() for run in runs] for _ in range(times)]
    return [
        Measured(statistics.median(r.seconds for r in of_one), max(r.peak_bytes for r in of_one))
        for of_one in zip(*rounds, strict=True)
    ]


def plain_read(files: Iterable[Path]) -> Measured:
    """pread every byte into one reused buffer, on one thread, in this process."""
    buffer = bytearray(8 * 2**20)
    started = time.perf_counter()
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        offset = 0
        while count := os.preadv(handle, [buffer], offset):
            offset += count
        os.close(handle)
    return Measured(time.perf_counter() - started)


def forget(files: Iterable[Path]) -> None:
    """Drop files from the page cache."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
