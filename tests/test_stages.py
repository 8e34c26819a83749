"""The stage table's permissions: the docs show them, and real processes need no others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from kfp_support import named, scripted_run, spec_data

from relex_core import layout
from relex_core.stages import BY_NAME, STAGES, Stage

DOCS = Path(__file__).parents[1] / "docs/kubeflow.md"

# Prints, after what the command prints, the files that it opened to read or to write, moved or deleted.
WATCHED = """
import atexit, json, os, sys
found = {"reads": set(), "writes": set()}
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        found["writes" if (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR) else "reads"].add(arguments[0])
    elif event in ("os.rename", "os.link"):
        found["writes"].add(str(arguments[1]))
    elif event == "os.remove":
        found["writes"].add(str(arguments[0]))
sys.addaudithook(watch)
atexit.register(lambda: print(json.dumps({kind: sorted(paths) for kind, paths in found.items()})))
from relex_core.cli import main
main(prog_name="relex")
"""


def row(stage: Stage) -> str:
    return f"| {stage.name} | {named(stage.reads)} | {named(stage.writes)} |"


def test_the_docs_show_what_each_stage_reads_and_writes() -> None:
    _, _, after = DOCS.read_text().partition("| step | reads | writes below RUN |\n|---|---|---|\n")
    assert after.partition("\n\n")[0].splitlines() == [row(stage) for stage in STAGES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = scripted_run(tmp_path_factory.mktemp("stages"), candidates=0.9, last_observed=0.3)
    candidates = {**spec_data()["candidates"], "baselines": ["auto"], "spatial_ranks": ["auto"]}
    (root / "spec.json").write_text(json.dumps(spec_data(candidates=candidates)))
    return root


def touched(folder: Path, stage: Stage, run: Path, candidate: str) -> dict[str, set[str]]:
    """Keys below RUN that the stage's command read and wrote; hidden files are those in the making."""
    arguments = stage.arguments(spec="spec.json", run=str(run), shard="1/1", candidate=candidate)
    arguments += ["--out", str(run)] if stage.name == "gate" else []
    command = [sys.executable, "-c", WATCHED, "--quiet", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    paths = json.loads(done.stdout.splitlines()[-1])
    below = {kind: [Path(path) for path in found if path.startswith(f"{run}/")] for kind, found in paths.items()}
    return {
        kind: {p.relative_to(run).as_posix() for p in found if not p.is_dir() and not p.name.startswith(".")}
        for kind, found in below.items()
    }


def test_no_stage_touches_what_the_table_does_not_say(folder: Path) -> None:
    """Extrapolating goes before the forecast here, which it then makes itself."""
    run, plain, auto = folder / "run", "relex-step00020-scale1.00-srankauto", "auto-step00020"
    order = ["gate", "collect", "fit", "merge_fit", "extrapolate", "forecast", "measure"]
    order += ["evaluate", "decide", "report", "publish"]
    assert sorted(order) == sorted(BY_NAME)
    written = {}
    for name in order:
        stage, written[name] = BY_NAME[name], set()
        for candidate in (plain, auto) if stage.each == "candidate" else ("",):
            found = touched(folder, stage, run, candidate)
            assert not beyond(found["reads"], stage.reads + stage.writes), name
            assert not beyond(found["writes"], stage.writes), name
            written[name] |= found["writes"]
    assert {layout.FORECAST, layout.SPATIAL, layout.EVENTS} <= written["extrapolate"]
    assert not beyond({layout.PUBLISHED}, written["publish"])


def beyond(keys: set[str], allowed: Iterable[str]) -> list[str]:
    """Those that are none of `allowed` and lie in no folder of it."""
    places = tuple(allowed)
    return [key for key in keys if key not in places and not any(p.endswith("/") and key.startswith(p) for p in places)]
