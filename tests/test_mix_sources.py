"""Pieces of candidates: their memory is used again, and the files that they are mixed from stay as they were."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import candidate, random_base, random_walk, write_run

from relex_core import mix_sources
from relex_core.errors import CheckpointChanged
from relex_core.extrapolate import extrapolate
from relex_core.fit import fit
from relex_core.kernels import compiled_library
from relex_core.rows import Rows

STEPS = [2, 5, 6, 11]


def many_pieces(root: Path) -> str:
    """A fitted run with several candidates, whose tensors are mixed in pieces of 1000 weights."""
    base = random_base(dtype=torch.bfloat16)
    candidates = {"target_steps": [20, 40], "baselines": ["weight_extrapolation", "pinned"]}
    run = write_run(root, base, random_walk(base, STEPS), candidates=candidates)
    fit(run)
    return run


@pytest.mark.parametrize("mapped", [True, False])
def test_memory_of_a_piece_is_used_again_only_when_it_is_written(
    mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [many_pieces(tmp_path / name) for name in ("whole", "pieces")]
    names = [found.name for found in extrapolate(runs[0])]
    monkeypatch.setattr("relex_core.mix_sources.PIECE", 1000)
    met, whole_map = [], Rows._map
    monkeypatch.setattr(Rows, "_map", lambda *given: met.append(whole_map(*given) if mapped else None) or met[-1])
    assert [found.name for found in extrapolate(runs[1])] == names and len(names) >= 4
    assert any(met) == (mapped and compiled_library() is not None)
    for name in names:
        whole, pieces = candidate(runs[0], name), candidate(runs[1], name)
        assert all(torch.equal(pieces[tensor], weights) for tensor, weights in whole.items()), name


@pytest.mark.skipif(compiled_library() is None, reason="files are mapped by the compiled library")
@pytest.mark.parametrize("change", ["cut", "written to"])
@pytest.mark.parametrize(
    ("label", "file"),
    [
        ("base", "base/model.safetensors"),
        ("step 11", "trajectory/global_step_11/model.safetensors"),
        ("direction", "run/fit/direction-00001-of-00001.safetensors"),
    ],
)
def test_a_file_that_changes_while_it_is_mixed_is_refused(
    label: str, file: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = many_pieces(tmp_path), tmp_path / file
    content, status, mix = path.read_bytes(), path.stat(), mix_sources.mix_tiles

    def then_changed(*arguments: Any) -> list[bool]:
        if change == "cut":
            os.truncate(path, 0)
        else:
            with path.open("r+b") as stream:
                stream.write(content)
        return mix(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(mix_sources, "mix_tiles", then_changed)
        with pytest.raises(CheckpointChanged, match=label) as caught:
            extrapolate(run)
    assert caught.value.exit_code == 4 and str(path) in str(caught.value.where)
    assert not list(Path(run, "candidates").rglob("*.safetensors"))
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert extrapolate(run)
