"""`relex demo`: train the tiny run, then do with it what a user would do with a large one.

train (base, RL steps 1..t_cut) -> relex.yaml -> run: collect, fit, extrapolate, evaluate, decide -> table
--truth: go on training to the farthest target, and measure what RL itself reached there
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from relex_core.demo.task import DEMO_TASKS, DemoTask
from relex_core.demo.train import DemoRun, train_demo_run
from relex_core.run import RunResult, run
from relex_core.spec import load_spec
from relex_core.tables import run_text, table_text

if TYPE_CHECKING:
    from relex_core.evaluate import EvalResult

SCALES = (1.0, 0.5)
TOKENS = 6
"""Longest completion: four digits, <eos>, and one to spare that shows a wrong length."""

SAMPLING: dict[str, dict[str, Any]] = {"addition": {"samples": 4, "temperature": 1.0}}
"""RL rewards sampled answers. In `addition` it sharpens them and hardly changes the likeliest one, so greedy decoding
hides its gain (docs/evaluation.md). In `format` greedy decoding shows it whole, at a quarter of the cost."""


@dataclass(frozen=True)
class DemoResult:
    """What `relex demo` shows."""

    out: Path
    result: RunResult
    truth: Sequence[EvalResult]
    """Accuracy of RL's own later checkpoints on the confirmation questions; empty without --truth."""

    def as_dict(self) -> dict[str, Any]:
        assert self.result.decision is not None
        return {
            "run": self.result.run,
            "decision": self.result.decision.model_dump(mode="json"),
            "truth": [result.model_dump(mode="json") for result in self.truth],
        }

    def text(self) -> str:
        text = run_text(self.result)
        if self.truth:
            rows = [(r.candidate, f"{r.mean:.3f}", f"[{r.interval[0]:.3f}, {r.interval[1]:.3f}]") for r in self.truth]
            text += "\n\n" + table_text(("RL itself", "accuracy", "95 % interval"), rows)
        return f"{text}\n\nSpec: {self.out / 'relex.yaml'}; everything else: {self.result.run}"


def run_demo(out: Path, name: str, *, seed: int = 0, truth: bool = False) -> DemoResult:
    """Train and run everything in `out`; finished work of an earlier call is kept.

    Args:
        out: absolute path of the demo's folder.
        name: one of DEMO_TASKS.
        truth: also train to the farthest target step and measure RL's own checkpoints there.

    Raises:
        SpecError: the folder holds the demo of another task or seed.
    """
    task = dataclasses.replace(DEMO_TASKS[name], seed=seed)
    trained = train_demo_run(out, task)
    spec = out / "relex.yaml"
    spec.write_text(yaml.safe_dump(demo_spec(trained, out), sort_keys=False))
    result = run(load_spec(spec))
    return DemoResult(out, result, _truth(out, task, result.run) if truth else ())


def demo_spec(trained: DemoRun, out: Path) -> dict[str, Any]:
    """The spec a user would write for this run."""
    task = trained.task

    def split(questions: Path) -> dict[str, Any]:
        sampling = SAMPLING.get(task.name, {})
        return {"task": {"name": task.name, "file": _relative(questions, out)}, "max_tokens": TOKENS, **sampling}

    return {
        "base": _relative(trained.base, out),
        "trajectory": _relative(trained.trajectory, out),
        "run_root": "run",
        "window": {"t_cut": task.t_cut},
        "fit": {"trailing_averages": [task.t_cut // 4]},
        "candidates": {
            "target_steps": list(task.target_steps),
            "scales": list(SCALES),
            "baselines": ["last_observed", "trailing_average", "weight_extrapolation"],
            "keep": "winner",
        },
        "evaluation": {"select": split(trained.select), "confirm": split(trained.confirm)},
    }


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _truth(out: Path, task: DemoTask, run_root: str) -> list[EvalResult]:
    """What RL itself reached at the target steps: trained on, then measured on the confirmation questions."""
    from relex_core.evaluate import measure_checkpoints

    later = [step for step in task.target_steps if step > task.t_cut]
    trained = train_demo_run(out, task, to_step=max(later))
    folders = {
        f"rl-step{step:05d}": str(trained.trajectory / f"global_step_{step}" / "actor" / "huggingface")
        for step in later
    }
    return measure_checkpoints(run_root, folders)
