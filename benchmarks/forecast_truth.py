"""What the forecast said at a cut, and what the run then did: weights predicted beside weights trained.

    relex demo --out OUT --truth                            # a run that goes on past its window
    python benchmarks/forecast_truth.py OUT:45:100,200,300 [OUT:T_cut:LATER ...]

For every run: exponent of the mean squared displacement, drift share, and at each later step the coefficient of the
line and of `calibrated` over the true one (along the same direction), and the squared weight error of the predictors
over that of holding the last checkpoint. "noise edge": the direction cut to the spatial rank `auto`. Everything is
computed from full deltas in float64.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from relex_core.forecast import Forecast, forecast_from_grams
from relex_core.spatial import cut, noise_edge_rank, spectrum

Weights = dict[str, np.ndarray]

HEADINGS = ("run", "steps", "exponent", "φ", "to step", "line ÷ true", "calibrated ÷ true")
HEADINGS += ("line", "line, noise edge", "calibrated", "calibrated, noise edge", "drift", "kept, of")


def read(folder: Path) -> Weights:
    """All float weights of one checkpoint."""
    tensors: Weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= {name: w.double().numpy() for name, w in load_file(path).items() if w.is_floating_point()}
    return tensors


class Fitted:
    """One tensor's direction and line from the deltas of the window."""

    def __init__(self, rows: np.ndarray, shape: tuple[int, ...], steps: np.ndarray, share: float) -> None:
        _, vectors = np.linalg.eigh(rows @ rows.T)
        direction = rows.T @ vectors[:, -1]
        self.v = direction / np.linalg.norm(direction) * (np.sign((rows @ direction).sum()) or 1.0)
        self.cut, self.rank, self.side = self.v, 0, 0
        coefficients = rows @ self.v
        self.slope, self.intercept = np.polyfit(steps, coefficients, 1)
        self.last, self.now, self.share, self.step = rows[-1], coefficients[-1], share, steps[-1]
        if len(shape) == 2:
            matrix = self.v.reshape(shape)
            found = spectrum(matrix)
            self.rank, self.side = noise_edge_rank(found.values, max(shape)), min(shape)
            self.cut = cut(matrix, found, self.rank).elements(0, matrix.size)

    def predictions(self, target: int) -> list[np.ndarray]:
        """Of the delta: hold, line, line cut, calibrated, calibrated cut, drift."""
        line, factor = self.slope * target + self.intercept, 1 + self.share * (target - self.step) / self.step
        along = [line * self.v, line * self.cut, factor * self.now * self.v, factor * self.now * self.cut]
        return [self.last, *along, factor * self.last]

    def coefficients(self, target: int, true: np.ndarray) -> np.ndarray:
        """Line, calibrated and true coefficient."""
        factor = 1 + self.share * (target - self.step) / self.step
        return np.array([self.slope * target + self.intercept, factor * self.now, true @ self.v])


def rows_of(out: Path, t_cut: int, later: list[int]) -> list[list[str]]:
    """The table's rows of one run."""

    def deltas(step: int) -> Weights:
        folder = out / "rl-run" / f"global_step_{step}" / "actor" / "huggingface"
        return {name: (w - base[name]).ravel() for name, w in read(folder).items()}

    base = read(out / "base")
    steps = np.arange(1, t_cut + 1)
    window = [deltas(int(step)) for step in steps]
    stacked = {name: np.stack([delta[name] for delta in window]) for name in base}
    found = forecast_from_grams({name: rows @ rows.T for name, rows in stacked.items()}, steps.tolist())
    fits = {
        name: Fitted(rows, base[name].shape, steps, _share(found, name)) for name, rows in stacked.items() if rows.any()
    }
    ranks = f"{sum(fit.rank for fit in fits.values())} of {sum(fit.side for fit in fits.values())}"
    null, table = found.model.null, []
    for target in later:
        true = deltas(target)
        coefficients = np.array([fit.coefficients(target, true[name]) for name, fit in fits.items()])
        errors = np.array(
            [[((p - true[n]) ** 2).sum() for p in fit.predictions(target)] for n, fit in fits.items()]
        ).sum(axis=0)
        weights = coefficients[:, 2]  # of each tensor's ratio: how far it went
        ratios = [float((coefficients[:, row] * weights).sum() / (weights**2).sum()) for row in (0, 1)]
        table.append(
            [
                *(out.name, f"1–{t_cut}", f"{null.displacement_exponent:.2f}", f"{null.drift_share:.2f}", str(target)),
                *(f"{ratio:.2f}" for ratio in ratios),
                *(f"{error / errors[0]:.2f}" for error in errors[1:]),
                ranks,
            ]
        )
    return table


def _share(found: Forecast, name: str) -> float:
    return found.modules[found.tensors[name].module].null.drift_share or 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="OUT:T_CUT:STEP,STEP")
    print("| " + " | ".join(HEADINGS) + " |\n|" + "---|" * len(HEADINGS))
    for text in parser.parse_args().runs:
        out, t_cut, later = text.rsplit(":", 2)
        for row in rows_of(Path(out), int(t_cut), [int(step) for step in later.split(",")]):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
