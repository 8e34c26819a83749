"""The stages on gs://: base, trajectory and run root on a real server process, nothing downloaded as a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gcs.server import fake_gcs, new_bucket  # noqa: F401

from relex_core.collect import collect
from relex_core.extrapolate import extrapolate
from relex_core.fit import fit
from relex_core.inspect import inspect_trajectory
from relex_core.spec import RunSpec, resolve_spec
from relex_core.storage import open_store, read_bytes, write_bytes

GOLDEN = Path(__file__).parent / "data" / "small" / "run"


def spec(base: str, trajectory: str, run: str) -> RunSpec:
    data = {
        "base": base,
        "trajectory": trajectory,
        "run_root": run,
        "window": {"t_cut": 16, "settle_seconds": 0},
        "fit": {"rank": 2, "trailing_averages": [4], "group_size": 20_000},
        "candidates": {"target_steps": [40], "baselines": ["trailing_average", "weight_extrapolation"]},
    }
    return resolve_spec(data, where="test", folder=Path.cwd())


def test_a_run_on_gcs_equals_a_local_run(tmp_path: Path, fake_gcs: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs)
    uri = f"gs://{new_bucket(fake_gcs)}/rl"
    bucket = open_store(uri)
    for path in sorted(GOLDEN.rglob("*")):
        if path.is_file():
            write_bytes(bucket, path.relative_to(GOLDEN).as_posix(), path.read_bytes())

    assert inspect_trajectory(uri).last_complete == 16
    remote, local = spec(f"{uri}/base", uri, f"{uri}/relex"), spec(str(GOLDEN / "base"), str(GOLDEN), str(tmp_path))
    for one in (remote, local):
        collect(one)
        fit(one.run_root)
        extrapolate(one.run_root)

    run = open_store(remote.run_root)
    window = json.loads(read_bytes(run, "window.json"))
    assert all(file["crc32c"] and file["generation"] > 0 for c in window["checkpoints"] for file in c["files"])
    mine = {info.name: read_bytes(run, info.name) for info in run.list()}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    theirs = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in files}
    assert mine.keys() == theirs.keys()
    weights = [name for name in mine if name.endswith(".safetensors")]
    assert len([name for name in weights if name.startswith("candidates/")]) == 3
    for name in weights:  # the headers name the window's digest, which knows where the files lie; the data are equal
        length = 8 + int.from_bytes(mine[name][:8], "little")
        other = 8 + int.from_bytes(theirs[name][:8], "little")
        assert mine[name][length:] == theirs[name][other:]
