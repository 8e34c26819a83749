"""Commands that are more than one stage: demo, inspect, run, watch."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relex_core.cli.group import main, show, stage
from relex_core.cli.options import json_option, location, out_option, refuse_unused, spec_argument

if TYPE_CHECKING:
    from relex_core.spec import LayoutSpec, RunSpec


@main.command()
@click.option("--out", type=click.Path(file_okay=False), default="relex-demo", show_default=True)
@click.option("--task", type=click.Choice(["format", "addition"]), default="format", show_default=True)
@click.option("--truth", is_flag=True, help="Go on training to the farthest target, to see what RL itself reaches.")
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
@stage
def demo(out: str, task: str, truth: bool, seed: int, as_json: bool) -> None:
    """Train a tiny real RLVR run here, then do everything on it.

    `format`: RL shifts a preference between two answer formats; extrapolation tends to help.
    `addition`: every weight wanders; keeping the observed checkpoint or an average tends to be right.
    Nothing is staged: whatever the decision is, it is printed.
    """
    from relex_core.demo.pipeline import run_demo

    result = run_demo(Path(out).absolute(), task, seed=seed, truth=truth)
    show(result.as_dict(), result.text, as_json)


@main.command()
@click.argument("uri")
@click.option("--step-folder", metavar="NAME", help='Name of a step folder, with {step} for the step: "iter_{step}".')
@click.option("--weights", metavar="FOLDER", default="", help="Folder of the weights inside a step folder.")
@click.option("--marker", metavar="FILE", default="", help="File that the trainer writes last into a step folder.")
@click.option("--probe", is_flag=True, help="Forecast from a sample of the weights; needs --base.")
@click.option("--base", metavar="URI", help="The model that the run started from.")
@click.option("--fraction", type=float, default=0.01, show_default=True, help="Of the weights; more of small tensors.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of weights.")
@json_option
@stage
def inspect(
    uri: str, step_folder: str | None, weights: str, marker: str, probe: bool, as_json: bool, **sampling: Any
) -> None:
    """Show which steps lie in a trajectory, which are complete, and which not and why.

    The layouts of known trainers are recognised; --step-folder tries one of your own, as `layout` of a spec says it.
    """
    from relex_core.inspect import inspect_trajectory
    from relex_core.spec import resolve_layout
    from relex_core.tables import trajectory_text

    if step_folder is None and (weights or marker):
        raise click.UsageError("--weights and --marker need --step-folder")
    layout = None if step_folder is None else resolve_layout(step_folder, weights, marker)
    if probe:
        _probe(location(uri), layout, as_json=as_json, **sampling)
        return
    refuse_unused("--probe", "base", "fraction", "seed")
    report = inspect_trajectory(location(uri), layout)
    show(report.model_dump(mode="json"), lambda: trajectory_text(report), as_json)


def _probe(uri: str, layout: LayoutSpec | None, *, base: str | None, as_json: bool, **sampling: Any) -> None:
    from relex_core.forecast_tables import probe_text
    from relex_core.probe import probe

    if base is None:
        raise click.UsageError("--probe needs --base")
    found = probe(uri, location(base), layout=layout, **sampling)
    show(found.model_dump(mode="json"), lambda: probe_text(found), as_json)


@main.command()
@spec_argument
@out_option
@click.option("--dry-run", is_flag=True, help="Print the plan: steps, bytes, memory, candidates. Writes nothing.")
@click.option("--engine", type=click.Choice(["here", "kfp-local"]), default="here", show_default=True)
@click.option("--shards", type=click.IntRange(min=1), default=1, help="Processes that fit (kfp-local).")
@json_option
@stage
def run(spec: str, out: str | None, dry_run: bool, engine: str, shards: int, as_json: bool) -> None:
    """Collect, fit, extrapolate, evaluate and decide; resumes where it stopped.

    `--engine kfp-local` does it with the compiled Kubeflow pipeline, every step a process of its own.
    """
    from relex_core.spec import load_spec

    if engine != "kfp-local":
        refuse_unused("--engine kfp-local", "shards")
    if dry_run:
        from relex_core.dry_run import plan_run
        from relex_core.tables import plan_text

        plan = plan_run(load_spec(spec, out=out))
        show(plan.model_dump(mode="json"), lambda: plan_text(plan), as_json)
        return
    if engine == "kfp-local":
        _run_kfp_local(load_spec(spec, out=out), shards, as_json)
        return
    from relex_core.run import run as run_all
    from relex_core.tables import run_text

    result = run_all(load_spec(spec, out=out))
    data = {
        "run": result.run,
        "window_digest": result.window.digest,
        "candidates": [candidate.name for candidate in result.candidates],
        "decision": result.decision.model_dump(mode="json") if result.decision else None,
        "report": result.report,
    }
    show(data, lambda: run_text(result), as_json)


def _run_kfp_local(spec: RunSpec, shards: int, as_json: bool) -> None:
    from relex_core.decide import load_decision
    from relex_core.engines import run_kfp_local
    from relex_core.tables import decision_text

    if status := run_kfp_local(spec, shards=shards):
        sys.exit(status)  # what went wrong is on stderr already
    decision = load_decision(spec.run_root)
    show(decision.model_dump(mode="json"), lambda: decision_text(decision), as_json)


@main.command()
@spec_argument
@out_option
@click.option("--then", required=True, type=click.Choice(["run", "print", "kfp", "vertex"]), help="What to do with it.")
@click.option("--capture", is_flag=True, help="Copy each checkpoint of the window before the trainer deletes it.")
@click.option("--interval", type=click.FloatRange(min=0.1), default=60.0, show_default=True, help="Longest wait, s.")
@click.option("--lease", type=click.FloatRange(min=1), default=60.0, show_default=True, help="Dead after so many s.")
@click.option("--timeout", type=click.FloatRange(min=0), help="Give up (exit 3) after so many seconds.")
@json_option
@stage
def watch(spec: str, out: str | None, then: str, as_json: bool, **waiting: Any) -> None:
    """Wait until the window is complete, then act, exactly once, however many watchers there are."""
    from relex_core.spec import load_spec
    from relex_core.tables import watch_text
    from relex_core.targets import target
    from relex_core.watch import WatchOptions
    from relex_core.watch import watch as watch_window

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an evicted pod gives its claim back
    loaded = load_spec(spec, out=out)
    result = watch_window(loaded, then, target(then, loaded), WatchOptions(**waiting))
    data = {**result.fired.model_dump(mode="json"), "by_this_worker": result.by_this_worker}
    show(data, lambda: watch_text(result), as_json)
