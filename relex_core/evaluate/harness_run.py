"""lm-eval's harness as an optional extra: its own tasks and prompts, for regression suites and known benchmarks.

    results = run_harness("run/", ["arc_easy"], candidates=["relex-step00500-scale1.00"])

    candidate + lm-eval task -> the harness, in a process of its own -> eval/<candidate>/<task>-lm-eval/

A call that is finished under the same key is not run again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from relex_core import layout
from relex_core.errors import DataError, SpecError
from relex_core.evaluate.candidates import Candidate, choose, references, written_candidates
from relex_core.evaluate.generate import conditions
from relex_core.evaluate.harness import SPLIT, HarnessResult, harness_folder, read_harness_results
from relex_core.evaluate.process import Child, ChildDied
from relex_core.evaluate.scratch import local_checkpoint
from relex_core.events import record_event
from relex_core.extras import install
from relex_core.manifest import load_manifest
from relex_core.progress import progress
from relex_core.spec import EvaluationSpec, load_spec_of
from relex_core.storage import Store, absolute_uri, open_store, write_bytes

TASK_SECONDS = 24 * 3600.0
BATCH_SIZE = 16


def run_harness(
    run: str, tasks: Sequence[str], *, candidates: Sequence[str] = (), include: str | None = None
) -> list[HarnessResult]:
    """Run tasks of the harness on candidates, the base and the last observed checkpoint.

    Args:
        run: the run directory (path or URI); the models must lie on the local disk.
        tasks: lm-eval's names; a group stands for its tasks.
        candidates: names; empty for all that are written.
        include: a folder with task definitions (YAML) besides lm-eval's own.

    Raises:
        SpecError: lm-eval is not installed, or there is no candidate of a name.
        DataError: the harness refuses a task or a model.
    """
    run = absolute_uri(run, Path.cwd())
    manifest, spec = load_manifest(run), load_spec_of(run)
    known = [*references(manifest), *written_candidates(run, manifest.digest)]
    chosen = choose(known, candidates) if candidates else known
    chosen = [*known[:2], *(candidate for candidate in chosen if candidate not in known[:2])]
    key = _conditions(spec.evaluation, manifest.digest, tasks, include)
    store, results = open_store(run), []
    with progress("lm-eval", len(chosen)) as advance:
        for candidate in chosen:
            results += _measure(store, candidate, manifest.base.uri, tasks, {**key, "candidate": candidate.digest})
            advance(1, candidate.name)
    return results


def _measure(
    store: Store, candidate: Candidate, base: str, tasks: Sequence[str], key: dict[str, Any]
) -> list[HarnessResult]:
    finished = [result for result in read_harness_results(store, candidate.name) if result.key == key]
    if finished and {result.task for result in finished} == set(finished[0].together):
        return finished
    for uri in (candidate.uri, base):
        if uri.startswith("gs://"):
            raise SpecError("lm-eval reads models from the local disk", where=uri, expected="a path")
    candidate.refuse_if_changed()
    started = time.monotonic()
    child = Child("relex_core.evaluate.harness_worker")
    request = {
        "tokenizer": base,
        "tasks": list(tasks),
        "include": key["include"],
        "batch_size": BATCH_SIZE,
        **{name: key[name] for name in ("device", "dtype")},
    }
    try:
        with local_checkpoint(candidate.uri, base) as folder:
            found = child.ask({**request, "weights": folder}, TASK_SECONDS)
    except ChildDied as error:
        raise DataError(f"lm-eval ended: {error}", where=candidate.uri) from None
    finally:
        child.close()
    results = [
        _write(store, candidate.name, task, {**report, "together": sorted(found)}, key)
        for task, report in found.items()
    ]
    seconds = round(time.monotonic() - started, 3)
    record_event(store.uri, "evaluated", candidate=candidate.name, task=", ".join(tasks), split=SPLIT, seconds=seconds)
    return results


def _write(store: Store, candidate: str, task: str, report: dict[str, Any], key: dict[str, Any]) -> HarnessResult:
    samples = "".join(json.dumps(row) + "\n" for row in report.pop("samples")).encode()
    result = HarnessResult(
        candidate=candidate,
        task=task,
        harness=key["versions"]["lm_eval"],
        samples_sha256=hashlib.sha256(samples).hexdigest(),
        key=key,
        **report,
    )
    folder = harness_folder(candidate, task)
    store.delete(f"{folder}/{layout.SUMMARY}")  # before its samples go
    write_bytes(store, f"{folder}/{layout.SAMPLES}", samples)
    write_bytes(store, f"{folder}/{layout.SUMMARY}", result.model_dump_json(indent=1).encode())
    return result


def _conditions(spec: EvaluationSpec | None, window: str, tasks: Sequence[str], include: str | None) -> dict[str, Any]:
    """What scores depend on besides the candidate."""
    try:
        harness = version("lm_eval")
    except PackageNotFoundError:
        raise SpecError("lm-eval is not installed", next_step=install("lmeval")) from None
    task = {"task": {"name": "lm-eval", "file": "none"}}
    plain = EvaluationSpec.model_validate({"select": task, "confirm": task, "device": spec.device if spec else "auto"})
    common = conditions(plain)
    folder = None if include is None else str(Path(include).absolute())
    files = sorted(path for path in Path(folder).rglob("*.yaml")) if folder else []
    definitions = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {
        "window": window,
        "tasks": sorted(tasks),
        "include": folder,
        "definitions": definitions,
        "device": common["device"],
        "dtype": common["dtype"],
        "batch_size": BATCH_SIZE,
        "versions": {**common["versions"], "lm_eval": harness},  # type: ignore[dict-item]
    }
