"""The arithmetic of the fit against oracles (torch.linalg.svd, numpy.polyfit) and laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from relex_core.fit.basis import decompose, rank_basis, trailing_average_basis, trend_basis, trend_coefficients
from relex_core.fit.gram import Tiles, block_grams, mix
from relex_core.fit.line import fit_line
from relex_core.fit.memory import HostMemory, Memory
from relex_core.fit.torch_memory import TORCH_DTYPES, TorchMemory
from relex_core.kernels import compiled_library
from relex_core.stripes import BLOCK_COLUMNS, tile_columns

MEMORIES = [HostMemory(), HostMemory(compiled=False), TorchMemory(torch.device("cpu"))]
TO_NUMPY = {there: here for here, there in TORCH_DTYPES.items()}


@pytest.fixture(params=MEMORIES, ids=["compiled", "numpy", "torch"])
def memory(request: pytest.FixtureRequest) -> Memory:
    """The same arithmetic compiled, on numpy arrays, and on torch tensors, as on a device."""
    found: Memory = request.param
    if found is MEMORIES[0] and compiled_library() is None:
        pytest.skip("relex was installed without a C compiler")
    return found


def on_host(tensor: torch.Tensor) -> np.ndarray:
    """As numpy holds it, bfloat16 included."""
    return tensor.contiguous().view(torch.uint8).numpy().view(TO_NUMPY[tensor.dtype])


def deltas_of(slices: torch.Tensor, base: torch.Tensor) -> np.ndarray:
    """Oracle: the deltas in float64, "T d"."""
    return (slices.double() - base.double()).numpy()


def gram_of(slices: torch.Tensor, base: torch.Tensor, memory: Memory = MEMORIES[0]) -> np.ndarray:
    grams, *_ = block_grams(on_host(slices), on_host(base), Tiles(len(slices), memory))
    return grams.sum(axis=0)


def mixed(slices: torch.Tensor, base: torch.Tensor, mixing: np.ndarray, memory: Memory = MEMORIES[0]) -> torch.Tensor:
    return torch.from_numpy(mix(on_host(slices), on_host(base), mixing, Tiles(len(slices), memory)))


def random_slices(steps: int, numel: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = 0.02 * torch.randn(numel, generator=generator)
    walk = 1e-3 * torch.randn(steps, numel, generator=generator).cumsum(0)
    return (base + walk).to(dtype), base.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "numel", [1, 7, tile_columns(9), BLOCK_COLUMNS + 5, 2 * BLOCK_COLUMNS + 3 * tile_columns(9) + 1]
)
def test_gram_equals_the_product_of_exact_deltas(dtype: torch.dtype, numel: int, memory: Memory) -> None:
    slices, base = random_slices(9, numel, dtype)
    exact = deltas_of(slices, base)
    gram = gram_of(slices, base, memory)
    assert gram.dtype == np.float64
    np.testing.assert_allclose(gram, exact @ exact.T, rtol=2e-6, atol=1e-6 * np.trace(exact @ exact.T))


def test_gram_comes_in_blocks_that_do_not_depend_on_where_a_stripe_ends(memory: Memory) -> None:
    slices, base = random_slices(5, 3 * BLOCK_COLUMNS + 11, torch.bfloat16)
    rows, row = on_host(slices), on_host(base)
    whole, squares, _ = block_grams(rows, row, Tiles(5, memory))
    cut = 2 * BLOCK_COLUMNS
    parts = [block_grams(rows[:, a:b], row[a:b], Tiles(5, memory)) for a, b in ((0, cut), (cut, None))]
    np.testing.assert_array_equal(whole, np.concatenate([grams for grams, *_ in parts]))
    np.testing.assert_array_equal(squares, np.concatenate([square for _, square, _ in parts]))
    np.testing.assert_allclose(squares.sum(), float(base.double().square().sum()), rtol=1e-5)  # float32 in a tile


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_frozen_weights_are_skipped_and_give_what_they_would_have_given(
    dtype: torch.dtype, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, base = random_slices(4, BLOCK_COLUMNS + 300, dtype)
    frozen = base.repeat(4, 1)
    late = frozen.clone()
    late[0, 7] += 1.0  # moved at the first step, and was back at the last
    assert gram_of(late, base, memory)[0, 0] == pytest.approx(1.0, rel=0.02)
    expected = block_grams(on_host(late), on_host(base), Tiles(4, memory))
    monkeypatch.setattr(Tiles, "deltas", None)  # not needed
    grams, squares, _ = block_grams(on_host(frozen), on_host(base), Tiles(4, memory))
    assert not grams.any()
    np.testing.assert_array_equal(squares, expected[1])


@pytest.mark.parametrize("rank", [1, 3])
def test_directions_and_singular_values_equal_torch_svd(rank: int, memory: Memory) -> None:
    slices, base = random_slices(12, 5000, torch.bfloat16)
    exact = torch.from_numpy(deltas_of(slices, base))
    u, s, vh = torch.linalg.svd(exact, full_matrices=False)
    spectrum = decompose(gram_of(slices, base, memory), rank)
    # Weyl: an error of the Gram matrix moves each squared singular value by at most its norm.
    squares = s[:rank].square().numpy()
    np.testing.assert_allclose(np.square(spectrum.singular_values[:rank]), squares, rtol=0, atol=1e-6 * squares[0])
    basis = rank_basis(spectrum)
    directions = mixed(slices, base, basis.mixing, memory).double()
    for i in range(rank):
        cosine = float(directions[i] @ vh[i] / directions[i].norm())
        assert abs(abs(cosine) - 1) < 1e-6
        assert abs(float(directions[i].norm()) - 1) < 1e-5
        coefficients = np.sign(cosine) * (u[:, i] * s[i]).numpy()
        np.testing.assert_allclose(spectrum.coefficients[i], coefficients, rtol=1e-5, atol=1e-6 * float(s[0]))
        assert spectrum.coefficients[i].sum() >= 0


def test_explained_variance_is_the_share_of_the_squared_singular_values() -> None:
    slices, base = random_slices(10, 3000, torch.float32)
    s = torch.linalg.svdvals(torch.from_numpy(deltas_of(slices, base)))
    gram = gram_of(slices, base)
    for rank in (1, 2, 5):
        expected = float(s[:rank].square().sum() / s.square().sum())
        assert decompose(gram, rank).explained_variance(gram) == pytest.approx(expected, abs=1e-6)


def test_float32_deltas_far_below_the_weights_are_kept() -> None:
    """Weights near 0.02, deltas near 3e-6: a cast to 16 bits before subtracting would lose most of them."""
    generator = torch.Generator().manual_seed(3)
    base = 0.02 * torch.randn(20_000, generator=generator)
    true = 3e-6 * torch.randn(20_000, generator=generator).double()
    slices = torch.stack([(base.double() + step * true).float() for step in (1, 2, 3, 4)])
    spectrum = decompose(gram_of(slices, base), 1)
    direction = mixed(slices, base, rank_basis(spectrum).mixing)[0].double()
    assert float(direction @ true / true.norm()) > 0.99999


def test_a_tensor_that_never_moved_has_no_direction() -> None:
    spectrum = decompose(np.zeros((4, 4)), 2)
    assert not spectrum.moved and spectrum.rank == 0
    assert spectrum.explained_variance(np.zeros((4, 4))) is None


def test_rank_is_cut_where_only_rounding_is_left() -> None:
    slices, base = random_slices(6, 1, torch.float32)
    assert decompose(gram_of(slices, base), 3).rank == 1  # one number spans one dimension


@given(sign=st.sampled_from([-1.0, 1.0]), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_negated_deltas_negate_the_displacement(sign: float, seed: int) -> None:
    """c · v does not depend on the sign that the eigenvector came with, and turns around with the deltas."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(6, 50, generator=generator).cumsum(0)
    zero = torch.zeros(50)
    displacement = []
    for moved in (steps, sign * steps):
        spectrum = decompose(gram_of(moved, zero), 1)
        direction = mixed(moved, zero, rank_basis(spectrum).mixing)[0]
        displacement.append(fit_line(range(1, 7), spectrum.coefficients[0])(20) * direction)
    torch.testing.assert_close(displacement[1], sign * displacement[0], rtol=1e-4, atol=1e-5)


@given(
    steps=st.lists(st.integers(1, 10_000), min_size=3, max_size=12, unique=True).map(sorted),
    slope=st.floats(-5, 5),
    intercept=st.floats(-50, 50),
    degree=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_line_equals_numpy_polyfit(steps: list[int], slope: float, intercept: float, degree: int, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=len(steps))
    values = intercept + slope * np.array(steps) + noise
    line = fit_line(steps, values, degree)
    oracle = np.polyfit(np.array(steps, dtype=np.float64), values, degree)
    for step in (steps[0], steps[-1], 2 * steps[-1]):
        assert line(step) == pytest.approx(np.polyval(oracle, step), rel=1e-6, abs=1e-6 * (1 + np.abs(values).max()))
    residual = values - np.polyval(oracle, np.array(steps, dtype=np.float64))
    total = np.square(values - values.mean()).sum()
    assert line.r_squared == pytest.approx(1 - np.square(residual).sum() / total, abs=1e-6)


def test_a_line_on_true_steps_not_on_rows() -> None:
    """Labels 10 ... 750 and target 1000 must give 1000; a fit on the row index would give 3250."""
    steps = list(range(10, 760, 10))
    assert fit_line(steps, np.array(steps, dtype=np.float64))(1000) == pytest.approx(1000)


def test_r_squared_of_a_constant_is_undefined() -> None:
    assert fit_line([1, 2, 3], np.full(3, 0.7)).r_squared is None


@pytest.mark.parametrize("length", [4, 24, 75])
@pytest.mark.parametrize("rounding", [0.0, 2.0**-24])
def test_r_squared_of_a_tensor_that_moved_once_is_undefined(length: int, rounding: float) -> None:
    """All its deltas are the same, so G is one number everywhere, but for rounding; so is the coefficient."""
    random = np.random.default_rng(length)
    for size in random.uniform(1e-6, 1, 40):
        noise = rounding * random.uniform(-1, 1, (length, length))
        [coefficient] = decompose(size * (1 + (noise + noise.T) / 2), 1).coefficients
        line = fit_line(range(1, length + 1), coefficient)
        assert line.r_squared is None and line(2 * length) == pytest.approx(np.sqrt(size), rel=1e-5)


@pytest.mark.parametrize("length", [4, 24, 75])
@pytest.mark.parametrize("growth", [1e-4, 1e-5])
def test_r_squared_of_a_coefficient_that_grows_slowly_is_kept(length: int, growth: float) -> None:
    steps = np.arange(1, length + 1)
    grown = 1 + growth * steps / length
    [coefficient] = decompose(np.outer(grown, grown), 1).coefficients
    assert fit_line(steps.tolist(), coefficient).r_squared == pytest.approx(1, abs=1e-6)


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 2 distinct steps"):
        fit_line([5], np.array([1.0]))


@given(
    steps=st.lists(st.integers(1, 2000), min_size=4, max_size=10, unique=True).map(sorted),
    target=st.integers(0, 5000),
    degree=st.integers(1, 2),
)
@settings(max_examples=40, deadline=None)
def test_per_parameter_trend_is_each_weights_own_polynomial(steps: list[int], target: int, degree: int) -> None:
    generator = torch.Generator().manual_seed(target)
    slices = torch.randn(len(steps), 20, generator=generator).cumsum(0)
    basis = trend_basis(steps, degree)
    directions = mixed(slices, torch.zeros(20), basis.mixing).double()
    predicted = torch.tensor(trend_coefficients(steps, degree, target), dtype=torch.float64) @ directions
    x = (np.array(steps, dtype=np.float64) - np.mean(steps)) / np.ptp(steps)
    oracle = np.polyfit(x, slices.double().numpy(), degree)
    at = (target - np.mean(steps)) / np.ptp(steps)
    expected = sum(oracle[i] * at ** (degree - i) for i in range(degree + 1))
    np.testing.assert_allclose(predicted.numpy(), expected, rtol=1e-4, atol=1e-4 * (1 + np.abs(expected).max()))


def test_trailing_average_is_the_mean_of_the_last_deltas() -> None:
    slices, base = random_slices(8, 300, torch.bfloat16)
    average = mixed(slices, base, trailing_average_basis(3, 8).mixing)[0]
    np.testing.assert_allclose(average.numpy(), deltas_of(slices, base)[-3:].mean(axis=0), rtol=1e-5, atol=1e-9)
    with pytest.raises(ValueError, match="needs 9 checkpoints"):
        trailing_average_basis(9, 8)


def test_shapes_in_signatures_are_checked_here() -> None:
    """The import hook of conftest.py, which `relex_core.shapes` must not take away."""
    with pytest.raises(TypeCheckError):
        decompose(np.zeros((2, 3)), 1)
    with pytest.raises(TypeCheckError):
        fit_line([1, 2], np.zeros(2, dtype=np.float32))
