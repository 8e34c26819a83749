"""Laws of the factor arithmetic: against dense matrices, numpy's SVD and torch's bfloat16."""

from __future__ import annotations

import tracemalloc

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relex_core.dtypes import as_bytes, rounded, widened
from relex_core.lora.factors import ROUNDING, LowRank, added, balanced, compress, nothing, triangles
from relex_core.lora.gram import low_rank_gram

EPS = float(np.finfo(np.float64).eps)

sizes = st.integers(1, 9)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[LowRank], list[np.ndarray]]:
    """Deltas of one tensor: factors of changing rank and of sizes that differ by twelve powers of ten, and dense."""
    rows, columns = draw(sizes), draw(sizes)
    ranks = draw(st.lists(st.integers(1, 5), min_size=2, max_size=6))
    scales = draw(st.lists(st.integers(-6, 6), min_size=len(ranks), max_size=len(ranks)))
    random = np.random.default_rng(draw(seeds))
    deltas = [
        LowRank(10.0**scale * random.standard_normal((rows, rank)), random.standard_normal((rank, columns)))
        for rank, scale in zip(ranks, scales, strict=True)
    ]
    return deltas, [delta.left @ delta.right for delta in deltas]


@given(windows())
def test_the_gram_of_factors_is_that_of_their_products(window: tuple[list[LowRank], list[np.ndarray]]) -> None:
    deltas, dense = window
    flat = np.stack([matrix.ravel() for matrix in dense])
    found, expected = low_rank_gram(added(deltas), [delta.rank for delta in deltas]), flat @ flat.T
    # Sums of up to 81 products of sums of 5: the error is some 100 roundings of the factors' norms, which cancel at
    # most as the products' own terms do.
    sizes = np.array([np.linalg.norm(delta.left) * np.linalg.norm(delta.right) for delta in deltas])
    assert (np.abs(found - expected) <= 200 * EPS * np.outer(sizes, sizes)).all()
    assert (found == found.T).all()


@given(windows(), seeds)
def test_a_mix_is_compressed_without_loss(window: tuple[list[LowRank], list[np.ndarray]], seed: int) -> None:
    deltas, dense = window
    weights = np.random.default_rng(seed).standard_normal(len(deltas))
    expected = sum(weight * matrix for weight, matrix in zip(weights, dense, strict=True))
    stack = added(deltas)
    mixed = triangles(stack).mixed(np.repeat(weights, [delta.rank for delta in deltas]))
    terms = sum(
        abs(weight) * np.linalg.norm(delta.left) * np.linalg.norm(delta.right)
        for weight, delta in zip(weights, deltas, strict=True)
    )
    norm = np.linalg.norm(expected)
    assert np.linalg.norm(mixed.left @ mixed.right - expected) <= 1.01 * ROUNDING * norm + 100 * EPS * terms
    assert mixed.rank <= min(stack.rank, *stack.shape)
    sigma = np.linalg.norm(mixed.left, axis=0)
    assert (np.diff(sigma) <= 100 * EPS * sigma.max(initial=0.0)).all()  # singular values, descending
    assert np.allclose(mixed.right @ mixed.right.T, np.eye(mixed.rank), atol=1e-12)


@given(windows(), st.integers(1, 9))
def test_truncation_is_the_best_of_its_rank(window: tuple[list[LowRank], list[np.ndarray]], rank: int) -> None:
    """Eckart–Young: no matrix of that rank is nearer than the tail of the singular values, and this one is as near."""
    [*deltas], dense = window
    matrix = sum(dense[1:], dense[0])
    whole = compress(added(deltas))
    b, a = balanced(whole, rank)
    assert b.shape == (matrix.shape[0], rank) and a.shape == (rank, matrix.shape[1])
    sigma = np.linalg.svd(matrix, compute_uv=False)
    best, lost = np.linalg.norm(sigma[rank:]), np.linalg.norm(matrix - b @ a)
    slack = 1e-12 * sum(np.linalg.norm(d.left) * np.linalg.norm(d.right) for d in deltas) + 2 * ROUNDING * sigma[0]
    assert abs(lost - best) <= slack
    assert np.allclose(np.linalg.norm(b, axis=0), np.linalg.norm(a, axis=1), rtol=1e-9)  # balanced


@given(windows())
def test_transposes_and_elements(window: tuple[list[LowRank], list[np.ndarray]]) -> None:
    deltas, dense = window
    matrix, product = deltas[0], dense[0]
    other = matrix.transposed()
    assert np.allclose(other.left @ other.right, product.T, rtol=1e-9, atol=1e-12 * np.linalg.norm(matrix.left))
    flat = product.ravel()
    for start in range(0, len(flat), 4):
        stop = min(start + 4, len(flat))
        assert np.allclose(
            matrix.elements(start, stop),
            flat[start:stop],
            rtol=1e-9,
            atol=1e-12 * np.linalg.norm(matrix.left),
        )


def test_the_zero_matrix() -> None:
    zero = nothing((3, 4))
    assert compress(zero).rank == 0
    b, a = balanced(compress(zero), 2)
    assert not b.any() and not a.any() and (b @ a).shape == (3, 4)
    assert compress(LowRank(np.zeros((3, 2)), np.ones((2, 4)))).rank == 0  # a step with B = 0
    assert (zero.elements(2, 7) == np.zeros(5)).all()


def test_a_rank_that_is_not_there_is_not_kept() -> None:
    """Four equal steps have the rank of one; a part below float32's rounding is none."""
    random = np.random.default_rng(0)
    step = LowRank(random.standard_normal((20, 3)), random.standard_normal((3, 30)))
    assert compress(added([step, step.scaled(2.0), step.scaled(-0.5), step])).rank == 3
    tiny = LowRank(1e-9 * random.standard_normal((20, 2)), random.standard_normal((2, 30)))
    assert compress(added([step, tiny])).rank == 3
    assert compress(added([step, tiny.scaled(1e4)])).rank == 5


TORCH_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(TORCH_TYPES)))
def test_bytes_are_those_of_torch(bits: int, dtype: str) -> None:
    """Any float32 at all, its neighbours of equal upper half, and random ones."""
    random = np.random.default_rng(bits).standard_normal(16).astype(np.float32)
    patterns = np.array([bits, bits ^ 1, bits & 0xFFFF0000, bits | 0x8000, bits & 0xFFFF8000], dtype=np.uint32)
    values = np.concatenate([patterns.view(np.float32), random, -random])
    stored = torch.from_numpy(values.copy()).to(TORCH_TYPES[dtype])
    expected = stored.view(torch.uint8).numpy()
    found = np.frombuffer(as_bytes(rounded(values, dtype)), np.uint8)
    nan = np.isnan(values)
    width = len(found) // len(values)
    same = (found.reshape(-1, width) == expected.reshape(-1, width)).all(axis=1)
    assert same[~nan].all()
    back = widened(rounded(values, dtype))
    assert np.isnan(back[nan]).all()  # the payload may differ, no number comes of it
    assert np.array_equal(back[~nan], stored.float().numpy()[~nan] if dtype != "F64" else stored.numpy()[~nan])


def test_no_product_is_ever_formed() -> None:
    """The deltas of this tensor would take 3.2 GB each; Gram matrix, direction and adapter take a thousandth."""
    random, size = np.random.default_rng(0), 20_000
    stack = LowRank(random.standard_normal((size, 12)), random.standard_normal((12, size)))
    tracemalloc.start()
    try:
        gram = low_rank_gram(stack, [4, 4, 4])
        direction = triangles(stack).mixed(np.repeat([0.5, 0.25, 0.25], 4))
        b, a = balanced(compress(added([direction, stack.cut(4)])), 4)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert gram.shape == (3, 3) and direction.rank == 12 and (b.shape, a.shape) == ((size, 4), (4, size))
    assert peak < 40e6
