"""Real processes, really killed: the second run finishes, and leaves the bytes of an uninterrupted one.

Run directories are folders, and objects on a real server process.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gcs.server import fake_gcs, new_bucket  # noqa: F401

from relex_core.collect import collect
from relex_core.fit import fit
from relex_core.spec import resolve_spec
from relex_core.storage import exists, open_store, read_bytes, write_bytes

GOLDEN = Path(__file__).parent / "data" / "small" / "run"


@pytest.fixture(params=["local", "gcs"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where run directories may be made."""
    if request.param == "local":
        return str(tmp_path)
    url = request.getfixturevalue("fake_gcs")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    return f"gs://{new_bucket(url)}/runs"


def collected(run: str, **candidates: object) -> str:
    """A run directory over the golden run, with one tensor group per tensor."""
    spec = {
        "base": str(GOLDEN / "base"),
        "trajectory": str(GOLDEN),
        "window": {"t_cut": 16, "settle_seconds": 0},
        "fit": {"group_size": 1, "rank": 2},
        "candidates": candidates,
    }
    collect(resolve_spec(spec, where="test", folder=GOLDEN, out=run))
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


def count(run: str, folder: str, beginning: str = "", ending: str = "") -> int:
    """How many objects of a folder have names with this beginning and ending (within their own folder)."""
    names = [info.name.rpartition("/")[2] for info in open_store(run).list(folder)]
    return sum(name.startswith(beginning) and name.endswith(ending) for name in names)


def contents(run: str, folder: str) -> dict[str, bytes]:
    """All objects of a folder; of fit.json only what does not measure the run."""
    store = open_store(run)
    data = {info.name: read_bytes(store, info.name) for info in store.list(folder)}
    if "fit/fit.json" in data:
        fields = json.loads(data["fit/fit.json"])
        measured = ("seconds", "bytes_read", "peak_rss_bytes")
        data["fit/fit.json"] = json.dumps({k: v for k, v in fields.items() if k not in measured}).encode()
    return data


@pytest.mark.parametrize("groups", [1, 8])
def test_a_killed_fit_goes_on_with_the_next_group(root: str, groups: int) -> None:
    run, whole = collected(f"{root}/killed"), collected(f"{root}/whole")
    finish("fit", whole)

    kill_when(["fit", run], lambda: count(run, "fit", "gram-") >= groups)
    store = open_store(run)
    assert not exists(store, "fit/fit.json")
    finished = [info for info in store.list("fit") if "/direction-" in info.name]
    finish("fit", run)

    assert contents(run, "fit") == contents(whole, "fit")
    kept = [info for info in finished if store.stat(info.name).generation == info.generation]
    assert len(kept) >= len(finished) - 1, "at most the group in work is done again"


def test_a_killed_extrapolate_leaves_the_same_checkpoints(root: str) -> None:
    candidates = {"target_steps": list(range(20, 35)), "baselines": ["weight_extrapolation"]}
    run, whole = collected(f"{root}/killed", **candidates), collected(f"{root}/whole", **candidates)
    fit(run)
    for name, data in contents(run, "").items():
        if name.startswith("fit/"):
            write_bytes(open_store(whole), name, data if name != "fit/fit.json" else read_bytes(open_store(run), name))
    finish("extrapolate", whole)

    kill_when(["extrapolate", run], lambda: count(run, "candidates", ending="model.safetensors") >= 3)
    assert count(run, "candidates", "relex.json") < 30
    finish("extrapolate", run)

    assert contents(run, "candidates") == contents(whole, "candidates")
    assert count(run, "candidates", "relex.json") == 30
