"""Where candidates of a LoRA run are mixed: stored and observed factors side by side, and the base they are added to.

    Σ_j a_j D_j + Σ_t b_t Δ_t = L R            the same mixes as of full weights (mixes.py), never multiplied out
    W = W_0 + L R                              piece by piece, where full weights are written

`AdapterSources` stands in for `mix_sources.Sources` where candidates are merged into the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock

import numpy as np

from relex_core.candidate import Output, not_finite
from relex_core.checkpoints.contents import TensorInfo
from relex_core.checkpoints.reader import TensorReader
from relex_core.dtypes import finite, rounded
from relex_core.elements import read_floats, read_stored, read_tensor
from relex_core.errors import SpecError
from relex_core.fit.adapter_files import LEFT, RIGHT
from relex_core.fit.artifact import FitArtifact
from relex_core.guidance import Guidance
from relex_core.lora.factors import LowRank, added, nothing
from relex_core.lora.window import StepAdapter, open_adapter
from relex_core.manifest import WindowManifest
from relex_core.mix_sources import PIECE, Mixed, cut_directions, stored_reader
from relex_core.mixes import Mix
from relex_core.mixing import Column
from relex_core.storage import open_store


@dataclass(frozen=True)
class AdapterPiece:
    """Weights `start` to `stop` of a tensor, and how far each output moves the whole tensor."""

    name: str
    start: int
    stop: int
    moves: tuple[LowRank, ...] = ()
    """One for each output; none where the tensor is frozen, or was trained whole."""
    cuts: Mapping[Column, LowRank] = field(default_factory=dict)
    """Of a matrix that was trained whole: its directions, cut to the spatial ranks that are wanted of them."""


class AdapterSources:
    """Everything candidates are mixed from. Safe to use from several threads."""

    def __init__(
        self, run: str, manifest: WindowManifest, fit: FitArtifact, base: TensorReader, guidance: Guidance | None
    ) -> None:
        self._fit, self._base, self._guidance = fit, base, guidance
        store = open_store(run)
        listed = list(store.list("fit"))
        self._factors = {c: stored_reader(store, f"fit/{c}.factors-", listed, fit) for c in fit.columns}
        self._directions = {c: stored_reader(store, f"fit/{c}-", listed, fit) for c in fit.columns}
        self._checkpoints = {checkpoint.step: checkpoint for checkpoint in manifest.checkpoints}
        self._observed: dict[int, StepAdapter] = {}
        self._opening = Lock()

    @property
    def last(self) -> StepAdapter:
        """The last observed adapter."""
        return self._step(max(self._checkpoints))

    def displacements(self, name: str, outputs: Sequence[Output]) -> list[LowRank]:
        """What each candidate adds to a low-rank tensor: float64 factors, as many terms as there are."""
        column, delta = lru_cache(None)(self._column), lru_cache(None)(lambda step: self._step(step).delta(name))
        found = []
        for output in outputs:
            mix, rank = self._mix(name, output), output.spatial_ranks.get(name)
            terms = [column(stem, name).cut(rank).scaled(a) for stem, a in mix.columns.items() if a]
            terms += [delta(step).scaled(b) for step, b in mix.observed.items() if b]
            found.append(added(terms) if terms else nothing(self.last.adapter.targets[name].shape))
        return found

    def pieces(self, entry: TensorInfo, outputs: Sequence[Output]) -> Iterator[AdapterPiece]:
        """One tensor in pieces, with what all of them share."""
        low_rank, whole = (entry.name in names for names in (self.last.adapter.targets, self.last.adapter.whole))
        moves = self.displacements(entry.name, outputs) if low_rank else ()
        dtype = np.dtype(np.float64 if self._wide(entry.name, outputs) else np.float32)
        cuts = cut_directions(self._directions, self._fit, entry.name, outputs) if whole else {}
        for start in range(0, entry.numel, PIECE):
            stop = min(start + PIECE, entry.numel)
            yield AdapterPiece(entry.name, start, stop, tuple(move.astype(dtype) for move in moves), cuts)

    def mix(self, piece: AdapterPiece, outputs: Sequence[Output]) -> Mixed:
        """A piece of every output."""
        stored, size = self._base.tensors[piece.name], piece.stop - piece.start
        frozen = piece.name not in self.last.adapter.trained
        if frozen and {output.dtypes[piece.name] for output in outputs} <= {stored.dtype}:
            return Mixed(size, [read_stored(self._base, piece.name, piece.start, piece.stop)] * len(outputs))
        base = read_floats(self._base, piece.name, piece.start, piece.stop)
        base = base.astype(np.float64) if self._wide(piece.name, outputs) else base
        mixed = [
            _rounded(self._weights(base, piece, number, output), piece, output) for number, output in enumerate(outputs)
        ]
        return Mixed(size, mixed)

    def done(self, mixed: Mixed) -> None:
        """Nothing is used again."""

    def _weights(self, base: np.ndarray, piece: AdapterPiece, number: int, output: Output) -> np.ndarray:
        """Weights of one output, unrounded."""
        if piece.moves:
            move = piece.moves[number]
            return base + move.elements(piece.start, piece.stop) if move.rank else base
        if piece.name not in self.last.adapter.whole:
            return base
        mix, weights = self._mix(piece.name, output), base
        for column, a in mix.columns.items():
            cut = piece.cuts.get((column, output.spatial_ranks.get(piece.name)))
            if cut is None:
                direction = read_floats(self._directions[column], piece.name, piece.start, piece.stop)
            else:
                direction = cut.elements(piece.start, piece.stop)
            weights = weights + a * direction
        for step, b in mix.observed.items():
            weights = weights + b * (self._step(step).whole(piece.name, piece.start, piece.stop) - base)
        return weights

    def _mix(self, name: str, output: Output) -> Mix:
        return output.recipe.mix(self._fit, name, self._guidance)

    def _column(self, column: str, name: str) -> LowRank:
        reader = self._factors[column]
        left, right = (read_tensor(reader, name + side).astype(np.float64) for side in (LEFT, RIGHT))
        return LowRank(left, right, compressed=reader.tensors[name + LEFT].dtype == "F32")  # bfloat16 bends the angles

    def _step(self, step: int) -> StepAdapter:
        """An observed adapter, opened when first needed: the trainer may have deleted those that are not."""
        with self._opening:
            if step not in self._observed:
                record = self._checkpoints[step]
                self._observed[step] = open_adapter(open_store(record.uri), record)
            return self._observed[step]

    def _wide(self, name: str, outputs: Sequence[Output]) -> bool:
        """Whether a tensor is summed in float64."""
        return "F64" in (self._base.tensors[name].dtype, *(output.dtypes.get(name) for output in outputs))


def no_automatic_ranks() -> SpecError:
    """The error for `spatial_ranks: auto`: of a low-rank direction most singular values are 0, and none is noise."""
    return SpecError(
        "candidates.spatial_ranks: auto needs full weights; a LoRA run's direction has no noise edge",
        expected="full, or numbers",
        next_step="name the ranks, for example spatial_ranks: [full, 4]",
    )


def _rounded(weights: np.ndarray, piece: AdapterPiece, output: Output) -> np.ndarray:
    """One output's weights in its dtype.

    Raises:
        DataError: they are not finite there.
    """
    stored = rounded(weights, output.dtypes[piece.name])
    if not finite(stored):
        raise not_finite(output, piece.name)
    return stored
