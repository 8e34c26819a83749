"""Fit and extrapolate beside plain reads and, with --reference, beside the RELEX authors' scripts.

    python benchmarks/bench.py                              # 62 M parameters, 24 steps
    python benchmarks/bench.py --reference DIR              # DIR: a checkout of github.com/weizhepei/RELEX
    python benchmarks/bench.py --cold                       # drop the files from the page cache before each run

Every figure is of a whole process, its start included; peak memory is the operating system's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TARGETS = "500"


@dataclass(frozen=True)
class Measured:
    """One finished command."""

    seconds: float
    peak_bytes: int


def measured(command: list[str]) -> Measured:
    """Run a command and wait for it. Raises CalledProcessError if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise subprocess.CalledProcessError(status, command, stderr=errors.decode()[-3000:])
    return Measured(time.perf_counter() - started, usage.ru_maxrss * 1024)


def plain_read(files: list[Path]) -> float:
    """Seconds to pread every byte into one reused buffer, on one thread."""
    buffer = bytearray(8 * 2**20)
    started = time.perf_counter()
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        offset = 0
        while count := os.preadv(handle, [buffer], offset):
            offset += count
        os.close(handle)
    return time.perf_counter() - started


def forget(files: list[Path]) -> None:
    """Drop files from the page cache."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def repeated(run: Callable[[], Measured], times: int) -> Measured:
    """Medians over several runs."""
    runs = [run() for _ in range(times)]
    return Measured(statistics.median(r.seconds for r in runs), max(r.peak_bytes for r in runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("bench-data"))
    parser.add_argument("--parameters", type=float, default=62e6)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--budget", default="4GiB")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--reference", type=Path, help="checkout of the authors' scripts")
    arguments = parser.parse_args()

    data = arguments.data / f"{arguments.parameters:.0f}-{arguments.steps}"
    # In a process of its own: Linux counts a parent's memory before exec as its child's.
    sizes = ["--parameters", str(arguments.parameters), "--steps", str(arguments.steps)]
    subprocess.run([sys.executable, str(Path(__file__).with_name("trajectory.py")), str(data), *sizes], check=True)
    base, trajectory, out = data / "base", data / "run", data / "relex"
    window = sorted(trajectory.rglob("*.safetensors"))
    window_bytes = sum(path.stat().st_size for path in window)
    model_bytes = (base / "model.safetensors").stat().st_size
    spec = data / "relex.json"
    spec.write_text(
        json.dumps(
            {
                "base": str(base.resolve()),
                "trajectory": str(trajectory.resolve()),
                "run_root": str(out.resolve()),
                "window": {"t_cut": arguments.steps, "settle_seconds": 0},
                "fit": {"memory_budget": arguments.budget},
                "candidates": {"target_steps": [int(TARGETS)], "baselines": ["last_observed"]},
            }
        )
    )
    relex = [sys.executable, "-m", "relex_core"]

    def prepare() -> None:
        shutil.rmtree(out, ignore_errors=True)
        if arguments.cold:
            forget([*window, base / "model.safetensors"])

    def fit() -> Measured:
        prepare()
        measured([*relex, "collect", str(spec)])
        if arguments.cold:
            forget([*window, base / "model.safetensors"])
        return measured([*relex, "fit", str(out)])

    def whole() -> Measured:
        prepare()
        return measured([*relex, "run", str(spec)])

    def read() -> Measured:
        if arguments.cold:
            forget([*window, base / "model.safetensors"])
        return Measured(plain_read([*window, base / "model.safetensors"]), 0)

    read()  # warm the page cache, or find out that it stays cold
    plain, fitted = repeated(read, arguments.repeat), repeated(fit, arguments.repeat)
    artifact = json.loads((out / "fit" / "fit.json").read_text())
    fit_disk = folder_bytes(out / "fit")
    extrapolated = measured([*relex, "extrapolate", str(out)])
    both = repeated(whole, arguments.repeat)

    print(
        f"{model_bytes / 2e6:.0f} M parameters, {arguments.steps} steps, window {window_bytes / 1e9:.2f} GB, ", end=""
    )
    print("cold" if arguments.cold else "warm")
    print(f"plain pread             {plain.seconds:7.2f} s")
    print(f"fit, whole process      {fitted.seconds:7.2f} s   {fitted.peak_bytes / 1e9:.2f} GB peak")
    print(
        f"  the fit itself        {artifact['seconds']:7.2f} s   {artifact['seconds'] / plain.seconds:.2f} x plain read"
    )
    print(f"  bytes read            {artifact['bytes_read'] / (window_bytes + model_bytes):7.3f} x (window + base)")
    print(f"  extra disk            {fit_disk / model_bytes:7.2f} x model")
    print(f"extrapolate, process    {extrapolated.seconds:7.2f} s   {extrapolated.peak_bytes / 1e9:.2f} GB peak")
    print(f"relex run, process      {both.seconds:7.2f} s   {both.peak_bytes / 1e9:.2f} GB peak")
    if arguments.reference:
        reference(arguments, data, both)


def reference(arguments: argparse.Namespace, data: Path, ours: Measured) -> None:
    """The authors' two scripts on the same files, as their README calls them."""
    out = data / "reference"

    def theirs() -> Measured:
        shutil.rmtree(out, ignore_errors=True)
        scripts = arguments.reference / "scripts"
        deltas = measured(
            [
                *(sys.executable, str(scripts / "precompute_deltas.py"), "--base_model", str(data / "base")),
                *("--checkpoint_dir", str(data / "run"), "--output_dir", str(out / "deltas")),
                *("--max_checkpoints", str(arguments.steps), "--num_workers", "2"),
            ]
        )
        svd = measured(
            [
                *(sys.executable, str(scripts / "svd_extrapolation.py"), "--base_model", str(data / "base")),
                *("--delta_dir", str(out / "deltas"), "--history_steps", str(arguments.steps), "--rank", "1"),
                *("--fit_method", "linear", "--mode", "extrapolate", "--target_steps", TARGETS),
                *("--output_dir", str(out / "relex"), "--num_workers", "2"),
            ]
        )
        return Measured(deltas.seconds + svd.seconds, max(deltas.peak_bytes, svd.peak_bytes))

    run = repeated(theirs, 1)
    print(f"authors' two scripts    {run.seconds:7.2f} s   {run.peak_bytes / 1e9:.2f} GB peak, ", end="")
    print(f"{folder_bytes(out / 'deltas') / 1e9:.2f} GB of deltas")
    print(f"authors / relex run     {run.seconds / ours.seconds:7.1f} x")


if __name__ == "__main__":
    main()
