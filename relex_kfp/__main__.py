"""`python -m relex_kfp`: compile, run, submit and schedule the pipeline. kfp is loaded after parsing."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from relex_core.cli.options import refuse_unused
from relex_core.errors import SpecError, WindowNotReady, exit_on_error
from relex_core.extras import install
from relex_core.spec import RunSpec, load_spec, spec_from_json

P = ParamSpec("P")
R = TypeVar("R")

PROFILES = ("kubernetes", "gke", "vertex", "processes")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The relex pipeline on Kubeflow Pipelines and Vertex AI."""


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Our errors end the process with their message and exit status; without kfp there is a hint."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with exit_on_error():
            try:
                return function(*args, **kwargs)
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] != "kfp":
                    raise
                raise SpecError("kfp is not installed", next_step=install("kfp")) from None

    return wrapped


def _spec(_context: click.Context, _parameter: click.Parameter, value: str) -> RunSpec:
    with exit_on_error():
        return spec_from_json(sys.stdin.read(), where="stdin") if value == "-" else load_spec(value)


def _yaml_file(_context: click.Context, _parameter: click.Parameter, value: str) -> Path:
    path = Path(value)
    if path.suffix not in (".yaml", ".yml"):
        raise click.BadParameter(f"{value!r} does not end in .yaml; Kubeflow goes by that")
    if not path.parent.is_dir():
        raise click.BadParameter(f"there is no folder {str(path.parent)!r}")
    return path


spec_argument = click.argument("spec", callback=_spec)


@main.command("compile")
@click.option("--profile", type=click.Choice(PROFILES), required=True, help="Kind of cluster.")
@click.option("--image", required=True, metavar="NAME@sha256:DIGEST", help="What the pods run.")
@click.option("--gpu-image", default="", metavar="NAME@sha256:DIGEST", help="For stages with GPUs; default: --image.")
@click.option("--gpu-type", default="", help="As the cluster spells it, for example nvidia-l4 or NVIDIA_L4.")
@click.option("--gpu-count", type=click.IntRange(min=0), default=1, show_default=True, help="0: no GPUs.")
@click.option("--secret", default="", help="Kubernetes secret with key.json of a Google service account.")
@click.option("--parallelism", type=click.IntRange(min=1), default=8, show_default=True, help="Candidates at once.")
@click.option("--resources", is_flag=True, help="As Pipeline and PipelineVersion resources.")
@click.option(
    "--out", type=click.Path(dir_okay=False), callback=_yaml_file, default="relex-pipeline.yaml", show_default=True
)
@command
def compile_command(profile: str, parallelism: int, resources: bool, out: Path, **settings: Any) -> None:
    """Write the pipeline as one YAML file to upload."""
    from relex_kfp.pipelines.relex_pipeline.compile import (
        compile_pipeline,
        refuse_floating_image,
        refuse_overwriting,
    )
    from relex_kfp.pipelines.relex_pipeline.profiles import RESOURCES, USED_BY, Settings

    for option, profiles in {**USED_BY, "resources": RESOURCES}.items():
        if profile not in profiles:
            refuse_unused(f"--profile {' or '.join(profiles)}", option)
    refuse_floating_image(settings["image"])
    refuse_floating_image(settings["gpu_image"] or settings["image"])
    refuse_overwriting(out)
    compile_pipeline(profile, Settings(**settings), out, resources=resources, parallelism=parallelism)
    click.echo(out)


@main.command("run-local")
@spec_argument
@click.option("--shards", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that fit.")
@click.option("--pipeline-root", type=click.Path(file_okay=False), help="Keeps Kubeflow's artifacts there.")
@command
def run_local_command(spec: RunSpec, shards: int, pipeline_root: str | None) -> None:
    """Run the compiled pipeline in processes on this machine. Prints its outputs as JSON; the log goes to stderr.

    SPEC is a file, or - for JSON on standard input.
    """
    from relex_core.gate import gate
    from relex_kfp.pipelines.local_run import run_local

    seen = gate(spec)  # here as well, because kfp.local tells of a step that failed, but not of its exit status
    with redirect_stdout(sys.stderr):
        outputs = run_local(
            spec, shards=shards, pipeline_root=Path(pipeline_root).absolute() if pipeline_root else None
        )
    click.echo(json.dumps(asdict(outputs)))
    if (
        seen.state == outputs.decision == "not_ready"
    ):  # a verdict that time-outs could turn is a verdict, as in relex run
        raise WindowNotReady(
            "nothing is decided", where=spec.run_root, next_step="see the log above, and try again later"
        )


@main.command("submit")
@click.argument("target", type=click.Choice(["kfp", "vertex"]))
@spec_argument
@command
def submit_command(target: str, spec: RunSpec) -> None:
    """Submit the pipeline if the window is complete, once; print the run's id.

    Settings come from the environment (docs/kubeflow.md).
    """
    from relex_core.collect import known_window
    from relex_kfp.pipelines.trigger import targets

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    act = {"kfp": targets.kfp, "vertex": targets.vertex}[target]
    click.echo(act(spec, known_window(spec)))


@main.command("status")
@click.argument("target", type=click.Choice(["kfp", "vertex"]))
@click.argument("run")
@command
def status_command(target: str, run: str) -> None:
    """What became of a submitted RUN, as JSON: run, state, message, ended."""
    from relex_kfp.pipelines.trigger.targets import state_of

    found = state_of(target, run)
    click.echo(json.dumps({**asdict(found), "ended": found.ended}))


@main.command("schedule")
@spec_argument
@click.option("--pipeline", type=click.Path(exists=True, dir_okay=False), required=True, help="The compiled YAML.")
@click.option("--cron", default="0 */10 * * * *", show_default=True, help="Six fields, seconds first.")
@click.option("--shards", type=click.IntRange(min=1), default=1, show_default=True, help="Pods that fit.")
@command
def schedule_command(spec: RunSpec, pipeline: str, cron: str, shards: int) -> None:
    """Create the recurring run of one spec on Kubeflow; its gate ends it at once while there is nothing to do."""
    from relex_kfp.pipelines.trigger.schedule import schedule
    from relex_kfp.pipelines.trigger.targets import cluster

    click.echo(schedule(spec, Path(pipeline), cluster(), cron=cron, shards=shards))


if __name__ == "__main__":
    main(prog_name="python -m relex_kfp")
