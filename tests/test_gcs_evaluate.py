"""A whole run on gs://, with the evaluation of real models: they are copied to the local disk, and go again."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from gcs.server import fake_gcs, new_bucket  # noqa: F401
from support import SMALL

from relex_core.gate import gate
from relex_core.publish import published
from relex_core.run import run
from relex_core.spec import RunSpec, resolve_spec
from relex_core.storage import Store, open_store, read_bytes, write_bytes


@pytest.fixture
def uri(fake_gcs: str, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    """A bucket's folder with the small run."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs)
    uri = f"gs://{new_bucket(fake_gcs)}/rl"
    bucket = open_store(uri)
    for path in sorted((SMALL / "run").rglob("*")):
        if path.is_file():
            write_bytes(bucket, path.relative_to(SMALL / "run").as_posix(), path.read_bytes())
    for name in ("select", "confirm"):
        rows = [
            {"prompt": f"{len(name)}{i:02d}+{i:03d}=", "answer": f"{len(name) * 100 + 2 * i:04d}"} for i in range(12)
        ]
        write_bytes(bucket, f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return uri


def make_spec(data: str, trajectory: str, run_root: str) -> RunSpec:
    def split(name: str) -> dict[str, object]:
        return {"task": {"name": name, "file": f"{data}/{name}.jsonl"}, "max_tokens": 6}

    return resolve_spec(
        {
            "base": f"{trajectory}/base",
            "trajectory": trajectory,
            "run_root": run_root,
            "window": {"t_cut": 8},
            "candidates": {"target_steps": [20]},
            "evaluation": {"device": "cpu", "select": split("select"), "confirm": split("confirm")},
        },
        where="test",
        folder=Path.cwd(),
    )


def answers(store: Store) -> dict[str, list[tuple[str, str]]]:
    """Text and status of every sample, by evaluation."""
    return {
        info.name: [(row["text"], row["status"]) for row in map(json.loads, read_bytes(store, info.name).splitlines())]
        for info in store.list("eval")
        if info.name.endswith("samples.jsonl")
    }


def test_an_evaluation_on_gcs_equals_a_local_one(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    remote, local = make_spec(uri, uri, f"{uri}/relex"), make_spec(uri, str(SMALL / "run"), str(tmp_path / "run"))
    decisions = [run(spec).decision for spec in (remote, local)]
    assert decisions[0] and decisions[1] and decisions[0].decision == decisions[1].decision
    mine, theirs = (answers(open_store(spec.run_root)) for spec in (remote, local))
    assert len(mine) == 6 and mine == theirs
    assert not list(scratch.rglob("*.safetensors")), "the copies are gone"
    assert gate(remote).state == "done"
    assert published(remote.run_root).checkpoint_uri.startswith("gs://")
