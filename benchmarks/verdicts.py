"""How often is the verdict right? Real tiny RL runs, decided as usual, then held against 5000 fresh questions.

    python benchmarks/verdicts.py OUT                   # prints a Markdown table; finished runs are kept

For each run: the decision on 1000 selection and 2000 confirmation questions, then the true accuracy of every candidate
on questions that chose nothing, and how much of the best possible gain the decision took.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import yaml

from relex_core.collect import collect
from relex_core.demo import DEMO_TASKS, DemoTask, train_demo_run
from relex_core.demo.pipeline import demo_spec
from relex_core.evaluate import measure_checkpoints
from relex_core.run import run
from relex_core.spec import load_spec

CONFIRM, TRUTH = 2000, 5000

RUNS = (
    ("format", 1, 1.0),
    ("format", 2, 0.5),
    ("format", 3, 2.0),
    ("addition", 0, 1.0),
    ("addition", 1, 1.0),
    ("addition", 3, 2.0),
)
"""Task, seed, factor on the GRPO learning rate."""

HEADINGS = (
    "task",
    "seed",
    "lr",
    "base",
    "observed",
    "verdict",
    "shipped (truth)",
    "best candidate (truth)",
    "of best gain",
    "right",
)


def verdict(out: Path, task: DemoTask) -> list[str]:
    """Train, decide and measure one run; one row of the table."""
    trained = train_demo_run(out, task)
    lines = trained.confirm.read_text().splitlines(keepends=True)
    (out / "tasks" / "confirm-2000.jsonl").write_text("".join(lines[:CONFIRM]))
    (out / "tasks" / "truth.jsonl").write_text("".join(lines[CONFIRM:]))
    data = demo_spec(trained, out)
    data["candidates"]["keep"] = "all"
    decision = run(load_spec(_spec(out, data, "confirm-2000", "run"))).decision
    assert decision is not None

    collect(load_spec(_spec(out, data, "truth", "truth")))
    last = trained.trajectory / f"global_step_{task.t_cut}" / "actor" / "huggingface"
    folders = {"observed": str(last), "start": str(trained.base)}
    folders |= {path.name: str(path) for path in sorted((out / "run" / "candidates").iterdir())}
    truth = {result.candidate: result.mean for result in measure_checkpoints(str(out / "truth"), folders)}
    observed, base = truth.pop("observed"), truth.pop("start")
    best = max(truth, key=lambda name: truth[name])
    shipped = observed if decision.decision == "keep_observed" else truth[decision.candidate]
    possible = max(truth[best] - observed, 0.0)
    share = f"{(shipped - observed) / possible:.0%}" if possible else "nothing to gain"
    return [
        *(task.name, str(task.seed), f"{task.grpo_lr:g}", f"{base:.3f}", f"{observed:.3f}"),
        f"{decision.decision}: {decision.candidate}",
        f"{shipped:.3f}",
        f"{truth[best]:.3f} {best}",
        share,
        "yes" if _right(decision.decision, shipped, truth[best], max(observed, base)) else "no",
    ]


def _right(verdict: str, shipped: float, best: float, without: float) -> bool:
    """A promotion beats what there was without relex (observed or base); else no candidate beats it by 2 points."""
    return shipped > without if verdict == "promote" else best - without < 0.02


def _spec(out: Path, data: dict, confirm: str, root: str) -> Path:
    evaluation = data["evaluation"]
    task = {**evaluation["confirm"]["task"], "file": f"tasks/{confirm}.jsonl"}
    changed = {**data, "run_root": root}
    changed["evaluation"] = {**evaluation, "confirm": {**evaluation["confirm"], "task": task}}
    path = out / f"{root}.yaml"
    path.write_text(yaml.safe_dump(changed, sort_keys=False))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out.absolute()
    print("| " + " | ".join(HEADINGS) + " |\n|" + "---|" * len(HEADINGS))
    for name, seed, factor in RUNS:
        task = DEMO_TASKS[name]
        task = dataclasses.replace(task, seed=seed, grpo_lr=task.grpo_lr * factor, confirm_questions=CONFIRM + TRUTH)
        print("| " + " | ".join(verdict(out / f"{name}-{seed}", task)) + " |", flush=True)


if __name__ == "__main__":
    main()
