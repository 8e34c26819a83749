"""One command for each stage; what pods run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

import click

from relex_core.cli.group import main, show, stage
from relex_core.cli.options import (
    json_option,
    location,
    out_option,
    refuse_unused,
    run_argument,
    shard_of,
    size_of,
    spec_argument,
)

STEP = click.IntRange(min=0, max=2**53, max_open=True)  # as in the spec


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
    show(vars(seen), lambda: f"{seen.state}: {seen.message}", as_json)
    if seen.state == "not_ready":
        sys.exit(WindowNotReady.exit_code)


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
    show(manifest.model_dump(mode="json"), lambda: window_text(manifest, loaded.run_root), as_json)


@main.command()
@run_argument
@click.option("--shard", metavar="i/N", callback=shard_of, help="Only this part of the tensors; then: relex merge RUN.")
@click.option("--memory-budget", metavar="SIZE", callback=size_of, help="As 2GiB; instead of the spec's.")
@json_option
@stage
def fit(run: str, shard: tuple[int, int] | None, memory_budget: int | None, as_json: bool) -> None:
    """Fit one direction and one line per weight tensor."""
    from relex_core.fit import fit as fit_run
    from relex_core.fit import fit_shard
    from relex_core.tables import fit_text

    if shard is not None:
        fit_shard(run, *shard, memory_budget=memory_budget)
        show({"run": run, "shard": shard}, lambda: f"shard {shard[0]} of {shard[1]} is fitted", as_json)
        return
    artifact = fit_run(run, memory_budget=memory_budget)
    show(artifact.model_dump(mode="json", exclude={"tensors"}), lambda: fit_text(artifact), as_json)


@main.command()
@run_argument
@json_option
@stage
def merge(run: str, as_json: bool) -> None:
    """Make one fit of its shards; reads no weights."""
    from relex_core.fit import merge as merge_shards
    from relex_core.tables import fit_text

    artifact = merge_shards(run)
    show(artifact.model_dump(mode="json", exclude={"tensors"}), lambda: fit_text(artifact), as_json)


@main.command()
@run_argument
@json_option
@stage
def forecast(run: str, as_json: bool) -> None:
    """What extrapolation can be expected to do, from the fit alone: held-out skill, drift, advice."""
    from relex_core.forecast import forecast as forecast_fit
    from relex_core.forecast_tables import forecast_text

    found = forecast_fit(run)
    show(found.model_dump(mode="json"), lambda: forecast_text(found), as_json)


@main.command()
@run_argument
@click.option("--candidate", "names", multiple=True, help="Only these.")
@click.option("--target-step", "target_steps", type=STEP, multiple=True, help="Optimizer step.")
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
    show([candidate.model_dump(mode="json") for candidate in candidates], lambda: lines, as_json)


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
    if lm_eval is None:
        refuse_unused("--lm-eval", "lm_eval_path")
    elif first_round:
        raise click.UsageError("--first-round is part of relex's own search; it does not go with --lm-eval")
    if lm_eval is not None:
        from relex_core.evaluate.harness_run import run_harness
        from relex_core.tables import harness_text

        found = run_harness(run, lm_eval.split(","), candidates=candidates, include=lm_eval_path)
        show([result.model_dump(mode="json") for result in found], lambda: harness_text(found), as_json)
        return
    from relex_core.evaluate import evaluate as evaluate_run
    from relex_core.evaluate import evaluate_first_round
    from relex_core.tables import results_text

    if first_round and not candidates:
        raise click.UsageError("--first-round needs --candidate")
    results = evaluate_first_round(run, candidates) if first_round else evaluate_run(run, candidates=candidates)
    show([result.model_dump(mode="json") for result in results], lambda: results_text(results), as_json)


@main.command()
@run_argument
@json_option
@stage
def decide(run: str, as_json: bool) -> None:
    """Promote the finalist, or keep what was observed."""
    from relex_core.decide import decide as decide_run
    from relex_core.tables import decision_text

    decision = decide_run(run)
    show(decision.model_dump(mode="json"), lambda: decision_text(decision), as_json)


@main.command()
@run_argument
@click.option("--figures", metavar="DIR", help="Also write every figure as SVG and PNG into this folder.")
@json_option
@stage
def report(run: str, figures: str | None, as_json: bool) -> None:
    """Write RUN/report.html: the decision, its evidence and every figure on one page that opens without network."""
    from relex_core.report import report as report_run
    from relex_core.tables import report_text

    files = report_run(run, figures=None if figures is None else location(figures))
    show(asdict(files), lambda: report_text(files), as_json)


@main.command()
@run_argument
@json_option
@stage
def publish(run: str, as_json: bool) -> None:
    """Delete the losers and write RUN/published.json: which checkpoint to use."""
    from relex_core.publish import publish as publish_run

    outcome = publish_run(run)
    what = outcome.checkpoint_uri or "nothing is published"
    show(outcome.model_dump(mode="json"), lambda: f"{outcome.decision}: {what}", as_json)
