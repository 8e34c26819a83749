"""The command line. Thin: parse, call one public function, print. Heavy imports come after parsing.

Exit status: 0 done, 2 bad usage or spec, 3 the window is not complete yet, 4 the input data are wrong,
5 the storage failed after retries.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click
from pydantic import ByteSize, TypeAdapter, ValidationError

from relex_core import __version__
from relex_core.errors import RelexError, SpecError
from relex_core.storage.uri import absolute_uri

if TYPE_CHECKING:
    from relex_core.spec import LayoutSpec, RunSpec

P = ParamSpec("P")
R = TypeVar("R")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="relex")
@click.option("-q", "--quiet", is_flag=True, help="No progress, only results and errors.")
def main(quiet: bool) -> None:
    """Extrapolate RLVR checkpoints, and promote one only when it is shown to help.

    \b
    relex demo              a tiny real RLVR run, and the whole pipeline on it
    relex inspect URI       what lies in a trajectory
    relex run SPEC          every stage; resumes where it stopped
    """
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "google"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # relex shows its own


def stage(function: Callable[P, R]) -> Callable[P, R]:
    """Turn our errors into a message on stderr and the exit status of their class."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except RelexError as error:
            _fail(f"{type(error).__name__}: {error}", error.exit_code)
        except ModuleNotFoundError as error:
            _fail(_missing_module(error), 2)

    return wrapped


def _fail(message: str, code: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)


def _missing_module(error: ModuleNotFoundError) -> str:
    needed_for = {
        "fit": ("torch", "numpy", "ml_dtypes", "threadpoolctl", "jaxtyping"),
        "eval": ("transformers", "scipy"),
        "report": ("altair", "jinja2", "markupsafe", "vl_convert"),
    }
    extra = {module: name for name, modules in needed_for.items() for module in modules}
    name = (error.name or "").partition(".")[0]
    if name not in extra:
        raise error
    return f'{name} is not installed\n  next:     pip install "relex[{extra[name]}]"'


def _location(uri: str) -> str:
    return absolute_uri(uri, Path.cwd())


def _run_directory(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        return _location(value)
    except SpecError as error:  # here, unlike in a stage, nothing else turns it into a message
        raise click.BadParameter(str(error)) from None


class _SpecPath(click.Path):
    """A file, or the gs:// URI of a stored spec."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        stored = isinstance(value, str) and value.startswith("gs://")
        return value if stored else super().convert(value, param, ctx)


spec_argument = click.argument("spec", type=_SpecPath(exists=True, dir_okay=False))
run_argument = click.argument("run", callback=_run_directory)
out_option = click.option("--out", metavar="RUN", help="Run directory; overrides the spec's run_root.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


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
    _print(result.as_dict(), result.text, as_json)


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
        _probe(_location(uri), layout, as_json=as_json, **sampling)
        return
    report = inspect_trajectory(_location(uri), layout)
    _print(report.model_dump(mode="json"), lambda: trajectory_text(report), as_json)


def _probe(uri: str, layout: LayoutSpec | None, *, base: str | None, as_json: bool, **sampling: Any) -> None:
    from relex_core.forecast_tables import probe_text
    from relex_core.probe import probe

    if base is None:
        raise click.UsageError("--probe needs --base")
    found = probe(uri, _location(base), layout=layout, **sampling)
    _print(found.model_dump(mode="json"), lambda: probe_text(found), as_json)


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

    if dry_run:
        from relex_core.dry_run import plan_run
        from relex_core.tables import plan_text

        plan = plan_run(load_spec(spec, out=out))
        _print(plan.model_dump(mode="json"), lambda: plan_text(plan), as_json)
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
    _print(data, lambda: run_text(result), as_json)


def _run_kfp_local(spec: RunSpec, shards: int, as_json: bool) -> None:
    from relex_core.decide import load_decision
    from relex_core.engines import run_kfp_local
    from relex_core.tables import decision_text

    if status := run_kfp_local(spec, shards=shards):
        sys.exit(status)  # what went wrong is on stderr already
    decision = load_decision(spec.run_root)
    _print(decision.model_dump(mode="json"), lambda: decision_text(decision), as_json)


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
    result = watch_window(load_spec(spec, out=out), then, target(then), WatchOptions(**waiting))
    data = {**result.fired.model_dump(mode="json"), "by_this_worker": result.by_this_worker}
    _print(data, lambda: watch_text(result), as_json)


@main.command()
@spec_argument
@out_option
@json_option
@stage
def collect(spec: str, out: str | None, as_json: bool) -> None:
    """Find the observation window and freeze it in RUN/window.json."""
    from relex_core.collect import collect as collect_window
    from relex_core.spec import load_spec
    from relex_core.tables import window_text

    loaded = load_spec(spec, out=out)
    manifest = collect_window(loaded)
    _print(manifest.model_dump(mode="json"), lambda: window_text(manifest, loaded.run_root), as_json)


def _shard(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise click.BadParameter(f"{value!r} is not a shard; expected i/N with 1 <= i <= N, for example 2/8")
    return int(match[1]), int(match[2])


def _bytes(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else TypeAdapter(ByteSize).validate_python(value)
    except ValidationError:
        raise click.BadParameter(f"{value!r} is no size; expected a number with a unit, for example 2GiB") from None


@main.command()
@run_argument
@click.option("--shard", metavar="i/N", callback=_shard, help="Only this part of the tensors; then: relex merge RUN.")
@click.option("--memory-budget", metavar="SIZE", callback=_bytes, help="As 2GiB; instead of the spec's.")
@json_option
@stage
def fit(run: str, shard: tuple[int, int] | None, memory_budget: int | None, as_json: bool) -> None:
    """Fit one direction and one line per weight tensor."""
    from relex_core.fit import fit as fit_run
    from relex_core.fit import fit_shard
    from relex_core.tables import fit_text

    if shard is not None:
        fit_shard(run, *shard, memory_budget=memory_budget)
        _print({"run": run, "shard": shard}, lambda: f"shard {shard[0]} of {shard[1]} is fitted", as_json)
        return
    artifact = fit_run(run, memory_budget=memory_budget)
    _print(artifact.model_dump(mode="json", exclude={"tensors"}), lambda: fit_text(artifact), as_json)


@main.command()
@run_argument
@json_option
@stage
def merge(run: str, as_json: bool) -> None:
    """Make one fit of its shards; reads no weights."""
    from relex_core.fit import merge as merge_shards
    from relex_core.tables import fit_text

    artifact = merge_shards(run)
    _print(artifact.model_dump(mode="json", exclude={"tensors"}), lambda: fit_text(artifact), as_json)


@main.command()
@run_argument
@json_option
@stage
def forecast(run: str, as_json: bool) -> None:
    """What extrapolation can be expected to do, from the fit alone: held-out skill, drift, advice."""
    from relex_core.forecast import forecast as forecast_fit
    from relex_core.forecast_tables import forecast_text

    found = forecast_fit(run)
    _print(found.model_dump(mode="json"), lambda: forecast_text(found), as_json)


@main.command()
@spec_argument
@out_option
@json_option
@stage
def gate(spec: str, out: str | None, as_json: bool) -> None:
    """Say whether there is anything to do: exit status 0 if so (or all is done), 3 while the window is incomplete."""
    from relex_core.errors import WindowNotReady
    from relex_core.gate import gate as look
    from relex_core.spec import load_spec

    seen = look(load_spec(spec, out=out))
    _print(vars(seen), lambda: f"{seen.state}: {seen.message}", as_json)
    if seen.state == "not_ready":
        sys.exit(WindowNotReady.exit_code)


@main.command()
@run_argument
@click.option("--candidate", "names", multiple=True, help="Only these.")
@click.option("--target-step", "target_steps", type=click.IntRange(min=0), multiple=True, help="Optimizer step.")
@click.option("--scale", "scales", type=float, multiple=True, help="Factor on the displacement; 1 is the paper.")
@json_option
@stage
def extrapolate(
    run: str, names: Sequence[str], target_steps: Sequence[int], scales: Sequence[float], as_json: bool
) -> None:
    """Write candidate checkpoints: the spec's, or those of --target-step and --scale."""
    from relex_core.extrapolate import extrapolate as write_candidates

    candidates = write_candidates(run, target_steps=target_steps, scales=scales, names=names)
    lines = "\n".join(f"{run}/candidates/{candidate.name}" for candidate in candidates)
    _print([candidate.model_dump(mode="json") for candidate in candidates], lambda: lines, as_json)


@main.command()
@run_argument
@click.option("--candidate", "candidates", multiple=True, help="Only these, on the selection split.")
@click.option("--first-round", is_flag=True, help="Of --candidate only what the search asks first; for parallel pods.")
@click.option("--lm-eval", metavar="TASKS", help="Run these tasks of lm-eval's harness instead: names, with commas.")
@click.option("--lm-eval-path", type=click.Path(exists=True, file_okay=False), help="Folder with more task YAML.")
@json_option
@stage
def evaluate(
    run: str,
    candidates: Sequence[str],
    first_round: bool,
    lm_eval: str | None,
    lm_eval_path: str | None,
    as_json: bool,
) -> None:
    """Measure candidates, base and last observed checkpoint; then the finalist on the confirmation split."""
    if lm_eval is not None:
        from relex_core.evaluate.harness_run import run_harness
        from relex_core.tables import harness_text

        found = run_harness(run, lm_eval.split(","), candidates=candidates, include=lm_eval_path)
        _print([result.model_dump(mode="json") for result in found], lambda: harness_text(found), as_json)
        return
    from relex_core.evaluate import evaluate as evaluate_run
    from relex_core.evaluate import evaluate_first_round
    from relex_core.tables import results_text

    if first_round and not candidates:
        raise click.UsageError("--first-round needs --candidate")
    results = evaluate_first_round(run, candidates) if first_round else evaluate_run(run, candidates=candidates)
    _print([result.model_dump(mode="json") for result in results], lambda: results_text(results), as_json)


@main.command()
@run_argument
@json_option
@stage
def decide(run: str, as_json: bool) -> None:
    """Promote the finalist, or keep what was observed."""
    from relex_core.decide import decide as decide_run
    from relex_core.tables import decision_text

    decision = decide_run(run)
    _print(decision.model_dump(mode="json"), lambda: decision_text(decision), as_json)


@main.command()
@run_argument
@click.option("--figures", metavar="DIR", help="Also write every figure as SVG and PNG into this folder.")
@json_option
@stage
def report(run: str, figures: str | None, as_json: bool) -> None:
    """Write RUN/report.html: the decision, its evidence and every figure on one page that opens without network."""
    from relex_core.report import report as report_run
    from relex_core.tables import report_text

    files = report_run(run, figures=None if figures is None else _location(figures))
    _print(asdict(files), lambda: report_text(files), as_json)


@main.command()
@run_argument
@json_option
@stage
def publish(run: str, as_json: bool) -> None:
    """Delete the losers and write RUN/published.json: which checkpoint to use."""
    from relex_core.publish import publish as publish_run

    outcome = publish_run(run)
    _print(outcome.model_dump(mode="json"), lambda: f"{outcome.decision}: {outcome.checkpoint_uri}", as_json)


def _print(data: Any, text: Callable[[], str], as_json: bool) -> None:
    click.echo(json.dumps(data, indent=1) if as_json else text())
