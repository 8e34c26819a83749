"""Evaluation of checkpoints that are no local Hugging Face folder: on gs://, and as FSDP shards."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from fsdp.archive import write_archive
from fsdp.trajectories import actor, saved  # noqa: F401
from gcs.server import fake_gcs, new_bucket  # noqa: F401
from safetensors.torch import load_file
from test_fsdp_hostile import tensor

from relex_core.capture import capture_step
from relex_core.errors import DataError, StorageError
from relex_core.evaluate import scratch
from relex_core.evaluate.generate import Sampling, open_generator
from relex_core.evaluate.scratch import copy_checkpoint, local_checkpoint, local_companions
from relex_core.manifest import load_manifest
from relex_core.observe import observe
from relex_core.publish import published
from relex_core.run import run
from relex_core.spec import EvaluationSpec, RunSpec, resolve_spec
from relex_core.storage import open_store, read_bytes, write_bytes
from relex_core.watch import WatchOptions, watch


@pytest.fixture(autouse=True)
def scratch_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RELEX_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def left(root: Path) -> list[Path]:
    return sorted(root.iterdir()) if root.exists() else []


def upload(folder: Path, uri: str) -> str:
    store = open_store(uri)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            write_bytes(store, path.relative_to(folder).as_posix(), path.read_bytes())
    return uri


def questions(seed: int) -> str:
    pairs = random.Random(seed).sample(range(100_000), 12)
    prompts = [f"{seed}{pair % 100:02d}+{pair // 100:03d}=" for pair in pairs]
    lines = [json.dumps({"prompt": p, "answer": f"{sum(map(int, p[:-1].split('+'))):04d}"}) for p in prompts]
    return "\n".join(lines)


def write_questions(folder: Path) -> str:
    folder.mkdir()
    (folder / "select.jsonl").write_text(questions(1))
    (folder / "confirm.jsonl").write_text(questions(2))
    return str(folder)


def spec_of(base: str, trajectory: str, out: str, tasks: str) -> RunSpec:
    def split(name: str) -> dict[str, Any]:
        return {"task": {"name": "addition", "file": f"{tasks}/{name}.jsonl"}, "max_tokens": 6, "batch_size": 12}

    data = {
        "base": base,
        "trajectory": trajectory,
        "window": {"t_cut": 4},
        "candidates": {"target_steps": [8], "scales": [1.0], "baselines": ["last_observed"]},
        "evaluation": {"device": "cpu", "select": split("select"), "confirm": split("confirm")},
    }
    return resolve_spec(data, where="test", folder=Path.cwd(), out=out)


def decided(base: str, trajectory: str, out: str, tasks: str) -> dict[str, Any]:
    """All stages; the decision without what depends on places and on the clock."""
    assert run(spec_of(base, trajectory, out, tasks)).decision is not None
    return decision_of(out)


def decision_of(out: str) -> dict[str, Any]:
    decision = json.loads(read_bytes(open_store(out), "decision.json"))
    places = ("window_digest", "rules_digest", "candidates")  # they tell where base, window and questions lie
    return {name: value for name, value in decision.items() if name not in (*places, "cost")}


def test_every_place_gives_the_same_decision(
    saved: Path,  # noqa: F811
    tmp_path: Path,
    fake_gcs: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    scratch_root: Path,
) -> None:
    """Base, questions, run directory and trajectory (Hugging Face or shards) on gs://."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs)
    tasks = write_questions(tmp_path / "tasks")
    golden, shards = saved / "golden", saved / "tied-fsdp2"
    expected = decided(str(golden / "base"), str(golden), str(tmp_path / "local"), tasks)
    assert not scratch_root.exists(), "local Hugging Face folders are used where they lie"
    assert len(expected["select"]) == 3

    bucket = f"gs://{new_bucket(fake_gcs)}"
    upload(golden, f"{bucket}/golden")
    upload(shards, f"{bucket}/shards")
    upload(Path(tasks), f"{bucket}/tasks")
    base = f"{bucket}/golden/base"
    assert decided(base, f"{bucket}/golden", f"{bucket}/run-1", f"{bucket}/tasks") == expected
    assert decided(base, f"{bucket}/shards", f"{bucket}/run-2", f"{bucket}/tasks") == expected
    assert left(scratch_root) == []


@pytest.mark.parametrize("kind", ["golden", "tied-fsdp2"])
def test_captured_steps_are_evaluated_like_the_originals_and_kept_as_a_folder(
    saved: Path,  # noqa: F811
    tmp_path: Path,
    scratch_root: Path,
    kind: str,
) -> None:
    base, trajectory = saved / "golden" / "base", shutil.copytree(saved / kind, tmp_path / "trajectory")
    (trajectory / "latest_checkpointed_iteration.txt").write_text("4")
    places = str(base), str(trajectory)
    tasks = write_questions(tmp_path / "tasks")
    spec = spec_of(*places, str(tmp_path / "captured"), tasks)
    watch(spec, "run", lambda spec, _: run(spec), WatchOptions(capture=True, interval=0.1))
    assert load_manifest(spec.run_root).last_observed.uri.endswith("/captured/step-000000000004.relexpatch")
    assert decision_of(spec.run_root) == decided(*places, str(tmp_path / "originals"), tasks)
    assert left(scratch_root) == []

    outcome = published(spec.run_root)
    folder = Path(outcome.checkpoint_uri)
    assert (outcome.decision, folder) == ("keep_observed", tmp_path / "captured" / "last_observed")
    original = actor(saved / "golden", 4) / "huggingface"
    same_weights(folder, original)
    assert json.loads((folder / "config.json").read_text()) == json.loads((original / "config.json").read_text())
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (base / name).read_bytes()
    (folder / "model.safetensors").unlink()
    run(spec)
    same_weights(folder, original)


def same_weights(folder: Path, original: Path) -> None:
    found, expected = (load_file(place / "model.safetensors") for place in (folder, original))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_captured_step_that_is_kept_is_written_to_a_bucket(
    saved: Path,  # noqa: F811
    tmp_path: Path,
    fake_gcs: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs)
    bucket = f"gs://{new_bucket(fake_gcs)}"
    for step in observe(str(saved / "tied-fsdp1")):
        capture_step(f"{bucket}/run", step)
    uri = f"{bucket}/run/captured/step-000000000004.relexpatch"
    copy_checkpoint(uri, str(saved / "golden" / "base"), f"{bucket}/run/last_observed")
    for info in open_store(f"{bucket}/run/last_observed").list():
        (tmp_path / info.name).write_bytes(read_bytes(open_store(f"{bucket}/run/last_observed"), info.name))
    same_weights(tmp_path, actor(saved / "golden", 4) / "huggingface")
    assert {"config.json", "tokenizer.json"} <= {path.name for path in tmp_path.iterdir()}


def test_shards_become_a_folder_that_transformers_reads(saved: Path, scratch_root: Path) -> None:  # noqa: F811
    base = saved / "golden" / "base"
    with local_checkpoint(str(actor(saved / "tied-fsdp1", 4)), str(base)) as folder:
        assert Path(folder).parent == scratch_root
        same_weights(Path(folder), actor(saved / "golden", 4) / "huggingface")
        for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            assert (Path(folder) / name).read_bytes() == (base / name).read_bytes()
    assert left(scratch_root) == []


def test_a_local_folder_is_used_where_it_lies(saved: Path, scratch_root: Path) -> None:  # noqa: F811
    base = str(saved / "golden" / "base")
    with local_checkpoint(base, base) as folder, local_companions(base) as companions:
        assert (folder, companions) == (base, base)
    assert not scratch_root.exists()


def test_an_error_leaves_nothing_behind(saved: Path, scratch_root: Path) -> None:  # noqa: F811
    shards, base = str(actor(saved / "tied-fsdp1", 4)), str(saved / "golden" / "base")
    with pytest.raises(KeyboardInterrupt), local_checkpoint(shards, base):
        assert len(left(scratch_root)) == 1
        raise KeyboardInterrupt
    assert left(scratch_root) == []
    odd = local_checkpoint(str(saved / "odd" / "columns"), base)
    with pytest.raises(DataError, match="not a complete checkpoint: tensor x: it is placed as"), odd:
        pass
    assert left(scratch_root) == []


def test_memory_is_bounded(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    folder = tmp_path / "actor"
    folder.mkdir()
    weights = {"x": torch.arange(10_000_000.0), "y": torch.arange(3.0), "empty": torch.zeros(0, 2)}
    torch.save(weights, folder / "model_world_size_1_rank_0.pt")
    monkeypatch.setattr(scratch, "COPY_BYTES", 2**20 + 4)
    tracemalloc.start()
    with local_checkpoint(str(folder), str(saved / "golden" / "base")) as copy:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        found = load_file(Path(copy) / "model.safetensors")
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert peak < 4 * 2**20


def test_no_room_is_said_before_anything_is_copied(saved: Path, tmp_path: Path, scratch_root: Path) -> None:  # noqa: F811
    """A shard of four terabytes, which is a hole."""
    folder = tmp_path / "actor"
    folder.mkdir()
    members = {"data.pkl": tensor(numel=2**40, shape=(2**40,), stride=(1,)), "data/0": 2**42, "version": b"3\n"}
    write_archive(folder / "model_world_size_1_rank_0.pt", members)
    if shutil.disk_usage(tmp_path).free > 2**42:
        pytest.skip("this disk has room for it")
    copy = local_checkpoint(str(folder), str(saved / "golden" / "base"))
    with pytest.raises(StorageError, match=r"GiB free, the checkpoint takes 4096\.0 GiB") as caught, copy:
        pass
    assert "set RELEX_SCRATCH to a folder on a larger disk" in str(caught.value)
    assert left(scratch_root) == []


def test_a_disk_that_fills_up_is_an_error_of_storage(saved: Path, scratch_root: Path) -> None:  # noqa: F811
    """The kernel refuses the write, here for a limit on the size of files."""
    code = """
        import resource, signal, sys
        from relex_core.errors import StorageError
        from relex_core.evaluate.scratch import local_checkpoint
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            with local_checkpoint(*sys.argv[1:]):
                pass
        except StorageError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(actor(saved / "tied-fsdp1", 4)), str(saved / "base")],
        capture_output=True,
        text=True,
    )
    assert "File too large" in done.stdout, done.stderr
    assert left(scratch_root) == []


def test_an_unusable_scratch_folder_is_named(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RELEX_SCRATCH", str(tmp_path / "file" / "below"))
    copy = local_checkpoint(str(actor(saved / "tied-fsdp1", 4)), str(saved / "golden" / "base"))
    with pytest.raises(StorageError, match="set RELEX_SCRATCH to a folder"), copy:
        pass


def test_copies_of_killed_processes_are_removed_those_of_living_ones_are_not(
    saved: Path,  # noqa: F811
    scratch_root: Path,
) -> None:
    shards, base = str(actor(saved / "tied-fsdp1", 4)), str(saved / "golden" / "base")
    code = "import sys, os, signal; from relex_core.evaluate.scratch import local_checkpoint\n"
    code += "with local_checkpoint(*sys.argv[1:]): os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", code, shards, base], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    [abandoned] = left(scratch_root)
    with local_checkpoint(shards, base) as first:
        assert not abandoned.exists()
        with local_checkpoint(shards, base) as second:
            assert left(scratch_root) == sorted([Path(first), Path(second)])
        assert (Path(first) / "model.safetensors").exists()


VLLM = """
    import json, os
    from types import SimpleNamespace as Space

    class SamplingParams:
        def __init__(self, **fields):
            pass

    class LLM:
        def __init__(self, model, tokenizer, **fields):
            seen = {"model": sorted(os.listdir(model)), "tokenizer": sorted(os.listdir(tokenizer))}
            open(os.environ["VLLM_LOG"], "w").write(json.dumps(seen))

        def generate(self, prompts, parameters, use_tqdm):
            return [Space(outputs=[Space(text="1", token_ids=[1], finish_reason="stop")]) for _ in prompts]
"""


def test_the_vllm_backend_gets_local_folders(
    saved: Path,  # noqa: F811
    tmp_path: Path,
    fake_gcs: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    scratch_root: Path,
) -> None:
    """With a stand-in for the library; the engine itself was not run."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs)
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "vllm.py").write_text(textwrap.dedent(VLLM))
    monkeypatch.syspath_prepend(tmp_path / "library")
    monkeypatch.setenv("VLLM_LOG", str(tmp_path / "log"))
    base = upload(saved / "golden" / "base", f"gs://{new_bucket(fake_gcs)}/base")
    task = {"task": {"name": "a", "file": "a.jsonl"}}
    spec = EvaluationSpec.model_validate({"backend": "vllm", "select": task, "confirm": task})
    with open_generator(spec, str(actor(saved / "tied-fsdp2", 4)), base) as generator:
        assert [c.text for c in generator.generate(["1+2="], Sampling(0.0, 1.0, 4, 0))] == ["1"]
    seen = json.loads((tmp_path / "log").read_text())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(seen["model"])
    assert {"config.json", "tokenizer.json"} <= set(seen["tokenizer"])
    assert "model.safetensors" not in seen["tokenizer"]
    assert left(scratch_root) == []
