"""Cost and time saved; the exact inputs; and how to make the same run again."""

from __future__ import annotations

import json

from rich.filesize import decimal

from relex_core import __version__, layout
from relex_core.evaluate.cost import cost_of
from relex_core.report.artifacts import Artifacts
from relex_core.report.text import NONE, compact, plural, seconds_text
from relex_core.report.view import Fact, Plot, Row, Section, Table
from relex_core.report.weights import fit_cost


def cost_section(run: Artifacts) -> Section:
    """What the pipeline took, and what training it would save."""
    cost = run.decision.cost if run.decision else cost_of(run.spec.cost, 0, run.seconds)
    saved = run.decision.training_steps_saved if run.decision else 0
    hours = cost.training_gpu_hours_saved
    total = sum(cost.pipeline_seconds.values())
    facts = [
        Fact("Training steps saved", str(saved), "if the RL run is stopped now" if saved else "nothing is promoted"),
        Fact("The pipeline took", seconds_text(total), "fit, extrapolate and evaluate together"),
        Fact("Pipeline, GPU hours", compact(cost.pipeline_gpu_hours), "seconds × the GPUs that the spec says it held"),
    ]
    if hours is not None:
        facts.append(Fact("Training saved, GPU hours", compact(hours), f"{cost.gpu_hours_per_step:g} a step"))
        facts.append(Fact("Net, GPU hours", compact(cost.gpu_hours_saved), "training saved − pipeline"))
    text = "" if hours is not None else "Set cost.gpu_hours_per_step in the spec to see GPU hours saved."
    rows: tuple[Row, ...] = tuple(
        {"stage": name, "seconds": value, "text": seconds_text(value)} for name, value in cost.pipeline_seconds.items()
    )
    table = [(name, seconds_text(value)) for name, value in cost.pipeline_seconds.items()]
    table += fit_cost(run.fit) if run.fit else ()
    plot = Plot(
        id="pipeline-time",
        kind="cost",
        title="Time that the pipeline took, by stage",
        caption="Wall-clock seconds of finished work, from events.jsonl; what a killed process left unfinished is not "
        "in it.",
        rows=rows if total > 0 else (),
        table=Table(("what", "how much"), tuple(table)),
        constants={"order": list(cost.pipeline_seconds)},
    )
    plots = (plot,) if plot.rows else ()
    return Section("cost", "Cost and time saved", (text,) if text else (), tuple(facts), plots=plots)


def inputs_section(run: Artifacts) -> Section:
    """Digests, versions, files and the spec."""
    window = run.window
    rows = [("window", window.digest)]
    rows += [("fit", run.fit.fit_key)] if run.fit else []
    rows += [("forecast", run.forecast.key)] if run.forecast else []
    rows += sorted({(f"questions, {r.task} ({r.split})", f"sha256:{r.key['task']['sha256']}") for r in run.results})
    rows += [(f"candidate {c.name}", c.digest) for c in run.candidates[2:]]
    versions = {"relex (this report)": __version__, **run.versions}
    conditions = dict.fromkeys(f"{r.key['backend']}, {r.key['device']}, {r.key['dtype']}" for r in run.results)
    facts = (
        Fact("Checkpoints", str(len(window.steps)), f"steps {window.steps[0]} to {window.steps[-1]}"),
        Fact("Tensors", f"{len(window.tensors):,}"),
        Fact("Evaluated with", "; ".join(conditions) or NONE, "backend, device, dtype"),
    )
    tables = (
        Table(("what", "digest"), tuple(rows), "Digests", folded=True),
        Table(("software", "version"), tuple(versions.items()), "Versions", folded=True),
        _checkpoints(run),
    )
    spec = json.dumps(run.spec.model_dump(mode="json"), indent=2, ensure_ascii=False)
    return Section("inputs", "Exact inputs", facts=facts, tables=tables, code=(("The resolved spec", spec),))


def _checkpoints(run: Artifacts) -> Table:
    base = run.window.base
    everything = [("base", base.uri, base.files), *((str(c.step), c.uri, c.files) for c in run.window.checkpoints)]
    rows = tuple(
        (step, uri, plural(len(files), "file"), decimal(sum(file.size for file in files)))
        for step, uri, files in everything
    )
    note = f"Generations and checksums: {layout.WINDOW}"
    return Table(("step", "folder", "files", "size"), rows, "Checkpoints", note, folded=True)


def reproduce_section(run: Artifacts) -> Section:
    """Commands; nothing in them comes from the run but its version."""
    extra = "eval" if run.spec.evaluation else "fit"
    extra = "vllm" if run.spec.evaluation and run.spec.evaluation.backend == "vllm" else extra
    commands = "\n".join(
        (
            f'pip install ".[{extra},report]"  # in a checkout of relex {__version__}',
            "# save the resolved spec above as spec.json, then:",
            "relex run spec.json --out again/",
            "relex report again/",
        )
    )
    text = (
        "The same files, spec and versions give the same weights and the same decision; on another kind of processor "
        "generated answers may differ in a few places. A replaced checkpoint is refused by its generation and checksum."
    )
    return Section("reproduce", "How to reproduce it", (text,), code=(("Commands", commands),))
