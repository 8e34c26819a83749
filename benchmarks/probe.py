"""How close is `relex inspect --probe` to the forecast from all weights? One table, figure by figure.

python benchmarks/trajectory.py OUT --parameters 10e6 --steps 12
python benchmarks/probe.py OUT [--range-bytes 4096] [--seeds 5]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from relex_core.probe import Probe, probe

SHOWN = ("drift share φ", "displacement exponent", "explained variance", "R² of the line", "skill of relex-scale1.00")
SHOWN += ("skill of pinned", "skill of calibrated", "skill of drift", "skill of trailing_average_5")


def table(whole: Probe, samples: list[Probe]) -> str:
    """Markdown: all weights, the first sample, and how far all samples were off, in units of their stated error."""
    rows = ["| figure | all weights | probe | ± sampling | off, root mean square of all seeds | ÷ stated |"]
    rows.append("|---|---|---|---|---|---|")
    for name in SHOWN:
        true = _of(whole, name)[0]
        found = [_of(sample, name) for sample in samples]
        off = (sum((value - true) ** 2 for value, _ in found) / len(found)) ** 0.5
        stated = (sum(error**2 for _, error in found) / len(found)) ** 0.5
        ratio = f"{off / stated:.2f}" if stated else ""
        rows.append(f"| {name} | {true:.4f} | {found[0][0]:.4f} | {found[0][1]:.4f} | {off:.4f} | {ratio} |")
    return "\n".join(rows)


def _of(found: Probe, name: str) -> tuple[float, float]:
    figure = next(figure for figure in found.figures if figure.name == name)
    assert figure.value is not None and figure.sampling_error is not None
    return figure.value, figure.sampling_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="with run/ and base/ in it")
    parser.add_argument("--trajectory", default="run")
    parser.add_argument("--fraction", type=float, default=0.01)
    parser.add_argument("--range-bytes", type=int, default=64 * 1024)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    where = str(options.out.absolute() / options.trajectory), str(options.out.absolute() / "base")
    whole = probe(*where, fraction=1.0)
    chosen = {"fraction": options.fraction, "range_bytes": options.range_bytes}
    samples = [probe(*where, seed=seed, **chosen) for seed in range(options.seeds)]
    first = samples[0]
    print(f"{100 * first.share:.2g} % of the weights: {first.ranges} ranges a step,", end=" ")
    print(f"{first.bytes_read / 1e6:.1f} of {whole.bytes_read / 1e6:.0f} MB;", end=" ")
    print(f"advice: {first.forecast.advice.worthwhile}; from all weights: {whole.forecast.advice.worthwhile}\n")
    print(table(whole, samples))


if __name__ == "__main__":
    main()
