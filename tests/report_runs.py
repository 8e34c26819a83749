"""Run directories for the tests of the report: real artifact models, written through the store, no weights.

uri = write_fitted_run(str(tmp_path / "run"), tensor_names(4), range(1, 41))   # spec, window, fit, forecast
write_measured_run(uri)                                       # candidates, summaries; then decide(uri)
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from relex_core import layout
from relex_core.evaluate import evaluation_key
from relex_core.evaluate.candidates import references, written_candidates
from relex_core.evaluate.results import summarise
from relex_core.evaluate.samples import to_jsonl
from relex_core.evaluate.tasks import Question, Task, splits_of
from relex_core.fit.artifact import Component, FitArtifact, Summary, TensorFit
from relex_core.forecast import forecast_from_grams
from relex_core.manifest import BaseRecord, CheckpointRecord, FileRecord, TensorRecord, WindowManifest, load_manifest
from relex_core.spec import RunSpec, resolve_spec
from relex_core.storage import open_store, read_bytes, write_bytes

FAR, NEAR = "relex-step00300-scale1.00", "relex-step00100-scale0.50"
STATUS = {0: "wrong", 1: "correct", None: "timeout"}
CONDITIONS = {"backend": "transformers", "device": "cpu", "dtype": "float32", "versions": {"torch": "2.13.0"}}
MODULES = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    "input_layernorm",
    "post_attention_layernorm",
)


def tensor_names(layers: int) -> list[str]:
    """Those of a Hugging Face decoder."""
    inside = [f"model.layers.{layer}.{module}.weight" for layer in range(layers) for module in MODULES]
    return ["model.embed_tokens.weight", *inside, "model.norm.weight", "lm_head.weight"]


def write_fitted_run(
    run: str,
    names: Sequence[str],
    steps: Sequence[int],
    *,
    frozen: Sequence[str] = (),
    forecast: Sequence[str] | None = None,
    **sections: Any,
) -> str:
    """Write spec, window, fit and forecast of random walks with drift.

    Args:
        run: absolute path or URI.
        frozen: names of tensors that never moved.
        forecast: names of the tensors to forecast from; all by default, which takes long for hundreds.
        sections: of the spec, beside base, trajectory and window.
    """
    spec = write_spec(run, steps[-1], **sections)
    window = write_window(run, spec, names, steps)
    moving = [name for name in names if name not in frozen]
    with threadpool_limits(1):  # as the stages do: thousands of small products
        grams = {name: _gram(seed, steps) * (name in moving) for seed, name in enumerate(names)}
        tensors = {name: _tensor(gram, steps) for name, gram in grams.items()}
    fit = FitArtifact(
        window_digest=window.digest,
        fit_key="sha256:fit",
        steps=tuple(steps),
        t_cut=steps[-1],
        basis="rank",
        rank=1,
        degree=1,
        columns=("direction",),
        tensors=tensors,
        changed_state=(),
        summary=_summary(tensors),
        seconds=1.5,
        bytes_read=10**9,
        peak_rss_bytes=10**9,
        device="cpu",
    )
    write(run, layout.FIT, fit.model_dump_json())
    if forecast is None or forecast:
        with threadpool_limits(1):
            chosen = {name: grams[name] for name in forecast or names}
            found = forecast_from_grams(chosen, steps, targets=spec.candidates.target_steps)
        found = found.model_copy(update={"window_digest": window.digest, "fit_key": fit.fit_key, "key": "sha256:f"})
        write(run, layout.FORECAST, found.model_dump_json())
    return run


def write_spec(run: str, t_cut: int, **sections: Any) -> RunSpec:
    data = {"base": "base", "trajectory": "steps", "run_root": run, "window": {"t_cut": t_cut}, **sections}
    spec = resolve_spec(data, where="test", folder=Path("/models"))
    write(run, layout.SPEC, spec.model_dump_json())
    return spec


def write_window(run: str, spec: RunSpec, names: Sequence[str], steps: Sequence[int]) -> WindowManifest:
    file = FileRecord(name="model.safetensors", size=3_000_000, generation=1)
    window = WindowManifest(
        base=BaseRecord(uri=spec.base, files=(file,)),
        checkpoints=tuple(
            CheckpointRecord(step=step, uri=f"{spec.trajectory}/global_step_{step}", files=(file,)) for step in steps
        ),
        tensors=tuple(TensorRecord(name=name, shape=(8, 8), dtype="BF16") for name in names),
        t_cut=steps[-1],
    ).with_digest()
    write(run, layout.WINDOW, window.model_dump_json())
    return window


def write_candidate(run: str, name: str, step: int | None, scale: float | None = 1.0, method: str = "relex") -> None:
    provenance = {"name": name, "method": method, "target_step": step, "scale": scale, "versions": {"torch": "2.13.0"}}
    write(run, f"{layout.candidate(name)}/{layout.PROVENANCE}", json.dumps(provenance))


def write_evaluation(
    run: str, name: str, split: str, correct: Sequence[int | None], task: str = "addition", finish: str = "stop"
) -> None:
    """One summary and its samples. `correct`: 0 or 1 a question, None for a time-out of the grader."""
    spec = RunSpec.model_validate_json(read_bytes(open_store(run), layout.SPEC))
    window = load_manifest(run)
    known = {c.name: c.digest for c in [*references(window), *written_candidates(run, window.digest)]}
    sampling = next(one for one in splits_of(spec.evaluation, split) if one.task.name == task)
    questions = Task(task, "t.jsonl", (Question("1", "1", "1"),), f"file of {split}")
    key = evaluation_key(known.get(name, "sha256:rl"), window.digest, split, questions, sampling, CONDITIONS)
    rows = [
        {"id": str(i), "sample": 0, "tokens": 5, "finish_reason": finish, "status": STATUS[c]}
        for i, c in enumerate(correct)
    ]
    samples = to_jsonl(rows)
    folder = layout.evaluation(name, task, split)
    write(run, f"{folder}/{layout.SAMPLES}", samples.decode())
    write(run, f"{folder}/{layout.SUMMARY}", summarise(name, split, key, rows, samples).model_dump_json())


def answers(rate: float, n: int = 400, seed: int = 0) -> list[int]:
    """`rate` of the questions correct; the easier ones are the same for every rate, as for related models."""
    difficulty = random.Random(seed)
    return [int(difficulty.random() < rate) for _ in range(n)]


def evaluation_section(tasks: Sequence[str] = ("addition",), guards: Sequence[str] = ()) -> dict[str, Any]:
    """An evaluation section of the spec; the first task selects, all confirm."""

    def split(name: str) -> dict[str, Any]:
        return {"task": {"name": name, "file": "t.jsonl"}}

    return {
        "select": split(tasks[0]),
        "confirm": [split(task) for task in tasks],
        "guards": [{**split(name), "margin": 0.05} for name in guards],
    }


def write_measured_run(run: str, finalist: float = 0.6, n: int = 400, **rates: float) -> str:
    """Candidates and evaluations on top of a fitted run whose spec has the task "addition"; decide comes next."""
    write_candidate(run, FAR, 300)
    write_candidate(run, NEAR, 100, 0.5)
    selected = {"base": 0.1, "last_observed": 0.3, FAR: 0.35, NEAR: 0.6}
    for name, rate in selected.items():
        write_evaluation(run, name, "select", answers(rate, n))
    for name, rate in {"base": 0.1, "last_observed": 0.3, NEAR: finalist, **rates}.items():
        write_evaluation(run, name, "confirm", answers(rate, n, seed=1))
    return run


def write(run: str, key: str, text: str) -> None:
    write_bytes(open_store(run), key, text.encode())


def _gram(seed: int, steps: Sequence[int], dimensions: int = 48) -> np.ndarray:
    random_ = np.random.default_rng(seed)
    gaps = np.diff([0, *steps])[:, None]
    drift = 0.3 * random_.standard_normal(dimensions)
    deltas = np.cumsum(gaps * drift + np.sqrt(gaps) * random_.standard_normal((len(steps), dimensions)), axis=0)
    return 1e-6 * (deltas @ deltas.T)


def _tensor(gram: np.ndarray, steps: Sequence[int]) -> TensorFit:
    values, vectors = np.linalg.eigh(gram)
    sigma = np.sqrt(np.maximum(values[::-1], 0.0))
    moved = bool(sigma[0] > 0)
    coefficients = sigma[0] * vectors[:, -1] * np.sign(vectors[:, -1].sum() or 1.0)
    slope, intercept = np.polyfit(steps, coefficients, 1) if moved else (0.0, 0.0)
    rest = np.square(coefficients - slope * np.asarray(steps) - intercept).sum()
    r_squared = float(1 - rest / np.square(coefficients - coefficients.mean()).sum()) if moved else None
    line = Component(coefficients=tuple(coefficients), polynomial=(intercept, slope), r_squared=r_squared)
    return TensorFit(
        numel=64,
        explained_variance=float(sigma[0] ** 2 / np.square(sigma).sum()) if moved else None,
        singular_values=tuple(sigma),
        coefficients=tuple(coefficients),
        slope=slope,
        intercept=intercept,
        r_squared=r_squared,
        components=(line,) if moved else (),
        moved=moved,
        base_norm=1.0,
    )


def _summary(tensors: Mapping[str, TensorFit]) -> Summary:
    moved = [tensor for tensor in tensors.values() if tensor.moved]
    return Summary(
        tensors=len(tensors),
        moved=len(moved),
        explained_variance=float(np.mean([t.explained_variance for t in moved])) if moved else None,
        explained_variance_median=float(np.median([t.explained_variance for t in moved])) if moved else None,
        r_squared_median=float(np.median([t.r_squared for t in moved])) if moved else None,
        relative_update=0.003 if moved else 0.0,
    )
