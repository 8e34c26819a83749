"""The compiled kernels against float64: every number they read, every shape, and nothing beyond their arrays."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relex_core import kernels
from relex_core.kernels import Kernels, Part, add_parts, compiled_library, declare, processor_name
from relex_core.mixing import TILE, Slices, Terms, mix_tiles
from relex_core.stripes import tile_bytes

SOURCE = Path(kernels.__file__).with_name("kernels.c")
COMPILER = shutil.which("gcc") or shutil.which("cc")
BLOCK = 4 * 768 + 100
DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")


def installed() -> ctypes.CDLL:
    found = compiled_library()
    if found is None:
        assert COMPILER is None, "there is a compiler, but no kernels: install relex again (pip install -e .)"
        pytest.skip("relex was installed without a C compiler")
    return found


@pytest.fixture
def library() -> ctypes.CDLL:
    return installed()


def compiled(out: Path, *options: str, source: Path = SOURCE) -> Path:
    """The kernels, compiled otherwise than they were installed."""
    assert COMPILER
    shared = ("-shared", "-fPIC", "-Wno-psabi", "-fno-trapping-math", "-fno-strict-aliasing")
    include = f"-I{SOURCE.parent}"
    subprocess.run([COMPILER, *shared, *options, include, str(source), "-o", str(out)], check=True)
    return out


def window(
    steps: int, columns: int, dtype: str, base_dtype: str, changed: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A walk in which a share of the columns ever moves, and its base."""
    generator = np.random.default_rng(seed)
    base = (0.02 * generator.standard_normal(columns)).astype(DTYPES[base_dtype])
    walk = np.cumsum(1e-3 * generator.standard_normal((steps, columns)), axis=0)
    walk[:, generator.random(columns) >= changed] = 0
    return (base.astype(np.float64) + walk).astype(DTYPES[dtype]), base


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.dtype(f"u{array.itemsize}"))


def changed_columns(slices: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Columns in which a step differs from the base; of 768 neighbours in a block all, where more than a third do."""
    columns = slices.shape[1]
    differ = np.ones(columns, bool)
    if slices.dtype == base.dtype:
        differ = (bits(slices) != bits(base)).any(axis=0)
    for start in (at for block in range(0, columns, BLOCK) for at in range(block, min(block + BLOCK, columns), 768)):
        chunk = differ[start : min(start + 768, start - start % BLOCK + BLOCK)]
        chunk |= 3 * chunk.sum() > len(chunk)
    return np.flatnonzero(differ)


def gathered_in_place(
    kernel: Kernels, slices: np.ndarray, base: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """As the fit does it: in the memory where the slices are."""
    memory = slices.copy()
    rows = memory.reshape(-1)[: len(slices) * len(columns)].reshape(len(slices), len(columns))
    rows_base = np.empty(len(columns), base.dtype)
    kernel.gather(memory, base, columns, rows, rows_base)
    return rows, rows_base


def assert_equal_to_float64(library: ctypes.CDLL, slices: np.ndarray, base: np.ndarray) -> None:
    steps, columns = slices.shape
    deltas, wide_base = slices.astype(np.float64) - base.astype(np.float64), base.astype(np.float64)
    kernel = Kernels(library, steps)
    for _ in range(2):  # whatever the first call left in the scratch memory
        grams, squares, changed = kernel.block_grams(slices, base, BLOCK)
    scale = np.abs(deltas).max(initial=0) ** 2
    for block, start in enumerate(range(0, columns, BLOCK)):
        piece = deltas[:, start : start + BLOCK]
        np.testing.assert_allclose(grams[block], piece @ piece.T, rtol=2e-6, atol=1e-6 * scale * piece.shape[1])
        np.testing.assert_allclose(squares[block], np.square(wide_base[start : start + BLOCK]).sum(), rtol=1e-5)
    expected = changed_columns(slices, base)
    assert (changed is None) == (3 * len(expected) > columns)
    weights = np.random.default_rng(1).standard_normal((2, steps)).astype(np.float32)
    mixed = kernel.mix(slices, base, weights)
    if changed is not None:
        np.testing.assert_array_equal(changed, expected)
        packed, packed_base = gathered_in_place(kernel, slices, base, changed)
        np.testing.assert_array_equal(bits(packed), bits(slices)[:, changed])
        np.testing.assert_array_equal(bits(packed_base), bits(base)[changed])
        assert not mixed[:, np.setdiff1d(np.arange(columns), changed)].any()
        np.testing.assert_array_equal(kernel.mix(packed, packed_base, weights), mixed[:, changed])
    np.testing.assert_allclose(mixed, weights @ deltas, rtol=1e-4, atol=1e-6 * steps * np.abs(deltas).max(initial=0))


@settings(deadline=None, max_examples=60)
@given(
    steps=st.integers(1, 40),
    columns=st.sampled_from([1, 7, 8, 767, 768, 769, 784, 1500, BLOCK, BLOCK + 1, 2 * BLOCK + 700]),
    dtype=st.sampled_from(sorted(DTYPES)),
    base_dtype=st.sampled_from(sorted(DTYPES)),
    changed=st.sampled_from([0.0, 0.01, 0.2, 0.33, 0.5, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_equal_to_float64(steps: int, columns: int, dtype: str, base_dtype: str, changed: float, seed: int) -> None:
    assert_equal_to_float64(installed(), *window(steps, columns, dtype, base_dtype, changed, seed))


def test_columns_that_move_only_for_a_while_are_not_left_out(library: ctypes.CDLL) -> None:
    slices, base = window(11, 3 * 768, "BF16", "BF16", changed=0.0)
    slices[1, 700] += ml_dtypes.bfloat16(1.0)
    slices[0, 5] += ml_dtypes.bfloat16(0.5)
    assert_equal_to_float64(library, slices, base)


@settings(deadline=None, max_examples=60)
@given(
    columns=st.sampled_from([1, 7, 767, 769, 1500, TILE + 9]),
    dtypes=st.tuples(*[st.sampled_from(sorted(DTYPES))] * 3),
    out=st.sampled_from(["BF16", "F32"]),
    coefficients=st.lists(st.sampled_from([0.0, -1.0, 0.3, 2.5]), min_size=2, max_size=2),
)
def test_candidates_equal_float64(
    columns: int, dtypes: tuple[str, str, str], out: str, coefficients: list[float]
) -> None:
    """Through `mix_tiles`, which takes the compiled code where it is installed."""
    (step,), base = window(1, columns, dtypes[0], dtypes[1], 0.7)
    direction = np.random.default_rng(2).standard_normal(columns).astype(DTYPES[dtypes[2]])
    slices = Slices(base, {("direction", None): direction}, {5: step})
    terms = Terms({("direction", None): coefficients[0]}, {5: coefficients[1]})
    found = np.empty(columns, DTYPES[out])
    assert mix_tiles(slices, [terms], [found]) == [True]
    wide = [array.astype(np.float64) for array in (base, direction, step)]
    exact = wide[0] + coefficients[0] * wide[1] + coefficients[1] * (wide[2] - wide[0])
    np.testing.assert_allclose(found.astype(np.float64), exact, rtol=2**-8 if out == "BF16" else 1e-5, atol=1e-6)
    if not any(coefficients):
        np.testing.assert_array_equal(found, base.astype(DTYPES[out]))


def test_candidates_are_rounded_as_numpy_rounds(library: ctypes.CDLL) -> None:
    """Every kind of float32: ties, subnormals, infinities, what becomes infinite."""
    edges = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0x00008000, 0x80000001], np.uint32)
    patterns = np.random.default_rng(0).integers(0, 2**32, 20_000, np.uint32)
    values = np.concatenate([edges, patterns]).view(np.float32)
    out = np.empty(len(values), ml_dtypes.bfloat16)
    add_parts(library, np.zeros_like(values), [Part(values, 1.0, False)], out)
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(out.astype(np.float32), values.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_number_of_16_bits_is_read_exactly(dtype: str, library: ctypes.CDLL) -> None:
    numbers = np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype])
    rows = np.stack([numbers, np.zeros_like(numbers)])
    mixed = Kernels(library, 2).mix(rows, np.zeros_like(numbers), np.array([[1, 0]], np.float32))
    np.testing.assert_array_equal(mixed[0], numbers.astype(np.float32))


@pytest.mark.parametrize("changed", [0.01, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_spoils_its_block(value: float, changed: float, library: ctypes.CDLL) -> None:
    slices, base = window(7, 2 * BLOCK, "BF16", "BF16", changed)
    slices[3, BLOCK + 9] = value
    grams, *_ = Kernels(library, 7).block_grams(slices, base, BLOCK)
    assert np.isfinite(grams[0]).all() and not np.isfinite(grams[1]).all()


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("changed", [0.1, 1.0])
def test_the_same_bytes_wherever_a_stripe_ends(dtype: str, changed: float, library: ctypes.CDLL) -> None:
    slices, base = window(13, 2 * BLOCK + 77, dtype, dtype, changed)
    weights = np.random.default_rng(1).standard_normal((2, 13)).astype(np.float32)
    kernel, cuts = Kernels(library, 13), [slice(0, BLOCK), slice(BLOCK, 2 * BLOCK), slice(2 * BLOCK, None)]
    grams = [kernel.block_grams(slices[:, cut], base[cut], BLOCK)[0] for cut in cuts]
    np.testing.assert_array_equal(np.concatenate(grams), kernel.block_grams(slices, base, BLOCK)[0])
    mixed = [kernel.mix(slices[:, cut], base[cut], weights) for cut in cuts]
    np.testing.assert_array_equal(np.concatenate(mixed, axis=1), kernel.mix(slices, base, weights))


def test_a_candidates_bytes_do_not_depend_on_the_others() -> None:
    (step,), base = window(1, 3000, "F32", "BF16", 0.7)
    direction = np.random.default_rng(2).standard_normal(3000).astype(np.float32)
    slices = Slices(base, {("direction", None): direction}, {5: step, 6: step.astype(np.float64)})
    one, (alone, beside, other) = Terms({("direction", None): 0.3}, {5: 1.7}), np.empty((3, 3000), np.float32)
    mix_tiles(slices, [one], [alone])
    mix_tiles(slices, [one, Terms({}, {6: 0.5})], [beside, other])
    np.testing.assert_array_equal(alone, beside)


def test_arrays_that_do_not_belong_together_are_refused(library: ctypes.CDLL) -> None:
    kernel, slices, base = Kernels(library, 3), np.zeros((3, 8), np.float32), np.zeros(8, np.float32)
    for wrong in ((np.zeros((4, 8), np.float32), base), (slices, np.zeros(7, np.float32))):
        with pytest.raises(ValueError, match="slices"):
            kernel.block_grams(*wrong, BLOCK)
        with pytest.raises(ValueError, match="slices"):
            kernel.mix(*wrong, np.zeros((1, 3), np.float32))
    few = np.array([0, 5], np.uint32)
    for rows, rows_base in ((np.zeros((3, 3), np.float32), base[:3]), (np.zeros((3, 2), np.float16), base[:2])):
        with pytest.raises(ValueError, match="columns"):
            kernel.gather(slices, base, few, rows, rows_base)
    rows, strided = np.zeros((3, 2), np.float32), np.zeros((3, 4), np.float32)[:, ::2]
    for columns, out, out_base in (
        (few.astype(np.int64), rows, base[:2]),
        (few, strided, base[:2]),
        (few, rows, base[:4:2]),
    ):
        with pytest.raises(ValueError, match="columns"):
            kernel.gather(slices, base, columns, out, out_base)
    for weights in (np.zeros((1, 4), np.float32), np.zeros((1, 3))):
        with pytest.raises(ValueError, match="weights"):
            kernel.mix(slices, base, weights)
    with pytest.raises(ValueError, match="lengths"):
        add_parts(library, base, [Part(slices[0, :7], 1.0, False)], base)


def test_the_plan_knows_the_scratch_memory(library: ctypes.CDLL) -> None:
    for steps in (1, 11, 12, 13, 150, 1000, 4000):
        assert library.relex_scratch_bytes(steps) <= tile_bytes(steps)


@needs_compiler
def test_another_versions_library_is_not_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suffix = EXTENSION_SUFFIXES[0]
    for number, expected in ((kernels.VERSION, True), (kernels.VERSION + 1, False)):
        older = SOURCE.read_text().replace(f"{{ return {kernels.VERSION}; }}", f"{{ return {number}; }}")
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "kernels.c").write_text(older)
        compiled(folder / f"_kernels{suffix}", source=folder / "kernels.c")
        monkeypatch.setattr(kernels, "__file__", str(folder / "kernels.py"))
        assert (compiled_library.__wrapped__() is not None) is expected


def test_float64_is_left_to_numpy(library: ctypes.CDLL) -> None:
    kernel = Kernels(library, 2)
    assert kernel.can_take(np.zeros((2, 3), np.float32), np.zeros(3, np.float16))
    assert not kernel.can_take(np.zeros((2, 3)), np.zeros(3, np.float32))
    assert not kernel.can_take(np.zeros((2, 3), np.float32), np.zeros(3))
    assert not kernel.can_take(np.zeros((3, 2), np.float32).T, np.zeros(3, np.float32))


@needs_compiler
@pytest.mark.parametrize(("most", "name"), [("ANY", "cpu"), ("AVX2", "cpu, AVX2"), ("AVX512", "cpu, AVX-512")])
def test_the_code_for_each_processor_gives_the_same(most: str, name: str, tmp_path: Path, library: ctypes.CDLL) -> None:
    other = declare(ctypes.CDLL(str(compiled(tmp_path / "kernels.so", "-O3", f"-DMOST={most}"))))
    if processor_name(other) != name:
        pytest.skip(f"this is no processor for {name}")
    for steps in (1, 4, 13, 30):
        for changed in (0.1, 1.0):
            slices, base = window(steps, 2 * BLOCK + 77, "BF16", "BF16", changed)
            assert_equal_to_float64(other, slices, base)
            weights = np.random.default_rng(1).standard_normal((2, steps)).astype(np.float32)
            directions = [Kernels(each, steps).mix(slices, base, weights) for each in (other, library)]
            np.testing.assert_allclose(*directions, rtol=1e-6, atol=1e-6 * steps * np.abs(directions).max())


@needs_compiler
def test_nothing_beyond_the_arrays_is_touched(tmp_path: Path) -> None:
    """Under gcc's address sanitizer, which stands in for malloc and ends the process at a wrong access."""
    runtime = subprocess.run([COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).is_file():
        pytest.skip("this compiler has no address sanitizer")
    library = compiled(
        tmp_path / "checked.so", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g"
    )
    script = """
import ctypes, sys
import numpy as np
from relex_core.kernels import Part, add_parts, declare
from test_kernels import BLOCK, DTYPES, assert_equal_to_float64, window
library = declare(ctypes.CDLL(sys.argv[1]))
for steps in (1, 2, 3, 5, 12, 13):
    for columns in (1, 9, 767, 769, BLOCK + 3):
        for dtype in DTYPES:
            for changed in (0.0, 0.2, 1.0):
                base_dtype = "F32" if columns == 9 else dtype
                slices, base = window(steps, columns, dtype, base_dtype, changed)
                assert_equal_to_float64(library, slices, base)
                for out in (np.empty(columns, np.float32), np.empty(columns, DTYPES["BF16"])):
                    add_parts(library, base, [Part(row.copy(), 0.5, True) for row in slices], out)
print("whole")
"""
    path = os.pathsep.join([str(SOURCE.parents[1]), str(Path(__file__).parent)])
    environment = os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": path}
    command = [sys.executable, "-c", script, str(library)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.stdout == "whole\n", found.stderr[-3000:]
