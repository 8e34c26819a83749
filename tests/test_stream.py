"""The stream of stripes with real threads and buffers: every part holds what it should, packed or read again, and no
part waits for a buffer that is never free."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_kernels import library  # noqa: F401
from test_plan import Tensors, plan_of

from relex_core.checkpoints.contents import TensorInfo
from relex_core.checkpoints.reader import Piece
from relex_core.dtypes import NUMPY_DTYPES
from relex_core.fit.memory import HostMemory
from relex_core.fit.packing import Part
from relex_core.fit.stream import WindowStream
from relex_core.groups import PlannedTensor
from relex_core.parallel import ordered_map
from relex_core.plan import FitPlan
from relex_core.stripes import Segment

COLUMNS, BLOCK = 256, 64
"""Of a stripe and of a block, instead of 512 Ki and 32 Ki."""


@pytest.fixture(scope="module", autouse=True)
def _small_stripes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relex_core.stripes.BLOCK_COLUMNS", BLOCK)
        patch.setattr("relex_core.plan.BLOCK_COLUMNS", BLOCK)
        patch.setattr("relex_core.plan.MAX_STRIPE_COLUMNS", COLUMNS)
        yield


class HeldReader:
    """A checkpoint in memory."""

    label = "held"
    tensors: Mapping[str, TensorInfo] = MappingProxyType({})  # the stream asks the plan

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self._weights = weights
        self.bytes_read = 0

    def read(self, pieces: Iterable[Piece], buffer: memoryview) -> None:
        for piece in pieces:
            stored = self._weights[piece.tensor].view(np.uint8)[piece.start : piece.stop]
            buffer[piece.at : piece.at + len(stored)] = stored.tobytes()
            self.bytes_read += len(stored)

    def file_range(self, pieces: Iterable[Piece]) -> None:
        return None


class Window:
    """A random window, and the plan for it."""

    def __init__(
        self, tensors: Tensors, changed: list[float], steps: int, workers: int, more: int, dear_reads: bool = True
    ) -> None:
        self.workers = workers
        roomy = plan_of(tensors, steps, 2**40, workers)
        self.plan: FitPlan = dataclasses.replace(roomy, buffers=workers + 2 + more, dear_reads=dear_reads)
        generator = np.random.default_rng(0)
        self.base: dict[str, np.ndarray] = {}
        self.steps: list[dict[str, np.ndarray]] = [{} for _ in range(steps)]
        for number, (numel, dtype, base_dtype) in enumerate(tensors):
            base = generator.integers(1, 100, numel).astype(NUMPY_DTYPES[base_dtype])
            moves = generator.random(numel) < np.where(np.arange(numel) < numel // 2, changed[number], changed[-1])
            self.base[f"t{number}"] = base
            for step in self.steps:
                moved = base + (moves * generator.integers(0, 2, numel)).astype(base.dtype)
                step[f"t{number}"] = moved.astype(NUMPY_DTYPES[dtype])

    @property
    def tensors(self) -> list[PlannedTensor]:
        return [tensor for group in self.plan.groups for tensor in group.tensors]

    def assert_right(self, part: Part) -> None:
        """The part's arrays, unpacked, are the window's."""
        name, cut = part.segment.tensor.name, slice(part.segment.start, part.segment.stop)
        base, slices = self.base[name][cut], np.stack([step[name][cut] for step in self.steps])
        if part.columns is not None:
            others = np.setdiff1d(np.arange(len(base)), part.columns)
            assert (slices[:, others] == base[others]).all()
            slices, base = slices[:, part.columns], base[part.columns]
        np.testing.assert_array_equal(part.slices, slices)
        np.testing.assert_array_equal(part.base, base)


@dataclasses.dataclass(frozen=True)
class Passed:
    """What was seen of a window that went through."""

    read: int
    said: int
    """Bytes that were announced as read."""
    met: set[tuple[bool, bool]]
    """(kept, packed) of all parts."""
    buffers: int
    """Of which memory was taken."""


def go_through(window: Window, compiled: bool = True) -> Passed:
    """What the fit does with its parts."""
    said: list[int] = []
    met: set[tuple[bool, bool]] = set()
    base, observed, plan = HeldReader(window.base), [HeldReader(step) for step in window.steps], window.plan
    with ThreadPoolExecutor(window.workers) as pool:
        stripes = (stripe for group in plan.groups for stripe in plan.stripes(group))
        stream = WindowStream(plan, stripes, base, observed, pool, HostMemory(compiled), said.append)

        def first_pass(tensor: PlannedTensor) -> Iterator[Part | Segment]:
            for part in stream.parts(tensor):
                met.add((part.kept, part.columns is not None))
                if part.kept:
                    yield part
                else:
                    stream.done(part)
                    yield part.segment

        def looked_at(part: Part) -> Part:
            window.assert_right(part)
            return part

        for tensor in window.tensors:
            if not tensor.floating:
                for part in stream.parts(tensor):
                    window.assert_right(part)
                    stream.done(part)
                continue
            parts = list(first_pass(tensor))
            if all((step[tensor.name] == window.base[tensor.name]).all() for step in window.steps):
                parts = [part for part in parts if isinstance(part, Part)]  # it has no direction
            again = stream.again(tensor, parts)
            for part in ordered_map(pool, looked_at, again, ahead=min(window.workers + 1, plan.buffers - 1)):
                stream.done(part)
        assert len(stream._free) + stream._unused == plan.buffers, "every buffer is back"
    read = sum(reader.bytes_read for reader in (base, *observed))
    return Passed(read, sum(said), met, plan.buffers - stream._unused)


dtypes = st.sampled_from([("BF16", "BF16"), ("F32", "F32"), ("BF16", "F32"), ("I64", "I64"), ("F64", "F64")])


@settings(max_examples=150, deadline=None)
@given(
    tensors=st.lists(
        st.tuples(st.integers(0, 12 * COLUMNS), dtypes).map(lambda t: (t[0], *t[1])), min_size=1, max_size=6
    ),
    changed=st.lists(st.sampled_from([0.0, 0.02, 0.1, 0.3, 1.0]), min_size=6, max_size=6),
    steps=st.integers(2, 5),
    workers=st.integers(1, 4),
    more=st.integers(0, 14),
    compiled=st.booleans(),
    dear_reads=st.booleans(),
)
@example([(600, "I64", "I64"), (5, "F32", "F32")], [1.0] * 6, 2, 1, 0, True, True)
@example([(2500, "BF16", "BF16"), (9, "F32", "F32"), (2500, "BF16", "BF16")], [0.1] * 6, 4, 2, 4, True, False)
def test_every_part_is_right_and_every_buffer_comes_back(
    tensors: Tensors, changed: list[float], steps: int, workers: int, more: int, compiled: bool, dear_reads: bool
) -> None:
    window = Window(tensors, changed, steps, workers, more, dear_reads)
    passed = go_through(window, compiled)
    once = sum(map(window.plan.tensor_bytes, window.tensors))
    assert once <= passed.read <= passed.said == window.plan.bytes_to_read <= 2 * once


@pytest.mark.parametrize("stripes", range(1, 9))
def test_a_tensor_that_just_fits_and_begins_in_another_s_stripe(stripes: int) -> None:
    held = set()
    for more in range(8):
        for changed in (0.1, 1.0):
            tensors = [(10, "F32", "F32"), (stripes * COLUMNS, "F32", "F32"), (10, "F32", "F32")]
            window = Window(tensors, [changed] * 6, 3, 2, more)
            held.add(window.plan.held(window.tensors[1]))
            go_through(window)
    assert held == ({True} if stripes <= 3 else {True, False})  # both sides of the limit were met


@pytest.mark.usefixtures("library")
def test_a_large_tensor_of_which_little_changed_is_read_once() -> None:
    tensors: Tensors = [(20 * COLUMNS, "BF16", "BF16")]
    few, many = (Window(tensors, [share] * 6, 8, 2, 9) for share in (0.1, 1.0))
    assert not few.plan.held(few.tensors[0])
    once = few.plan.tensor_bytes(few.tensors[0])
    passed = go_through(few)
    assert (passed.read, passed.met) == (once, {(True, True)})
    passed, kept = go_through(many), many.plan.buffers - many.plan.ahead
    assert passed.read == once + (20 - kept) * once // 20, "what fits stays, the rest is read again"
    assert passed.met == {(True, False), (False, False)}
    cheap = Window(tensors, [1.0] * 6, 8, 2, 9, dear_reads=False)
    passed = go_through(cheap)
    assert (passed.read, passed.met) == (2 * once, {(False, False)})
    assert passed.buffers < cheap.plan.buffers, "memory that is no use is not taken"


@pytest.mark.usefixtures("library")
def test_what_never_changed_takes_no_memory() -> None:
    window = Window([(40 * COLUMNS, "BF16", "BF16")], [0.0] * 6, 8, 2, 39, dear_reads=False)
    assert window.plan.held(window.tensors[0])
    passed = go_through(window)
    assert passed.met == {(True, True)}
    assert passed.buffers <= window.plan.ahead + 2
