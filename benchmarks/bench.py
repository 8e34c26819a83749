"""Fit and extrapolate beside plain reads and copies and, on request, beside the RELEX authors' scripts and mergekit.

    python benchmarks/bench.py                              # 62 M parameters, 24 steps
    python benchmarks/bench.py --reference DIR              # DIR: a checkout of github.com/weizhepei/RELEX
    python benchmarks/bench.py --mergekit PYTHON            # of an environment that has mergekit
    python benchmarks/bench.py --move 1e-6                  # 1 to 2 % of the weights change in a step
    python benchmarks/bench.py --cold                       # drop the files from the page cache before each run

Every figure is of whole processes, their start included, unless the line says otherwise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path

from measuring import RELEX, Measured, compile_bytecode, folder_bytes, forget, in_turns, measured, plain_read, repeated
from rivals import authors_scripts, mergekit_linear

TARGET = 500
TEN_TARGETS = range(100, 1100, 100)


def main() -> None:
    arguments = parse()
    bench = Bench(arguments)
    compile_bytecode()
    bench.read()  # warms the page cache, or shows that it stays cold
    print(f"{bench.model_bytes / 2e6:.0f} M parameters, {arguments.steps} steps, ", end="")
    print(f"window {bench.window_bytes / 1e9:.2f} GB, {'cold' if arguments.cold else 'warm'}", flush=True)
    collected = repeated(bench.collect, arguments.repeat)
    plain, fitted = in_turns(arguments.repeat, bench.read, bench.fit)
    artifact = json.loads((bench.out / "fit" / "fit.json").read_text())
    row("relex collect", collected)
    row("plain pread, one thread", plain)
    row("relex fit", fitted)
    itself = statistics.median(bench.fit_seconds)
    print(f"  the fit itself {itself:.2f} s, {itself / plain.seconds:.2f} x plain pread; ", end="")
    print(f"bytes read {artifact['bytes_read'] / (bench.window_bytes + bench.model_bytes):.3f} x; ", end="")
    print(f"extra disk {folder_bytes(bench.out / 'fit') / bench.model_bytes:.2f} models", flush=True)
    copied, extrapolated = in_turns(arguments.repeat, bench.copy, lambda: bench.extrapolate([TARGET]))
    row("copy of the base, with fsync", copied)
    row("relex extrapolate, one target", extrapolated)
    print(f"  {extrapolated.seconds / copied.seconds:.2f} x the copy", flush=True)
    row("relex extrapolate, ten targets", bench.extrapolate(TEN_TARGETS))
    two = fitted + extrapolated
    three = collected + two
    row("collect + fit + extrapolate", three)
    row("relex run, with forecast and report", repeated(bench.whole, arguments.repeat))

    if arguments.mergekit:
        rival = repeated(lambda: mergekit_linear(arguments.mergekit, bench.data, bench.out), arguments.repeat)
        row("mergekit, linear, the same sum", rival)
        print(f"mergekit / relex extrapolate        {rival.seconds / extrapolated.seconds:8.1f} x", flush=True)
    if arguments.reference:
        bench.cool()
        rival = authors_scripts(arguments.reference, bench.data, arguments.steps, TARGET)
        row("the authors' two scripts", rival)
        print(f"  {folder_bytes(bench.data / 'reference' / 'deltas') / 1e9:.2f} GB of deltas on disk")
        print(f"authors / (fit + extrapolate)           {rival.seconds / two.seconds:4.1f} x")
        print(f"authors / (collect + fit + extrapolate) {rival.seconds / three.seconds:4.1f} x")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("bench-data"))
    parser.add_argument("--parameters", type=float, default=62e6)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--move", type=float, help="of a weight in a step: 1e-6 for few changes, as in real runs")
    parser.add_argument("--budget", default="4GiB")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--reference", type=Path, help="checkout of the authors' scripts")
    parser.add_argument("--mergekit", type=Path, help="python of an environment that has mergekit")
    return parser.parse_args()


def row(what: str, found: Measured) -> None:
    peak = f"{found.peak_bytes / 1e9:6.2f} GB peak" if found.peak_bytes else ""
    print(f"{what:35} {found.seconds:7.2f} s {peak}", flush=True)


class Bench:
    """One trajectory, and the commands to be timed on it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        name = f"{arguments.parameters:.0f}-{arguments.steps}"
        self.data = arguments.data / (f"{name}-{arguments.move:g}" if arguments.move else name)
        # In a process of its own: Linux counts a parent's memory before exec as its child's.
        sizes = ("--parameters", str(arguments.parameters), "--steps", str(arguments.steps))
        sizes += ("--move", str(arguments.move)) if arguments.move else ()
        measured([sys.executable, Path(__file__).with_name("trajectory.py"), self.data, *sizes])
        self.out, self.cold = self.data / "relex", arguments.cold
        self.base = self.data / "base" / "model.safetensors"
        window = sorted((self.data / "run").rglob("*.safetensors"))
        self.files = [*window, self.base]
        self.window_bytes = sum(path.stat().st_size for path in window)
        self.model_bytes = self.base.stat().st_size
        self.fit_seconds: list[float] = []
        """As fit.json has them: without the start."""
        self.spec = self.data / "relex.json"
        self.spec.write_text(
            json.dumps(
                {
                    "base": str((self.data / "base").resolve()),
                    "trajectory": str((self.data / "run").resolve()),
                    "run_root": str(self.out.resolve()),
                    "window": {"t_cut": arguments.steps, "settle_seconds": 0},
                    "fit": {"memory_budget": arguments.budget},
                    "candidates": {"target_steps": [TARGET], "baselines": ["last_observed"]},
                }
            )
        )

    def cool(self) -> None:
        if self.cold:
            forget(self.files)

    def read(self) -> Measured:
        self.cool()
        return plain_read(self.files)

    def copy(self) -> Measured:
        self.cool()
        target = self.data / "copy"
        target.unlink(missing_ok=True)
        return measured(["dd", f"if={self.base}", f"of={target}", "bs=8M", "conv=fsync"])

    def collect(self) -> Measured:
        shutil.rmtree(self.out, ignore_errors=True)
        self.cool()
        return measured([*RELEX, "collect", self.spec])

    def fit(self) -> Measured:
        shutil.rmtree(self.out / "fit", ignore_errors=True)
        self.cool()
        found = measured([*RELEX, "fit", self.out])
        self.fit_seconds.append(json.loads((self.out / "fit" / "fit.json").read_text())["seconds"])
        return found

    def extrapolate(self, targets: range | list[int]) -> Measured:
        shutil.rmtree(self.out / "candidates", ignore_errors=True)
        self.cool()
        options = [option for target in targets for option in ("--target-step", str(target))]
        return measured([*RELEX, "extrapolate", self.out, *options])

    def whole(self) -> Measured:
        shutil.rmtree(self.out, ignore_errors=True)
        self.cool()
        return measured([*RELEX, "run", self.spec])


if __name__ == "__main__":
    main()
