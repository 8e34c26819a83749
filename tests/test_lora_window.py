"""LoRA windows: what is shown, refused, resumed, captured and read from a bucket; adapters are PEFT's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gcs.server import fake_gcs, new_bucket  # noqa: F401
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_runs import VOCAB, LoraRun, save_step, tiny_model, train
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_kill import kill_when

from relex_core.capture import capture_step
from relex_core.checkpoints.adapter_config import AdapterConfig
from relex_core.checkpoints.checkpoint import open_checkpoint
from relex_core.checkpoints.layouts import find_steps
from relex_core.collect import collect, find_window
from relex_core.dry_run import plan_run
from relex_core.errors import DataError, RelexError, SpecError, WindowError
from relex_core.extrapolate import extrapolate
from relex_core.fit import fit, fit_shard, merge
from relex_core.inspect import inspect_trajectory
from relex_core.observe import observe
from relex_core.probe import probe
from relex_core.spec import resolve_spec
from relex_core.storage import ObjectInfo, open_store, read_bytes, write_bytes
from relex_core.tables import trajectory_text

STEPS = (1, 2, 3, 4)
ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> LoraRun:
    targets = ["q_proj", "down_proj", "embed_tokens"]
    return train(tmp_path_factory.mktemp("lora"), STEPS, merge=False, r=4, target_modules=targets)


@pytest.fixture
def run(trained: LoraRun, tmp_path: Path) -> LoraRun:
    """A copy that a test may spoil."""
    shutil.copytree(trained.root, tmp_path, dirs_exist_ok=True)
    return LoraRun(tmp_path, trained.steps)


def change_config(run: LoraRun, step: int, **fields: Any) -> None:
    path = run.adapter(step) / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_tensors(run: LoraRun, step: int, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = run.adapter(step) / ADAPTER
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})


def truncate(run: LoraRun, step: int) -> None:
    path = run.adapter(step) / ADAPTER
    path.write_bytes(path.read_bytes()[:-10])


def with_full_weights(run: LoraRun, step: int) -> None:
    for name in (ADAPTER, CONFIG):
        (run.adapter(step) / name).unlink()
    shutil.copy(run.base / "model.safetensors", run.adapter(step))


def renamed(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def renamed_modules(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: [renamed(name, name.replace(old, new))(tensors) for name in list(tensors) if old in name]


def retrained(run: LoraRun, step: int, **lora: Any) -> None:
    """Another real adapter in a step's place."""
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **lora})
    shutil.rmtree(run.adapter(step))
    save_step(get_peft_model(tiny_model(), config), run.adapter(step), step)


def window_error(run: LoraRun) -> str:
    with pytest.raises(WindowError) as caught:
        find_window(run.spec("adapters"))
    assert caught.value.exit_code == 4
    return str(caught.value)


def test_inspect_shows_adapters(run: LoraRun) -> None:
    report = inspect_trajectory(str(run.root / "adapters"))
    assert report.last_complete == 4
    step = report.steps[0]
    assert step.adapter is not None and step.complete
    assert (step.adapter.ranks, step.adapter.alpha, step.adapter.scalings, step.adapter.targets) == ((4,), 8, (2,), 5)
    assert (step.adapter.whole, step.adapter.base, step.dtypes) == (0, None, ("F32",))
    assert "HF Trainer / TRL: LoRA, rank 4, alpha 8, 5 weights" in trajectory_text(report)
    change_config(run, 1, base_model_name_or_path="org/tiny-llama")
    assert "name as their base: org/tiny-llama" in trajectory_text(inspect_trajectory(report.trajectory))


def test_the_manifest_names_what_the_run_trains(run: LoraRun) -> None:
    manifest = find_window(run.spec("adapters"))
    assert manifest.adapters
    layers = [f"model.layers.{i}.{m}.weight" for i in (0, 1) for m in ("mlp.down_proj", "self_attn.q_proj")]
    assert sorted(t.name for t in manifest.tensors) == sorted(["model.embed_tokens.weight", *layers])
    assert {file.name for file in manifest.checkpoints[0].files} == {ADAPTER, CONFIG}


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda run: (run.adapter(3) / CONFIG).unlink(), "step 3: adapter_config.json is missing beside adapter_model"),
        (lambda run: (run.adapter(3) / CONFIG).write_text('{"r": 4, '), "step 3: adapter_config.json is not JSON: "),
        (lambda run: change_config(run, 3, r="many"), "step 3: adapter_config.json is no config of an adapter: r: "),
        (lambda run: truncate(run, 3), "step 3: adapter_model.safetensors is cut off"),
        (lambda run: (run.adapter(3) / ADAPTER).unlink(), "step 3: no weights: neither"),
        (
            lambda run: change_tensors(run, 3, lambda t: t.pop(f"{Q_PROJ}.lora_B.weight")),
            "step 3: model.layers.0.self_attn.q_proj has a factor A, but no B",
        ),
        (
            lambda run: change_tensors(run, 3, lambda t: t.update({f"{Q_PROJ}.lora_C.weight": torch.ones(1)})),
            f"step 3: tensor {Q_PROJ}.lora_C.weight of adapter_model.safetensors is not understood",
        ),
        (
            lambda run: change_tensors(run, 3, renamed(f"{Q_PROJ}.lora_A.weight", "q_proj.lora_A.weight")),
            "step 3: tensor q_proj.lora_A.weight (F32) of adapter_model.safetensors is not understood",
        ),
        (
            lambda run: change_tensors(run, 3, lambda t: t.update(counts=torch.ones(2, dtype=torch.int64))),
            "step 3: tensor counts (I64) of adapter_model.safetensors is not understood",
        ),
        (
            lambda run: change_tensors(run, 3, lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.ones(4, 31)})),
            "step 3: the update of model.layers.0.self_attn.q_proj.weight has shape [32, 31], the base [32, 32]",
        ),
        (
            lambda run: change_tensors(run, 3, lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.ones(4, 32, 1)})),
            "step 3: model.layers.0.self_attn.q_proj has factors A [4, 32, 1] and B [32, 4]: only matrices",
        ),
        (
            lambda run: change_tensors(
                run, 3, lambda t: t.update({n: v.bfloat16() for n, v in t.items() if "q_proj" in n})
            ),
            f"step 3: tensor {Q_PROJ}.lora_A.weight is BF16, at the first step F32",
        ),
        (
            lambda run: change_tensors(run, 3, lambda t: [t.pop(n) for n in list(t) if "layers.0.self" in n]),
            "step 3: tensor model.layers.0.self_attn.q_proj.weight is missing: the first step trains it",
        ),
        (
            lambda run: change_tensors(
                run, 3, lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(VOCAB, 32)})
            ),
            "step 3: tensor lm_head.weight is extra: the first step does not train it",
        ),
        (
            lambda run: [change_tensors(run, step, renamed_modules("q_proj", "r_proj")) for step in STEPS],
            "step 1: tensor model.layers.0.self_attn.r_proj.weight is trained, but the base has none of that name",
        ),
        (lambda run: with_full_weights(run, 3), "step 3: it holds full weights, the first step a LoRA adapter"),
        (lambda run: change_config(run, 3, r=8), "step 3: model.layers.0.mlp.down_proj has rank 4, adapter_config"),
        (lambda run: change_config(run, 3, use_dora=True), "step 3: adapter_config.json sets use_dora"),
        (
            lambda run: change_config(run, 3, use_new=1),
            "step 3: adapter_config.json sets use_new, which relex does not",
        ),
        (
            lambda run: change_config(run, 3, rank_pattern={"(": 4}),
            "step 3: adapter_config.json has a pattern that is no",
        ),
        (lambda run: change_config(run, 3, peft_type="VERA"), "step 3: adapter_config.json says peft_type VERA"),
        (
            lambda run: change_config(run, 3, fan_in_fan_out=True),
            "down_proj.weight has shape [56, 32], the base [32, 56]",
        ),
        (
            lambda run: retrained(run, 3, init_lora_weights="pissa"),
            "step 3: adapter_config.json has init_lora_weights 'p",
        ),
        (
            lambda run: retrained(run, 3, init_lora_weights="olora"),
            "step 3: adapter_config.json has init_lora_weights 'o",
        ),
        (
            lambda run: retrained(run, 3, init_lora_weights=False),
            "step 3: adapter_config.json has init_lora_weights False",
        ),
        (lambda run: retrained(run, 3, use_dora=True), "step 3: adapter_config.json sets use_dora"),
        (
            lambda run: retrained(run, 3, trainable_token_indices=[1]),
            "step 3: adapter_config.json sets trainable_token",
        ),
    ],
)
def test_what_is_no_adapter_of_this_run_is_refused_by_name(
    run: LoraRun, spoil: Callable[[LoraRun], object], problem: str
) -> None:
    spoil(run)
    message = window_error(run)
    assert problem in message
    assert ("merge_and_unload" in message) == ("incomplete checkpoints" not in message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.sampled_from(["LORA", "(", "q_proj", "gaussian"]),
    lambda values: st.lists(values, max_size=2) | st.dictionaries(st.sampled_from(["(", "q_proj", ".*"]), values),
    max_leaves=4,
)
FIELDS = ["peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "use_dora"]


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(st.sampled_from([*FIELDS, "init_lora_weights", "more"]), JSON) | JSON, st.booleans())
def test_no_config_ends_a_look(run: LoraRun, changes: object, whole: bool) -> None:
    """Whatever stands there is a problem of that step, or an adapter; never a crash."""
    path = run.adapter(1) / CONFIG
    known = json.loads((run.adapter(2) / CONFIG).read_text())
    path.write_text(json.dumps({**known, **changes} if isinstance(changes, dict) and not whole else changes))
    store = open_store(str(run.adapter(1)))
    found = open_checkpoint(store, list(store.list()))
    assert found.problems or (found.adapter is not None and len(found.adapter.targets) == 5)


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
)
def test_the_embedding_of_a_base_that_ties_it_is_refused(tmp_path: Path, lora: dict[str, Any]) -> None:
    """PEFT leaves the other one of the two as it was, which no update of the one stored weight can say."""
    run = train(tmp_path, (1, 2), merge=False, model={"tie_word_embeddings": True}, **lora)
    assert "model.embed_tokens.weight is trained, but the base ties it" in window_error(run)


def test_ranks_may_differ_where_the_config_says_so(run: LoraRun) -> None:
    """Two more terms at one step, with the config and the scaling to go with them: the fit is the same."""
    spec = run.spec("adapters", out="before")
    collect(spec)
    before = fit(spec.run_root)

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "q_proj" in name]:
            axis = 0 if "lora_A" in name else 1
            halves = tensors[name] if axis == 0 else tensors[name] / 2
            tensors[name] = torch.cat([halves, halves], axis)

    change_tensors(run, 3, widen)
    change_config(run, 3, rank_pattern={"q_proj": 8}, alpha_pattern={"q_proj": 16})
    spec = run.spec("adapters", out="after")
    collect(spec)
    after = fit(spec.run_root)
    for name, tensor in before.tensors.items():
        assert after.tensors[name].coefficients == pytest.approx(tensor.coefficients, rel=1e-6)


def test_scaling_and_rank_are_those_of_peft() -> None:
    fields = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "down_proj"]}
    patterns = {
        "rank_pattern": {"^model.layers.0.self_attn.q_proj": 2, ".*down_proj": 3},
        "alpha_pattern": {"layers.1.*": 5},
    }
    for rslora in (False, True):
        config = LoraConfig(**fields, **patterns, use_rslora=rslora)
        model = get_peft_model(tiny_model(), config)
        mine = AdapterConfig.model_validate(json.loads(json.dumps(config.to_dict(), default=list)))
        found = 0
        for name, module in model.base_model.model.named_modules():
            if hasattr(module, "lora_A"):
                found += 1
                assert (mine.rank(name), mine.scaling(name)) == (module.r["default"], module.scaling["default"]), name
        assert found == 6


def fitted(run: LoraRun, **sections: Any) -> str:
    spec = run.spec("adapters", **sections)
    collect(spec)
    fit(spec.run_root)
    return spec.run_root


def test_identical_steps_are_refused(run: LoraRun) -> None:
    shutil.copy(run.adapter(3) / ADAPTER, run.adapter(4) / ADAPTER)
    with pytest.raises(WindowError, match="steps 3 and 4 hold identical weights"):
        fitted(run)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_factors_are_refused_by_step_and_tensor(run: LoraRun, value: float) -> None:
    change_tensors(run, 3, lambda t: t[f"{Q_PROJ}.lora_A.weight"].view(-1)[5].fill_(value))
    with pytest.raises(DataError, match=r"step 3 holds NaN or Inf in tensor model\.layers\.0\.self_attn\.q_proj"):
        fitted(run)


def test_a_base_that_is_not_finite_is_refused_by_its_uri(run: LoraRun) -> None:
    path, name = run.base / "model.safetensors", "model.layers.0.self_attn.q_proj.weight"
    tensors = load_file(path)
    tensors[name].view(-1)[5] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(DataError, match=f"the base holds NaN or Inf in tensor {name}") as caught:
        fitted(run)
    assert caught.value.where == str(run.base)


def test_a_run_that_started_elsewhere_is_refused(run: LoraRun) -> None:
    """Training went on from another adapter: the first step is far from the base, and the run moves little."""
    for step in STEPS:
        change_tensors(run, step, lambda t: [v.add_(1.0) for name, v in t.items() if "lora_B" in name])
    with pytest.raises(WindowError, match="not the base that the run started from"):
        fitted(run)


def test_a_frozen_weight_that_is_not_the_bases_is_refused(run: LoraRun) -> None:
    own = "base_model.model.model.embed_tokens.base_layer.weight"
    change_tensors(run, 4, lambda t: t[own].view(-1)[7].add_(1e-3))
    with pytest.raises(DataError, match=r"step 4: the frozen weight model\.embed_tokens\.weight is not the base's"):
        fitted(run)


def test_a_run_that_has_not_moved(run: LoraRun) -> None:
    """B = 0 at every step: the base itself, and every candidate is the base."""
    for step in STEPS:
        change_tensors(run, step, lambda t: [v.zero_() for name, v in t.items() if "_B" in name])
    where = fitted(run)
    [written] = extrapolate(where, target_steps=[8])
    assert written.truncation_error == 0.0
    tensors = load_file(Path(where, "candidates", written.name, ADAPTER))
    assert not any(tensor.any() for name, tensor in tensors.items() if "_B" in name)


def test_too_little_memory_is_said_before_the_work(run: LoraRun) -> None:
    with pytest.raises(SpecError, match="too small for 4 adapters"):
        fitted(run, fit={"memory_budget": "10MiB"})
    with pytest.raises(SpecError, match="degree=4 needs 5 checkpoints"):
        fitted(run, fit={"temporal": "polynomial", "degree": 4, "memory_budget": "4GiB"}, out="other")


def files_of(run: str) -> dict[str, bytes]:
    """All files but the ones that hold times."""
    paths = [p for p in Path(run).rglob("*") if p.is_file() and p.name not in ("events.jsonl", "fit.json", "spec.json")]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in paths}


def test_shards_and_interrupted_fits_give_the_same_bytes(run: LoraRun) -> None:
    sections = {"fit": {"group_size": 1, "trailing_averages": [2]}, "candidates": {"target_steps": [8]}}
    whole = fitted(run, out="whole", **sections)
    parts = run.spec("adapters", out="parts", **sections)
    collect(parts)
    fit_shard(parts.run_root, 3, 3)
    assert len(list(Path(parts.run_root, "fit").glob("gram-*"))) in (1, 2)
    fit_shard(parts.run_root, 1, 3)
    first = {path: path.stat().st_mtime_ns for path in Path(parts.run_root, "fit").iterdir()}
    with pytest.raises(RelexError, match="not fitted yet"):
        merge(parts.run_root)
    again = fit(parts.run_root)  # goes on with what is left
    kept = [path for path in first if path.name.startswith("direction")]
    assert len(kept) > 1 and all(path.stat().st_mtime_ns == first[path] for path in kept)
    assert again.model_dump(exclude={"seconds", "bytes_read", "peak_rss_bytes"}) == fit(whole).model_dump(
        exclude={"seconds", "bytes_read", "peak_rss_bytes"}
    )
    assert files_of(whole) == files_of(parts.run_root)
    for where in (whole, parts.run_root):
        extrapolate(where)
    marker = next(Path(parts.run_root).glob("candidates/*/relex.json"))
    marker.unlink()
    (marker.parent / ADAPTER).write_bytes(b"half")
    extrapolate(parts.run_root)
    assert files_of(whole) == files_of(parts.run_root)


def test_a_finished_candidate_is_left_alone_and_another_rank_is_written_again(run: LoraRun) -> None:
    where = fitted(run, candidates={"target_steps": [8]})
    [first] = extrapolate(where)
    path = Path(where, "candidates", first.name, ADAPTER)
    before = path.stat().st_mtime_ns
    assert extrapolate(where) == [first] and path.stat().st_mtime_ns == before
    collect(run.spec("adapters", candidates={"target_steps": [8], "adapter_rank": 2}))
    [second] = extrapolate(where)
    assert second.key != first.key and set(second.adapter_ranks.values()) == {2}
    assert {t.shape[0] for n, t in load_file(path).items() if "_A" in n} == {2}


def test_spatial_ranks_of_adapters(run: LoraRun) -> None:
    """A direction cut to two singular vectors is written without loss; there is no noise edge to choose by."""
    where = fitted(run, candidates={"target_steps": [8], "spatial_ranks": [2]})
    [written] = extrapolate(where)
    assert written.truncation_error is not None and written.truncation_error < 1e-6
    tensors = load_file(Path(where, "candidates", written.name, ADAPTER))
    a, b = (tensors[f"{Q_PROJ}.lora_{side}.weight"].double() for side in "AB")
    assert np.linalg.matrix_rank((b @ a).numpy(), tol=1e-6) == 2
    collect(run.spec("adapters", candidates={"target_steps": [8], "spatial_ranks": ["auto"]}))
    with pytest.raises(SpecError, match="auto needs full weights"):
        extrapolate(where)


def test_the_plan(run: LoraRun) -> None:
    plan = plan_run(run.spec("adapters", candidates={"target_steps": [8, 16]}))
    sizes = [path.stat().st_size for step in STEPS for path in run.adapter(step).iterdir() if "adapter" in path.name]
    weights = VOCAB * 32 + 2 * (32 * 32 + 32 * 56)
    assert (plan.tensors, plan.weights, plan.window_bytes) == (5, weights, sum(sizes))
    assert plan.fit_reads == plan.window_bytes + 4 * weights
    where = fitted(run, candidates={"target_steps": [8, 16]})
    stored = sum(path.stat().st_size for path in Path(where, "fit").glob("direction*"))
    assert stored <= plan.fit_writes + 4096  # and a header
    written = [
        path.stat().st_size for c in extrapolate(where) for path in Path(where, "candidates", c.name).glob("*.s*")
    ]
    assert plan.candidate_writes <= sum(written) <= plan.candidate_writes + 2 * 4096


def test_the_probe_refuses_adapters(run: LoraRun) -> None:
    with pytest.raises(SpecError, match="these steps are LoRA adapters"):
        probe(str(run.root / "adapters"), str(run.base))


def test_captured_adapters_are_read_like_others(run: LoraRun) -> None:
    """The trainer deletes its steps; what was captured gives the same fit."""
    plain = fitted(run, out="plain")
    spec = run.spec("adapters", out="captured")
    for step in observe(str(run.root / "adapters"))[:3]:
        capture_step(spec.run_root, step)
        shutil.rmtree(run.adapter(step.folder.step))
    manifest = collect(spec)
    assert manifest.adapters and manifest.steps == STEPS
    fit(spec.run_root)
    extrapolate(spec.run_root, target_steps=[8])
    directions = [
        Path(where, "fit", "direction.factors-00001-of-00001.safetensors") for where in (plain, spec.run_root)
    ]
    mine, other = (load_file(path) for path in directions)
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_run_in_a_bucket_equals_a_local_run(run: LoraRun, fake_gcs: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs)
    uri = f"gs://{new_bucket(fake_gcs)}/rl"
    bucket = open_store(uri)
    for path in sorted(run.root.rglob("*")):
        if path.is_file():
            write_bytes(bucket, path.relative_to(run.root).as_posix(), path.read_bytes())
    data = {"base": f"{uri}/base", "trajectory": f"{uri}/adapters", "window": {"t_cut": 4, "settle_seconds": 0}}
    remote = resolve_spec(
        {**data, "candidates": {"target_steps": [8]}}, where="test", folder=run.root, out=f"{uri}/relex"
    )
    local = run.spec("adapters", candidates={"target_steps": [8]})
    for spec in (remote, local):
        collect(spec)
        fit(spec.run_root)
        extrapolate(spec.run_root)
    names = [name for name in files_of(local.run_root) if name.endswith((".safetensors", CONFIG))]
    assert len(names) == 4
    for name in names:
        mine, theirs = read_bytes(open_store(remote.run_root), name), files_of(local.run_root)[name]
        header = 8 + int.from_bytes(mine[:8], "little"), 8 + int.from_bytes(theirs[:8], "little")
        start = (0, 0) if name.endswith(CONFIG) else header  # headers name the window, which knows where files lie
        assert mine[start[0] :] == theirs[start[1] :], name


def test_verl_leaves_adapters_beside_shards() -> None:
    names = [
        "global_step_5/actor/model_world_size_2_rank_0.pt",
        "global_step_5/actor/huggingface/config.json",
        "global_step_5/actor/lora_adapter/adapter_config.json",
        "global_step_5/actor/lora_adapter/adapter_model.safetensors",
        "global_step_6/actor/model_world_size_2_rank_0.pt",
    ]
    found = find_steps([ObjectInfo(name, 10, 1, None) for name in names])
    assert [(step.weights, step.layout.name) for step in found.steps] == [
        ("global_step_5/actor/lora_adapter", "verl, LoRA adapters"),
        ("global_step_6/actor", "verl, FSDP shards"),
    ]


def test_a_killed_fit_goes_on(run: LoraRun) -> None:
    """A real process, really killed: the second run leaves the bytes of an uninterrupted one."""
    sections = {"fit": {"group_size": 1, "trailing_averages": [2, 3]}}
    whole, killed = fitted(run, out="whole", **sections), run.spec("adapters", out="killed", **sections).run_root
    collect(run.spec("adapters", out="killed", **sections))
    kill_when(["fit", killed], lambda: any(Path(killed, "fit").glob("gram-*")))
    assert not Path(killed, "fit", "fit.json").exists()
    fit(killed)
    assert files_of(killed) == files_of(whole)


def test_directions_of_bfloat16(run: LoraRun) -> None:
    """Stored in half the bytes; a candidate of them differs by their rounding, and loses no more as an adapter."""
    full = fitted(run, out="full", candidates={"target_steps": [8]})
    half = fitted(run, out="half", fit={"direction_dtype": "bfloat16"}, candidates={"target_steps": [8]})
    [one], [other] = extrapolate(full), extrapolate(half)
    assert other.truncation_error == pytest.approx(one.truncation_error, abs=2e-3)
    sizes = [sum(path.stat().st_size for path in Path(where, "fit").glob("direction*")) for where in (half, full)]
    assert sizes[0] < 0.6 * sizes[1]
    name = f"{Q_PROJ}.lora_{{}}.weight"
    products = []
    for where in (full, half):
        tensors = load_file(Path(where, "candidates", one.name, ADAPTER))
        products.append((tensors[name.format("B")] @ tensors[name.format("A")]).double())
    distance = float((products[0] - products[1]).norm() / products[0].norm())
    assert 1e-4 < distance < 1e-2
