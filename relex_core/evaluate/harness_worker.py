"""The process in which lm-eval's harness runs: `python -m relex_core.evaluate.harness_worker`.

A process of its own, because the harness patches libraries, sets seeds and holds models; none of that reaches ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from relex_core.errors import DataError
from relex_core.evaluate.process import serve


def prepare() -> Callable[[Mapping[str, Any]], Any]:
    """Import the harness."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    def answer(request: Mapping[str, Any]) -> dict[str, Any]:
        manager = TaskManager(include_path=request["include"])
        model = {
            "pretrained": request["weights"],
            "tokenizer": request["tokenizer"],
            "dtype": request["dtype"],
            "trust_remote_code": False,
        }
        try:
            report = simple_evaluate(
                model="hf",
                model_args=model,
                tasks=list(request["tasks"]),
                task_manager=manager,
                device=request["device"],
                batch_size=request["batch_size"],
                log_samples=True,
            )
        except (KeyError, ValueError, OSError) as error:  # unknown task, data set that cannot be loaded, no weights
            raise DataError(
                f"lm-eval refuses: {type(error).__name__}: {error}",
                where=f"{request['weights']}, tasks {', '.join(request['tasks'])}",
                next_step="`lm_eval ls tasks` lists them; --lm-eval-path names a folder with task definitions",
            ) from error
        return {task: _of_task(report, task) for task in report["samples"]}

    return answer


def _of_task(report: Mapping[str, Any], task: str) -> dict[str, Any]:
    scores = report["results"][task]
    metrics = {
        name: {"value": float(value), "standard_error": _number(scores.get(name.replace(",", "_stderr,", 1)))}
        for name, value in scores.items()
        if "," in name and "_stderr," not in name and isinstance(value, int | float)
    }
    return {
        "n": report["n-samples"][task]["effective"],
        "shots": report["n-shot"].get(task, 0),
        "version": str(report["versions"].get(task)),
        "higher_is_better": report["higher_is_better"].get(task, {}),
        "metrics": metrics,
        "samples": [_sample(sample, metrics) for sample in report["samples"][task]],
    }


def _sample(sample: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """One answered document: its scores by the full names of the metrics of its filter."""
    names = [name for name in metrics if name.partition(",")[2] == sample["filter"]]
    scores = {name: _number(sample.get(name.partition(",")[0])) for name in names}
    return {"id": str(sample["doc_id"]), "doc": sample["doc_hash"], "filter": sample["filter"], "scores": scores}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, bool | int | float) else None


if __name__ == "__main__":
    serve(prepare)
