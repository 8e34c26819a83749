"""How the fit's time, bytes and memory grow with the number of steps and of parameters; warm page cache.

    python benchmarks/growth.py [--data DIR] [--steps 8 16 ... 150] [--sizes 10e6 ... 500e6] [--chart growth.png]

Two sweeps: T at a fixed size, and size at a fixed T. Each trajectory is made, fitted `--repeat` times and, without
--keep, deleted. The line under the tables is a least-squares model of the thread seconds per weight:

    seconds = a + b T + c T²          a, b: reading and converting; c: the Gram matrix's products

The T² term is as large as the rest where c T² = a + b T.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measuring import RELEX, measured, plain_read, repeated


@dataclass(frozen=True)
class Point:
    """One trajectory's fit."""

    parameters: int
    steps: int
    window_bytes: int
    read_seconds: float
    fit_seconds: float
    peak_bytes: int


def main() -> None:
    arguments = parse()
    cores = len(os.sched_getaffinity(0))
    sweeps = {
        "steps": [point(arguments, arguments.size, steps) for steps in arguments.steps],
        "parameters": [point(arguments, size, arguments.window) for size in arguments.sizes],
    }
    for name, points in sweeps.items():
        print(f"\n| {name} | window GB | plain pread s | fit s | fit / pread | ns per weight and step | peak GB |")
        print("|---|---|---|---|---|---|---|")
        for p in points:
            each = p.fit_seconds * cores / (p.parameters * p.steps) * 1e9
            print(
                f"| {getattr(p, name):,} | {p.window_bytes / 1e9:.2f} | {p.read_seconds:.2f} | {p.fit_seconds:.2f} | "
                f"{p.fit_seconds / p.read_seconds:.2f} | {each:.2f} | {p.peak_bytes / 1e9:.2f} |"
            )
    steps = np.array([p.steps for p in sweeps["steps"]], dtype=float)
    seconds = np.array([p.fit_seconds * cores / p.parameters for p in sweeps["steps"]])
    # Relative errors count: the longest window must not decide alone.
    design = np.stack([np.ones_like(steps), steps, steps**2], axis=1) / seconds[:, None]
    (a, b, c), *_ = np.linalg.lstsq(design, np.ones_like(steps), rcond=None)
    print(f"\nthread ns per weight: {a * 1e9:.2f} + {b * 1e9:.3f} T + {c * 1e9:.5f} T^2")
    print(json.dumps({"cores": cores, "model": [a, b, c]}))
    if arguments.chart:
        chart(sweeps, arguments.chart)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("bench-data"))
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16, 24, 32, 50, 75, 100, 150])
    parser.add_argument("--size", type=float, default=10e6, help="parameters while T grows")
    parser.add_argument("--sizes", type=float, nargs="+", default=[10e6, 30e6, 62e6, 120e6, 250e6, 500e6])
    parser.add_argument("--window", type=int, default=16, help="T while the size grows")
    parser.add_argument("--budget", default="4GiB")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="the trajectories, for the next call")
    parser.add_argument("--chart", type=Path, help="also draw both sweeps into this PNG file")
    return parser.parse_args()


def point(arguments: argparse.Namespace, parameters: float, steps: int) -> Point:
    """Make a trajectory, fit it and, unless told otherwise, delete it."""
    data = arguments.data.resolve() / f"{parameters:.0f}-{steps}"  # where bench.py has its own
    sizes = ("--parameters", str(parameters), "--steps", str(steps))
    measured([sys.executable, Path(__file__).with_name("trajectory.py"), data, *sizes])
    try:
        return _point(arguments, data, steps)
    finally:
        if not arguments.keep:
            shutil.rmtree(data)


def _point(arguments: argparse.Namespace, data: Path, steps: int) -> Point:
    window, base, out = (
        sorted((data / "run").rglob("*.safetensors")),
        data / "base" / "model.safetensors",
        data / "relex",
    )
    spec = {
        **{"base": str(data / "base"), "trajectory": str(data / "run"), "run_root": str(out)},
        **{"window": {"t_cut": steps, "settle_seconds": 0}, "fit": {"memory_budget": arguments.budget}},
    }
    (data / "relex.json").write_text(json.dumps(spec))
    measured([*RELEX, "collect", data / "relex.json"])
    plain_read([*window, base])
    read = repeated(lambda: plain_read([*window, base]), arguments.repeat)
    seconds, peaks = [], []
    for _ in range(arguments.repeat):
        shutil.rmtree(out / "fit", ignore_errors=True)
        measured([*RELEX, "fit", out])
        artifact = json.loads((out / "fit" / "fit.json").read_text())
        seconds.append(artifact["seconds"])
        peaks.append(artifact["peak_rss_bytes"])
    found = Point(
        parameters=sum(tensor["numel"] for tensor in artifact["tensors"].values()),
        steps=steps,
        window_bytes=sum(path.stat().st_size for path in window),
        read_seconds=read.seconds,
        fit_seconds=sorted(seconds)[len(seconds) // 2],
        peak_bytes=max(peaks),
    )
    print(found, file=sys.stderr, flush=True)
    return found


def chart(sweeps: dict[str, list[Point]], path: Path) -> None:
    """Both sweeps, fit and plain read, on logarithmic axes."""
    import altair

    titles = {"steps": "T (checkpoints in the window)", "parameters": "parameters"}
    log, panels = altair.Scale(type="log", nice=False), []
    for name, points in sweeps.items():
        rows = [
            {name: getattr(p, name), "seconds": seconds, "what": what}
            for p in points
            for what, seconds in (("relex fit", p.fit_seconds), ("plain pread", p.read_seconds))
        ]
        panel = altair.Chart(altair.Data(values=rows), width=320, height=240).mark_line(point=True)
        panels.append(
            panel.encode(
                x=altair.X(f"{name}:Q", scale=log, title=titles[name], axis=altair.Axis(format="~s", tickCount=6)),
                y=altair.Y("seconds:Q", scale=log, title="seconds", axis=altair.Axis(format="~g", tickCount=6)),
                color=altair.Color(
                    "what:N",
                    title=None,
                    scale=altair.Scale(domain=["relex fit", "plain pread"], range=["#1f77b4", "#999999"]),
                ),
            )
        )
    altair.hconcat(*panels).save(str(path), scale_factor=2)


if __name__ == "__main__":
    main()
