"""Fits that are interrupted, shared out, or made by several processes at the same time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import random_base, random_walk, write_run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from relex_core.errors import DataError, WindowNotReady
from relex_core.fit import fit, fit_shard, load_fit, merge

STEPS = [3, 4, 8, 20, 31]


def test_a_finished_fit_is_not_done_again_and_another_fit_is_not_mixed_in(tmp_path: Path) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS), fit={"group_size": 1})
    first = fit(run)
    assert fit(run) == first
    assert not list(Path(run, "fit").glob("gram-*")), "group files are gone when the fit is done"
    files = [re.sub(r".*/", "", str(path)) for path in Path(run, "fit").glob("direction-*")]
    assert sorted(files) == [f"direction-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    for name in ("gram.safetensors", *files):
        with safe_open(Path(run, "fit", name), "pt") as file:
            assert file.metadata()["window_digest"] == first.window_digest

    other = write_run(tmp_path, base, {}, out="other", window={"t_cut": 20}, fit={"group_size": 1})
    shutil.copytree(Path(run, "fit"), Path(other, "fit"))
    refitted = fit(other)
    assert refitted.steps == (3, 4, 8, 20) and refitted.fit_key != first.fit_key
    metadata = load_file(Path(other, "fit", files[0]))
    assert metadata.keys() <= base.keys()


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_shards_give_the_same_fit_in_any_order(tmp_path: Path, shards: int) -> None:
    base = random_base()
    states = random_walk(base, STEPS)
    whole = write_run(tmp_path, base, states, fit={"group_size": 400})
    expected = fit(whole)
    run = write_run(tmp_path, base, states, out="shards", fit={"group_size": 400})
    for shard in range(shards, 1, -1):
        fit_shard(run, shard, shards)
    with pytest.raises(WindowNotReady, match="tensor groups are not fitted yet"):
        merge(run)
    fit_shard(run, 1, shards)
    merged = merge(run)
    assert merged.tensors == expected.tensors and merged.bytes_read == expected.bytes_read
    for path in sorted(Path(whole, "fit").glob("*.safetensors")):
        assert path.read_bytes() == Path(run, "fit", path.name).read_bytes()


def test_a_fit_that_cannot_be_read_is_made_again(tmp_path: Path) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS))
    first = fit(run)
    Path(run, "fit", "fit.json").write_text('{"window_digest": "of another version"}')
    with pytest.raises(DataError, match=r"not what this version of relex writes: fit_key: Field .*; and [0-9]+ more"):
        load_fit(run)
    assert fit(run).tensors == first.tensors


@pytest.mark.parametrize("key", ["this fit's", "another's"])
def test_a_group_without_its_tensors_fits_is_fitted_again(tmp_path: Path, key: str) -> None:
    """As one that a version between two releases left."""
    base = random_base()
    states = random_walk(base, STEPS)
    expected = fit(write_run(tmp_path, base, states))
    run = write_run(tmp_path, base, states, out="interrupted")
    fit_shard(run, 1, 1)
    [left] = Path(run, "fit").glob("gram-*")
    with safe_open(left, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(left)
    facts = json.loads(metadata["facts"])
    del facts["tensors"]
    metadata |= {"facts": json.dumps(facts)} | ({"fit_key": "another"} if key == "another's" else {})
    save_file(tensors, left, metadata)
    with pytest.raises(WindowNotReady, match="not fitted yet"):
        merge(run)
    assert fit(run).tensors == expected.tensors


def test_the_merge_takes_the_eigenvectors_that_the_directions_were_mixed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed again, on another machine, they may have other signs, or be others where two eigenvalues are equal."""
    base = random_base()
    states = random_walk(base, STEPS)
    expected = fit(write_run(tmp_path, base, states))
    run = write_run(tmp_path, base, states, out="shards")
    fit_shard(run, 1, 1)
    for routine in ("eigh", "svd", "qr", "lstsq"):
        monkeypatch.delattr(np.linalg, routine)
    assert merge(run).tensors == expected.tensors


def test_processes_that_fit_the_same_do_not_disturb_each_other(tmp_path: Path) -> None:
    base = {f"t{number}": torch.randn(300) for number in range(30)}
    run = write_run(tmp_path, base, random_walk(base, STEPS), fit={"group_size": 1})
    command = [sys.executable, "-m", "relex_core", "fit", run]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert load_fit(run).summary.moved == 30
    assert not list(Path(run, "fit").glob("gram-*"))


def test_the_merge_holds_one_groups_gram_matrices_at_a_time(tmp_path: Path) -> None:
    base = {f"t{number}": torch.randn(8) for number in range(200)}
    run = write_run(tmp_path, base, random_walk(base, range(1, 101)), fit={"group_size": 256})
    fit_shard(run, 1, 1)
    tracemalloc.start()
    try:
        artifact = merge(run)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert artifact.summary.moved == 200
    all_grams = 200 * 100 * 100 * 8
    assert peak < 0.8 * all_grams


def test_a_merge_that_comes_second_takes_what_the_first_one_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS))
    fit_shard(run, 1, 1)
    from relex_core.fit import merging

    second = merging.merge_groups

    def after_another(run: str) -> object:
        second(run)
        return second(run)  # whose groups are gone now

    monkeypatch.setattr(merging, "merge_groups", after_another)
    assert merge(run) == load_fit(run)


def test_a_merge_that_comes_too_late_clears_what_its_shard_left(tmp_path: Path) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS))
    fit_shard(run, 1, 1)
    [left] = Path(run, "fit").glob("gram-*")
    kept = left.read_bytes()
    artifact = merge(run)
    left.write_bytes(kept)
    assert merge(run) == artifact
    assert not left.exists()


@pytest.mark.parametrize("again", [fit, lambda run: fit_shard(run, 1, 2)], ids=["fit", "shard"])
def test_what_a_merge_that_was_killed_left_is_cleared(tmp_path: Path, again: Callable[[str], object]) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS))
    fit_shard(run, 1, 1)
    [left] = Path(run, "fit").glob("gram-*")
    kept = left.read_bytes()
    artifact = merge(run)
    left.write_bytes(kept)
    again(run)
    assert not left.exists() and load_fit(run) == artifact


def test_a_shard_that_ends_after_the_merge_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS))
    from relex_core.fit import loop

    real = loop.fit_groups

    def slower(*arguments: Any) -> None:
        monkeypatch.setattr(loop, "fit_groups", real)
        fit(run)
        real(*arguments)
        assert list(Path(run, "fit").glob("gram-*"))

    monkeypatch.setattr(loop, "fit_groups", slower)
    fit_shard(run, 1, 1)
    assert not list(Path(run, "fit").glob("gram-*"))


def test_a_group_file_replaced_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = random_base()
    run = write_run(tmp_path, base, random_walk(base, STEPS))
    fit_shard(run, 1, 1)
    from relex_core.fit import group_results

    [group], real = Path(run, "fit").glob("gram-*"), group_results.read_header
    seen = []

    def replaced(*arguments: Any) -> Any:
        header = real(*arguments)
        if len(seen) == 1:  # the first look sees only whether it is there
            shutil.copy(group, group.with_name("copy"))
            group.with_name("copy").replace(group)
        seen.append(header)
        return header

    monkeypatch.setattr(group_results, "read_header", replaced)
    assert merge(run).summary.moved == 5
    assert len(seen) == 3
