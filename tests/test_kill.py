"""Real processes, really killed: the second run finishes, and leaves the bytes of an uninterrupted one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from relex_core.collect import collect
from relex_core.fit import fit
from relex_core.spec import resolve_spec

GOLDEN = Path(__file__).parent / "data" / "small" / "run"


def collected(run: Path, **candidates: object) -> Path:
    """A run directory over the golden run, with one tensor group per tensor."""
    spec = {
        "base": str(GOLDEN / "base"),
        "trajectory": str(GOLDEN),
        "window": {"t_cut": 16, "settle_seconds": 0},
        "fit": {"group_size": 1, "rank": 2},
        "candidates": candidates,
    }
    collect(resolve_spec(spec, where="test", folder=run.parent, out=str(run)))
    return run


def kill_when(command: list[str], ready: Callable[[], bool]) -> None:
    """Start a command and SIGKILL it as soon as `ready`; it must not have finished by then."""
    process = subprocess.Popen([sys.executable, "-m", "relex_core", *command], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode() if process.stderr else ""


def finish(*command: str) -> None:
    subprocess.run([sys.executable, "-m", "relex_core", *command], check=True, stdout=subprocess.DEVNULL)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder; of fit.json only what does not measure the run."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    data = {name: path.read_bytes() for name, path in files.items()}
    if "fit.json" in data:
        fields = json.loads(data["fit.json"])
        measured = ("seconds", "bytes_read", "peak_rss_bytes")
        data["fit.json"] = json.dumps({k: v for k, v in fields.items() if k not in measured}).encode()
    return data


@pytest.mark.parametrize("groups", [1, 8])
def test_a_killed_fit_goes_on_with_the_next_group(tmp_path: Path, groups: int) -> None:
    run, whole = collected(tmp_path / "killed"), collected(tmp_path / "whole")
    finish("fit", str(whole))

    kill_when(["fit", str(run)], lambda: len(list((run / "fit").glob("gram-*"))) >= groups)
    assert not (run / "fit" / "fit.json").exists()
    finished = {path.name: path.stat().st_mtime_ns for path in (run / "fit").glob("direction-*.safetensors")}
    finish("fit", str(run))

    assert contents(run / "fit") == contents(whole / "fit")
    kept = [name for name, time_ns in finished.items() if (run / "fit" / name).stat().st_mtime_ns == time_ns]
    assert len(kept) >= len(finished) - 1, "at most the group in work is done again"


def test_a_killed_extrapolate_leaves_the_same_checkpoints(tmp_path: Path) -> None:
    candidates = {"target_steps": list(range(20, 50)), "baselines": ["weight_extrapolation"]}
    run, whole = collected(tmp_path / "killed", **candidates), collected(tmp_path / "whole", **candidates)
    fit(str(run))
    shutil.copytree(run / "fit", whole / "fit")
    finish("extrapolate", str(whole))

    kill_when(["extrapolate", str(run)], lambda: len(list((run / "candidates").glob("*/model.safetensors"))) >= 3)
    complete = list((run / "candidates").glob("*/relex.json"))
    assert len(complete) < 60
    finish("extrapolate", str(run))

    assert contents(run / "candidates") == contents(whole / "candidates")
    assert len(list((run / "candidates").glob("*/relex.json"))) == 60
