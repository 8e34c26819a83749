"""The plan of a fit: every weight once, within the buffers, within the budget."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relex_core.checkpoints.safetensors_file import FLOATS, ITEM_BYTES
from relex_core.errors import SpecError
from relex_core.fit.line import fit_line
from relex_core.groups import MAX_GROUP_TENSORS, shard_groups
from relex_core.manifest import BaseRecord, CheckpointRecord, TensorRecord, WindowManifest
from relex_core.plan import MAX_STRIPE_COLUMNS, FitPlan, plan_fit, refuse_impossible, window_bytes
from relex_core.spec import FitSpec
from relex_core.stripes import BLOCK_COLUMNS, Segment

MIB = 2**20

Tensors = list[tuple[int, str, str]]
"""Of each tensor: elements, dtype, dtype in the base."""


def manifest_of(tensors: Tensors, steps: int) -> WindowManifest:
    return WindowManifest(
        base=BaseRecord(uri="base", files=()),
        checkpoints=tuple(CheckpointRecord(step=step, uri=f"step {step}", files=()) for step in range(1, steps + 1)),
        tensors=tuple(
            TensorRecord(name=f"t{number}", shape=(numel,), dtype=dtype)
            for number, (numel, dtype, _) in enumerate(tensors)
        ),
        t_cut=steps,
    )


def plan_of(tensors: Tensors, steps: int, budget: int, workers: int = 2, **fit: Any) -> FitPlan:
    """A plan for a process that holds nothing yet."""
    base_dtypes = {f"t{number}": base for number, (_, _, base) in enumerate(tensors)}
    spec = FitSpec.model_validate({"memory_budget": budget, **fit})
    return plan_fit(
        manifest_of(tensors, steps), base_dtypes, spec, int(spec.memory_budget), workers=workers, resident=0
    )


def enough(tensors: Tensors, steps: int, budget: int, workers: int, **fit: Any) -> FitPlan:
    """The plan for this budget or, where it is refused, for the one that the refusal asks for."""
    try:
        return plan_of(tensors, steps, budget, workers, **fit)
    except SpecError as error:
        needed = re.fullmatch(r"at least (\d+) MiB", error.expected)
        assert needed is not None
        assert int(needed[1]) * MIB > budget
        return plan_of(tensors, steps, int(needed[1]) * MIB, workers, **fit)


def stripes(plan: FitPlan) -> list[tuple[Segment, ...]]:
    return [stripe.segments for group in plan.groups for stripe in plan.stripes(group)]


float_dtypes = st.sampled_from(sorted(FLOATS))
numels = st.one_of(
    st.integers(0, 50),
    st.integers(0, 40).map(lambda blocks: blocks * BLOCK_COLUMNS),
    st.integers(0, 3_000_000),
)
tensor_lists = st.lists(
    st.one_of(
        st.tuples(numels, float_dtypes, float_dtypes),
        st.tuples(numels, st.sampled_from(["I64", "U8", "BOOL"]), st.just("I64")).map(lambda t: (t[0], t[1], t[1])),
    ),
    min_size=1,
    max_size=8,
)


def planned(function: Any) -> Any:
    """Run a test on plans of all kinds, tight ones and wide ones."""
    fit = st.fixed_dictionaries(
        {
            "rank": st.integers(1, 3),
            "group_size": st.sampled_from([1, 4096, MIB, 64 * MIB]),
            "direction_dtype": st.sampled_from(["float32", "bfloat16"]),
        }
    )
    given_all = given(
        tensors=tensor_lists,
        steps=st.integers(2, 40),
        budget=st.integers(1, 300).map(lambda mib: mib * MIB),
        workers=st.integers(1, 8),
        fit=fit,
    )
    return settings(max_examples=150)(given_all(function))


@planned
def test_every_weight_is_read_in_order_and_what_is_not_held_by_itself(
    tensors: Tensors, steps: int, budget: int, workers: int, fit: dict[str, Any]
) -> None:
    plan = enough(tensors, steps, budget, workers, **fit)
    found: dict[str, list[Segment]] = defaultdict(list)
    for segments in stripes(plan):
        assert segments
        for segment in segments:
            found[segment.tensor.name].append(segment)
            assert plan.held(segment.tensor) or len(segments) == 1
    planned_tensors = [tensor for group in plan.groups for tensor in group.tensors]
    assert [(t.numel, t.dtype, t.base_dtype) for t in planned_tensors] == tensors
    for tensor in planned_tensors:
        end = 0
        for segment in found[tensor.name]:
            assert segment.start == end
            assert segment.stop > segment.start
            assert segment.start % BLOCK_COLUMNS == 0
            end = segment.stop
        assert end == tensor.numel


@planned
def test_segments_lie_aligned_side_by_side_inside_the_buffers(
    tensors: Tensors, steps: int, budget: int, workers: int, fit: dict[str, Any]
) -> None:
    plan = enough(tensors, steps, budget, workers, **fit)
    for segments in stripes(plan):
        at = base_at = 0
        for segment in segments:
            count = segment.stop - segment.start
            item, base_item = ITEM_BYTES[segment.tensor.dtype], ITEM_BYTES[segment.tensor.base_dtype]
            assert segment.at % item == 0
            assert segment.base_at % base_item == 0
            assert plan.row_bytes % item == 0  # the next row is aligned as well
            assert segment.at >= at
            assert segment.base_at >= base_at
            at, base_at = segment.at + count * item, segment.base_at + count * base_item
        assert at <= plan.row_bytes
        assert base_at <= plan.base_row_bytes


@planned
def test_the_promised_peak_stays_within_the_budget(
    tensors: Tensors, steps: int, budget: int, workers: int, fit: dict[str, Any]
) -> None:
    try:
        plan = plan_of(tensors, steps, budget, workers, **fit)
    except SpecError:
        return
    assert plan.peak_bytes <= budget
    assert plan.peak_bytes >= plan.buffers * (steps * plan.row_bytes + plan.base_row_bytes)
    assert BLOCK_COLUMNS <= plan.columns <= MAX_STRIPE_COLUMNS
    assert plan.columns % BLOCK_COLUMNS == 0


@planned
def test_bytes_to_read_are_those_of_the_segments(
    tensors: Tensors, steps: int, budget: int, workers: int, fit: dict[str, Any]
) -> None:
    plan = enough(tensors, steps, budget, workers, **fit)
    planned_tensors = [tensor for group in plan.groups for tensor in group.tensors]
    again = sum(map(plan.again_bytes, planned_tensors))
    assert all((plan.again_bytes(tensor) == 0) is plan.read_once(tensor) for tensor in planned_tensors)
    read = sum(plan.segment_bytes(segment) for segments in stripes(plan) for segment in segments)
    assert plan.bytes_to_read == read + again
    once = sum(numel * (steps * ITEM_BYTES[dtype] + ITEM_BYTES[base_dtype]) for numel, dtype, base_dtype in tensors)
    assert once == read >= again
    assert window_bytes(manifest_of(tensors, steps)) == sum(steps * n * ITEM_BYTES[d] for n, d, _ in tensors)


@planned
def test_groups_do_not_depend_on_budget_or_machine(
    tensors: Tensors, steps: int, budget: int, workers: int, fit: dict[str, Any]
) -> None:
    plan = enough(tensors, steps, budget, workers, **fit)
    assert plan.groups == plan_of(tensors, steps, 2**50, 3, **fit).groups
    assert [group.number for group in plan.groups] == list(range(1, len(plan.groups) + 1))
    stored = fit["rank"] * (2 if fit["direction_dtype"] == "bfloat16" else 4)
    for group in plan.groups:
        size = stored * sum(tensor.numel for tensor in group.tensors)
        alone = sum(1 for tensor in group.tensors if tensor.numel) <= 1
        assert alone or size <= fit["group_size"]


@planned
@example(tensors=[(5, "F32", "F32"), (0, "F32", "F32")], steps=2, budget=MIB, workers=1, fit={"group_size": 1})
def test_shards_divide_the_groups_among_them(
    tensors: Tensors, steps: int, budget: int, workers: int, fit: dict[str, Any]
) -> None:
    groups = enough(tensors, steps, budget, workers, **fit).groups
    shared = [group for shard in range(1, workers + 1) for group in shard_groups(groups, shard, workers)]
    assert shared == list(groups)  # each once, and neighbours together


def test_shards_have_about_equal_weights() -> None:
    groups = plan_of([(1000 + number, "F32", "F32") for number in range(100)], 2, 2**40, group_size=1).groups
    for shards in (1, 3, 8):
        weights = [sum(g.tensors[0].numel for g in shard_groups(groups, s, shards)) for s in range(1, shards + 1)]
        assert max(weights) - min(weights) <= 2 * 1100


def test_a_window_that_fits_is_read_once() -> None:
    tensors = [(2_000_000, "BF16", "BF16"), (10, "BF16", "BF16")]
    plan = plan_of(tensors, 10, 2**40)
    assert all(plan.read_once(tensor) for group in plan.groups for tensor in group.tensors)
    assert plan.bytes_to_read == 2_000_010 * 11 * 2


def test_only_the_tensors_that_do_not_fit_are_read_twice() -> None:
    tensors = [(1000, "BF16", "BF16"), (20_000_000, "BF16", "BF16"), (1000, "BF16", "BF16")]
    plan = plan_of(tensors, 10, 300 * MIB, group_size=200 * MIB, direction_dtype="bfloat16")
    small, large, last = plan.groups[0].tensors
    assert (plan.read_once(small), plan.read_once(large), plan.read_once(last)) == (True, False, True)
    assert plan.bytes_to_read == 11 * 2 * (2000 + 2 * 20_000_000)
    dear = dataclasses.replace(plan, dear_reads=True)  # then what fits stays
    kept = (plan.buffers - plan.ahead) * plan.columns
    assert 0 < kept < 20_000_000
    assert 0 <= dear.bytes_to_read - 11 * 2 * (2000 + 2 * 20_000_000 - kept) < 11 * 2 * plan.columns


@pytest.mark.parametrize("workers", [2, 16])
def test_stripes_are_narrow_enough_that_some_can_wait(workers: int) -> None:
    """From the budget on that keeps one: more memory must not mean that nothing is kept."""
    tensors = [(100_000_000, "BF16", "BF16")]
    kept = [
        plan.kept_buffers(plan.groups[0].tensors[0]) * plan.columns
        for plan in (plan_of(tensors, 100, budget * MIB, workers) for budget in range(512, 4096, 128))
    ]
    assert min(kept) > 0
    wide = plan_of(tensors, 100, 2**40, workers)
    assert wide.columns == MAX_STRIPE_COLUMNS  # narrower ones take longer to read


@pytest.mark.parametrize(
    ("folder", "dear"), [("/data/run", False), ("gs://bucket/run", True), ("/data/captured/{}.relexpatch", True)]
)
def test_reads_from_a_bucket_or_of_captured_steps_are_dear(folder: str, dear: bool) -> None:
    manifest = manifest_of([(10, "F32", "F32")], 3)
    checkpoints = tuple(c.model_copy(update={"uri": folder.format(c.step)}) for c in manifest.checkpoints)
    there = manifest.model_copy(update={"checkpoints": checkpoints})
    assert plan_fit(there, {"t0": "F32"}, FitSpec(), 2**40, workers=2).dear_reads is dear


def test_small_neighbours_share_a_stripe() -> None:
    plan = plan_of([(100, "BF16", "BF16")] * 50, 4, 2**40)
    assert [len(segments) for segments in stripes(plan)] == [50]


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_a_budget_too_small_is_refused_with_what_is_needed(workers: int) -> None:
    tensors = [(5_000_000, "BF16", "F32")]
    with pytest.raises(SpecError, match=r"a memory budget of 1 MiB is too small for 75 checkpoints") as caught:
        plan_of(tensors, 75, MIB, workers)
    assert caught.value.exit_code == 2
    needed = int(caught.value.expected.removeprefix("at least ").removesuffix(" MiB"))
    assert plan_of(tensors, 75, needed * MIB, workers).peak_bytes <= needed * MIB
    with pytest.raises(SpecError):
        plan_of(tensors, 75, (needed - 1) * MIB, workers)


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        ({"temporal": "polynomial", "degree": 3}, "fit.degree=3 needs 4 checkpoints, the window holds 3"),
        ({"trailing_averages": (2, 4)}, "fit.trailing_averages: the last 4 checkpoints, but the window holds 3"),
    ],
)
def test_what_the_window_cannot_give_is_refused(fit: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)) as caught:
        plan_of([(10, "F32", "F32")], 3, 2**40, **fit)
    assert caught.value.next_step


@pytest.mark.parametrize("degree", range(1, 6))
@pytest.mark.parametrize("first", [1, 1000, 10_000, 100_000, 1_000_000])
def test_a_polynomial_that_rounding_would_decide_is_refused(first: int, degree: int) -> None:
    """Those that are let through are numpy's."""
    steps = list(range(first, first + 75))
    temporal: Any = "linear" if degree == 1 else "polynomial"
    try:
        refuse_impossible(FitSpec(temporal=temporal, degree=degree), steps)
    except SpecError as error:
        assert "rounding would decide" in error.what
        assert first >= 10_000 and degree >= 3
    else:
        coefficient = 1 + np.random.default_rng(degree).standard_normal(75).cumsum()
        oracle = np.polynomial.Polynomial.fit(steps, coefficient, degree)
        line = fit_line(steps, coefficient, degree)
        found = [line(step) for step in (*steps, steps[-1] + 75)]
        np.testing.assert_allclose(found, oracle(np.array([*steps, steps[-1] + 75])), rtol=0, atol=1e-3)


def test_stored_columns_are_those_of_the_spec() -> None:
    tensors = [(1000, "F32", "F32"), (7, "I64", "I64")]

    def written(**fit: Any) -> int:
        return plan_of(tensors, 8, 2**40, **fit).bytes_to_write

    assert written() == 4000
    assert written(rank=3) == 12000
    assert written(direction_dtype="bfloat16") == 2000
    assert written(basis="per_parameter") == 8000  # mean and slope
    assert written(basis="per_parameter", temporal="polynomial", degree=2) == 12000
    assert written(trailing_averages=(2, 5)) == 12000


def test_a_group_of_many_small_tensors_ends_before_its_gram_matrices_fill_the_memory() -> None:
    plan = plan_of([(10, "BF16", "BF16")] * (2 * MAX_GROUP_TENSORS + 88), 20, 1024 * MIB)
    assert [len(group.tensors) for group in plan.groups] == [MAX_GROUP_TENSORS, MAX_GROUP_TENSORS, 88]
