"""Where the weights of candidates are mixed: base, stored directions and observed slices, piece by piece.

Directions that are cut to a spatial rank are cut when their tensor's first piece comes up, one tensor at a time, and
held as products of thin matrices until its last piece is mixed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

import numpy as np

from relex_core.candidate import Output, not_finite
from relex_core.checkpoints.contents import StoredTensor, TensorInfo
from relex_core.checkpoints.reader import Piece, Reader, TensorReader, open_files_reader, open_step
from relex_core.checkpoints.safetensors_file import ITEM_BYTES, read_header
from relex_core.dtypes import NUMPY_DTYPES
from relex_core.elements import read_stored, read_tensor
from relex_core.errors import DataError
from relex_core.fit import FitArtifact
from relex_core.fit.columns import STATE_COLUMN, rank_columns
from relex_core.fit.key import FIT_KEY
from relex_core.guidance import Guidance
from relex_core.lora.factors import LowRank
from relex_core.manifest import WindowManifest
from relex_core.mapped import PAGE
from relex_core.mixes import Mix
from relex_core.mixing import Column, Slices, Terms, mix_tiles
from relex_core.rows import Loaded, Rows, check
from relex_core.spatial import cut, spectrum
from relex_core.storage import ObjectInfo, Store, join_uri, open_store

K = TypeVar("K")

PIECE = 1024 * 1024
"""Weights that are mixed at a time."""

FIT_AGAIN = "delete RUN/fit and run relex fit again"


@dataclass(frozen=True)
class MixedPiece:
    """Weights `start` to `stop` of a tensor, and the cut directions that it needs."""

    name: str
    start: int
    stop: int
    cuts: Mapping[Column, LowRank] = field(default_factory=dict)


def column_readers(run: str, fit: FitArtifact) -> dict[str, TensorReader]:
    """Readers of the stored columns of a fit, the state column among them."""
    store = open_store(run)
    listed = list(store.list("fit"))
    return {column: stored_reader(store, f"fit/{column}-", listed, fit) for column in (*fit.columns, STATE_COLUMN)}


@dataclass(frozen=True)
class Mixed:
    """A piece of every output."""

    count: int
    """Weights."""
    data: Sequence[np.ndarray]
    """Of each output, "count"."""
    memory: Sequence[np.ndarray] = ()
    """What `data` lie in, to be used again."""


class _Scratch(threading.local):
    """Each thread's memory for what pieces are mixed from: fresh memory costs more than mixing."""

    def __init__(self) -> None:
        self._rows: dict[object, Rows] = {}
        self._loaded: list[Loaded] = []

    def read(self, source: object, reader: Reader, piece: MixedPiece) -> np.ndarray:
        """As `read_stored`; valid until this thread reads from that source again, and sound if `check` says so."""
        if source not in self._rows:
            self._rows[source] = Rows(1, PIECE * max(ITEM_BYTES.values()) + PAGE)
        dtype = reader.tensors[piece.name].dtype
        item = ITEM_BYTES[dtype]
        size = (piece.stop - piece.start) * item
        loaded = self._rows[source].load([reader], [Piece(piece.name, piece.start * item, piece.stop * item, 0)], item)
        self._loaded.append(loaded)
        return loaded.rows[0, :size].view(NUMPY_DTYPES[dtype])

    def check(self) -> None:
        """Make sure of what was read since the last time. Raises as `relex_core.rows.check`."""
        check(self._loaded)
        self._loaded.clear()


class _Results:
    """Memory for mixed pieces, used again once their bytes are written. Safe to use from several threads."""

    def __init__(self) -> None:
        self._free = deque[np.ndarray]()

    def take(self) -> np.ndarray:
        """uint8, for a piece of any dtype."""
        try:
            return self._free.pop()
        except IndexError:
            return np.empty(PIECE * max(ITEM_BYTES.values()), np.uint8)

    def give_back(self, memory: Sequence[np.ndarray]) -> None:
        """Only what `take` returned."""
        self._free.extend(memory)


class Sources:
    """Everything candidates are mixed from, opened when first needed. Safe to use from several threads."""

    def __init__(
        self, run: str, manifest: WindowManifest, fit: FitArtifact, base: TensorReader, guidance: Guidance | None
    ) -> None:
        self._fit, self._base, self._guidance = fit, base, guidance
        self._columns = column_readers(run, fit)
        self._checkpoints = {checkpoint.step: checkpoint for checkpoint in manifest.checkpoints}
        self._observed: dict[int, Reader] = {}
        self._opening = threading.Lock()
        self._scratch, self._results = _Scratch(), _Results()

    def pieces(self, entry: TensorInfo, outputs: Sequence[Output]) -> Iterator[MixedPiece]:
        """One tensor in pieces, with what all of them share."""
        cuts = cut_directions(self._columns, self._fit, entry.name, outputs)
        for start in range(0, entry.numel, PIECE):
            yield MixedPiece(entry.name, start, min(start + PIECE, entry.numel), cuts)

    def mix(self, piece: MixedPiece, outputs: Sequence[Output]) -> Mixed:
        """A piece of every output; to be given to `done` once it is written."""
        tensor, size = self._fit.tensors.get(piece.name), piece.stop - piece.start
        if tensor is None:  # integers: state, not weights
            changed = piece.name in self._fit.changed_state
            source = self._columns[STATE_COLUMN] if changed else self._base
            return Mixed(size, [read_stored(source, piece.name, piece.start, piece.stop)] * len(outputs))
        raw = self._scratch.read("base", self._base, piece)
        mixes = [output.recipe.mix(self._fit, piece.name, self._guidance) for output in outputs]
        along = [_columns_of(mix, output, piece) for mix, output in zip(mixes, outputs, strict=True)]
        columns = {column: self._column(column, piece) for column in _used(along)}
        observed = {
            step: self._scratch.read(step, self._step(step), piece) for step in _used(mix.observed for mix in mixes)
        }
        memory = [self._results.take() for _ in outputs]
        dtypes = [NUMPY_DTYPES[output.dtypes[piece.name]] for output in outputs]
        results = [room[: size * dtype.itemsize].view(dtype) for room, dtype in zip(memory, dtypes, strict=True)]
        terms = [Terms(a, mix.observed) for a, mix in zip(along, mixes, strict=True)]
        sound = mix_tiles(Slices(raw, columns, observed), terms, results)
        self._scratch.check()
        for found, output in zip(sound, outputs, strict=True):
            if not found:
                raise not_finite(output, piece.name)
        return Mixed(size, results, memory)

    def done(self, mixed: Mixed) -> None:
        """Use a piece's memory for another one."""
        self._results.give_back(mixed.memory)

    def _column(self, column: Column, piece: MixedPiece) -> np.ndarray:
        name, rank = column
        if rank is None:
            return self._scratch.read(name, self._columns[name], piece)
        return piece.cuts[column].elements(piece.start, piece.stop)

    def _step(self, step: int) -> Reader:
        """An observed checkpoint, opened when first needed: the trainer may have deleted those that are not."""
        with self._opening:
            if step not in self._observed:
                self._observed[step] = open_step(self._checkpoints[step])
            return self._observed[step]


def cut_directions(
    columns: Mapping[str, Reader], fit: FitArtifact, name: str, outputs: Sequence[Output]
) -> dict[Column, LowRank]:
    """The directions of one matrix, cut to the spatial ranks that outputs want; nothing of one that never moved."""
    ranks = {output.spatial_ranks[name] for output in outputs if name in output.spatial_ranks}
    moved = fit.tensors[name].components if ranks and name in fit.tensors else ()
    cuts: dict[Column, LowRank] = {}
    for column in rank_columns(len(moved)):
        direction = read_tensor(columns[column], name)
        found = spectrum(direction)
        cuts |= {(column, rank): cut(direction, found, rank) for rank in ranks}
    return cuts


def stored_reader(store: Store, prefix: str, listed: Sequence[ObjectInfo], fit: FitArtifact) -> TensorReader:
    """The tensors of a fit's files whose names start with a prefix.

    Raises:
        DataError: a file is damaged, or belongs to another fit; later, when a tensor is asked for whose file is gone.
    """
    files = [info for info in listed if info.name.startswith(prefix)]
    for info in files:
        where = join_uri(store.uri, info.name)
        try:
            key = read_header(store, info).metadata.get(FIT_KEY)
        except DataError as error:
            raise DataError(f"a stored direction is damaged: {error.what}", where=where, next_step=FIT_AGAIN) from error
        if key != fit.fit_key:
            raise DataError("a stored direction belongs to another fit", where=where, next_step=FIT_AGAIN)
    reader = open_files_reader(f"stored {prefix}", store, files)
    reader.tensors = _Stored(reader.tensors, join_uri(store.uri, prefix))
    return reader


class _Stored(dict[str, StoredTensor]):
    """Stored tensors by name; one that the fit needs and that is not there went away with its file."""

    def __init__(self, tensors: Mapping[str, StoredTensor], where: str) -> None:
        super().__init__(tensors)
        self._where = where

    def __missing__(self, name: str) -> NoReturn:
        raise DataError(f"what the fit stored of tensor {name} is gone", where=f"{self._where}*", next_step=FIT_AGAIN)


def _columns_of(mix: Mix, output: Output, piece: MixedPiece) -> dict[Column, float]:
    """The mix's columns, cut as the output wants them."""
    rank = output.spatial_ranks.get(piece.name)
    return {(name, rank): value for name, value in mix.columns.items()}


def _used(mappings: Iterable[Mapping[K, float]]) -> set[K]:
    return {key for mapping in mappings for key, value in mapping.items() if value != 0.0}
