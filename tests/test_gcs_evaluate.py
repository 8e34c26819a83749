"""A whole run on gs://, with the evaluation of real models: they are copied to the local disk, and go again."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from gcs.server import fake_gcs, new_bucket  # noqa: F401
from support import SMALL

from relex_core.errors import StorageError
from relex_core.evaluate.staging import on_local_disk
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
    assert not list(scratch.glob("relex-model-*")), "the copies are gone"
    assert gate(remote).state == "done"
    assert published(remote.run_root).checkpoint_uri.startswith("gs://")


def test_what_is_copied(uri: str) -> None:
    bucket = open_store(f"{uri}/base")
    for name in ("pytorch_model.bin", "modeling.py", "chat_template.jinja", "sub/config.json"):
        write_bytes(bucket, name, b"{}")
    with on_local_disk(f"{uri}/base") as folder:
        names = {path.name for path in Path(folder).iterdir()}
        weights = Path(folder, "model.safetensors").read_bytes()
    assert weights == (SMALL / "run/base/model.safetensors").read_bytes()
    assert not Path(folder).exists()
    with on_local_disk(f"{uri}/base", weights=False) as folder:
        assert {path.name for path in Path(folder).iterdir()} == names - {"model.safetensors"}
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not {"pytorch_model.bin", "modeling.py", "sub"} & names
    with on_local_disk("/a/path") as folder:
        assert folder == "/a/path"


def test_a_full_disk_is_a_storage_error(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r", *a, **k: real(Path("/dev/full"), mode, *a, **k))
    with pytest.raises(StorageError, match="No space left"), on_local_disk(f"{uri}/base"):
        pass
