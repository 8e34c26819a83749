"""The compiled kernels against float64: every number they read, every shape, and nothing beyond their arrays."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relex_core import kernels
from relex_core.kernels import Kernels, Part, add_parts, compiled_library, declare
from relex_core.mixing import CALL, Slices, Terms, mix_tiles

SOURCE = Path(kernels.__file__).with_name("kernels.c")
COMPILER = shutil.which("gcc") or shutil.which("cc")
BLOCK = 2048
DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")


@pytest.fixture
def library() -> ctypes.CDLL:
    found = compiled_library()
    if found is None:
        pytest.skip("relex was installed without a C compiler")
    return found


def compiled(out: Path, *options: str) -> Path:
    """The kernels, compiled otherwise than they were installed."""
    assert COMPILER
    shared = ("-shared", "-fPIC", "-Wno-psabi", "-O1", "-fno-trapping-math")
    subprocess.run([COMPILER, *shared, *options, str(SOURCE), "-o", str(out)], check=True)
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


def assert_equal_to_float64(library: ctypes.CDLL, slices: np.ndarray, base: np.ndarray) -> None:
    steps, columns = slices.shape
    deltas, wide_base = slices.astype(np.float64) - base.astype(np.float64), base.astype(np.float64)
    kernel = Kernels(library, steps)
    for _ in range(2):  # whatever the first call left in the scratch memory
        grams, squares = kernel.block_grams(slices, base, BLOCK)
    scale = np.abs(deltas).max(initial=0) ** 2
    for block, start in enumerate(range(0, columns, BLOCK)):
        piece = deltas[:, start : start + BLOCK]
        np.testing.assert_allclose(grams[block], piece @ piece.T, rtol=2e-6, atol=1e-6 * scale * piece.shape[1])
        np.testing.assert_allclose(squares[block], np.square(wide_base[start : start + BLOCK]).sum(), rtol=1e-5)
    weights = np.random.default_rng(1).standard_normal((2, steps)).astype(np.float32)
    mixed = kernel.mix(slices, base, weights)
    np.testing.assert_allclose(mixed, weights @ deltas, rtol=1e-4, atol=1e-6 * steps * np.abs(deltas).max(initial=0))


@settings(deadline=None, max_examples=60)
@given(
    steps=st.integers(1, 40),
    columns=st.sampled_from([1, 7, 8, 511, 512, 513, 1500, BLOCK, BLOCK + 1, 2 * BLOCK + 700]),
    dtype=st.sampled_from(sorted(DTYPES)),
    base_dtype=st.sampled_from(sorted(DTYPES)),
    changed=st.sampled_from([0.0, 0.01, 0.2, 0.33, 0.5, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_equal_to_float64(steps: int, columns: int, dtype: str, base_dtype: str, changed: float, seed: int) -> None:
    library = compiled_library()
    if library is None:
        pytest.skip("relex was installed without a C compiler")
    assert_equal_to_float64(library, *window(steps, columns, dtype, base_dtype, changed, seed))


def test_columns_that_move_only_for_a_while_are_not_left_out(library: ctypes.CDLL) -> None:
    slices, base = window(11, 3 * 512, "BF16", "BF16", changed=0.0)
    slices[1, 700] += ml_dtypes.bfloat16(1.0)
    slices[0, 5] += ml_dtypes.bfloat16(0.5)
    assert_equal_to_float64(library, slices, base)


@settings(deadline=None, max_examples=60)
@given(
    columns=st.sampled_from([1, 7, 511, 513, 1500, CALL + 9]),
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
    ((found, sound),) = mix_tiles(slices, [terms], [np.dtype(DTYPES[out])])
    assert sound
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
    grams, _ = Kernels(library, 7).block_grams(slices, base, BLOCK)
    assert np.isfinite(grams[0]).all() and not np.isfinite(grams[1]).all()


def test_float64_is_left_to_numpy(library: ctypes.CDLL) -> None:
    kernel = Kernels(library, 2)
    assert kernel.take(np.zeros((2, 3), np.float32), np.zeros(3, np.float16))
    assert not kernel.take(np.zeros((2, 3)), np.zeros(3, np.float32))
    assert not kernel.take(np.zeros((2, 3), np.float32), np.zeros(3))
    assert not kernel.take(np.zeros((3, 2), np.float32).T, np.zeros(3, np.float32))


@needs_compiler
def test_the_code_for_other_processors_gives_the_same(tmp_path: Path) -> None:
    library = declare(ctypes.CDLL(str(compiled(tmp_path / "portable.so", "-DPORTABLE"))))
    for changed in (0.1, 1.0):
        assert_equal_to_float64(library, *window(13, 2 * BLOCK + 77, "BF16", "BF16", changed))


@needs_compiler
def test_nothing_beyond_the_arrays_is_touched(tmp_path: Path) -> None:
    """Under gcc's address sanitizer, which stands in for malloc and ends the process at a wrong access."""
    runtime = subprocess.run([COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(runtime).is_file():
        pytest.skip("this compiler has no address sanitizer")
    library = compiled(tmp_path / "checked.so", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
    script = """
import ctypes, sys
import numpy as np
from relex_core.kernels import Part, add_parts, declare
from test_kernels import BLOCK, DTYPES, assert_equal_to_float64, window
library = declare(ctypes.CDLL(sys.argv[1]))
for steps in (1, 2, 3, 5, 12, 13):
    for columns in (1, 9, 511, 513, BLOCK + 3):
        for dtype in DTYPES:
            for changed in (0.0, 0.2, 1.0):
                base_dtype = "F32" if columns == 9 else dtype
                slices, base = window(steps, columns, dtype, base_dtype, changed)
                assert_equal_to_float64(library, slices, base)
                add_parts(library, base, [Part(row, 0.5, True) for row in slices], np.empty(columns, np.float32))
print("whole")
"""
    path = os.pathsep.join([str(SOURCE.parents[1]), str(Path(__file__).parent)])
    environment = os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": path}
    command = [sys.executable, "-c", script, str(library)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.stdout == "whole\n", found.stderr[-3000:]
