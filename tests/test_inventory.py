"""What finding a window costs: the requests that a real server sees, counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gcs.faults import FaultyFront, Handler, Request, faulty_front
from gcs.server import fake_gcs, new_bucket  # noqa: F401
from support import line_of_states, random_weights, write_trajectory

from relex_core.collect import find_window
from relex_core.spec import RunSpec, resolve_spec
from relex_core.storage import open_store, write_bytes

STEPS, SHARDS = 5, 3
COMPANIONS = ("config.json", "model.safetensors.index.json")


@pytest.fixture
def front(fake_gcs: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyFront]:  # noqa: F811
    with faulty_front(fake_gcs) as front:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        yield front


def uploaded(front: FaultyFront, folder: Path, layout: str, **window: Any) -> RunSpec:
    """The spec of a trajectory of STEPS checkpoints of SHARDS shards on the server; no request is counted yet."""
    base, steps = random_weights(), range(1, STEPS + 1)
    write_trajectory(folder, base, line_of_states(base, steps), steps, layout, SHARDS)
    uri = f"gs://{new_bucket(front.upstream)}/math"
    for part, root in (("base", folder / "base"), ("run", folder)):
        store = open_store(f"{uri}/{part}")
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_file() and not name.startswith("base/"):
                write_bytes(store, name, path.read_bytes())
    front.requests.clear()
    data = {"base": f"{uri}/base", "trajectory": f"{uri}/run", "window": {"t_cut": STEPS, **window}}
    return resolve_spec(data, where="test", folder=Path.cwd())


def test_one_listing_and_two_reads_a_header(tmp_path: Path, front: FaultyFront) -> None:
    spec = uploaded(front, tmp_path, "verl")
    assert find_window(spec).steps == (1, 2, 3, 4, 5)
    kinds = Counter(request.kind for request in front.requests)
    assert kinds["list"] == 3  # the trajectory's, the base's, and that of captured steps
    headers = [request for request in front.requests if request.key.startswith("model-")]
    assert {request.kind for request in headers} == {"read"}
    assert len(headers) == 2 * SHARDS * (STEPS + 1)
    others = Counter(request.key for request in front.requests if request.kind != "list" and request not in headers)
    assert others == {
        **dict.fromkeys(COMPANIONS, 2 * (STEPS + 1)),  # learn its generation, read it
        "latest_checkpointed_iteration.txt": 2,  # once for all steps
    }


def test_a_marker_costs_one_more_read_a_step(tmp_path: Path, front: FaultyFront) -> None:
    assert find_window(uploaded(front, tmp_path, "hf")).steps[-1] == STEPS
    assert len(front.seen("read", "trainer_state.json")) == STEPS
    assert not front.seen("stat", "trainer_state.json")


def test_the_second_look_costs_one_listing_and_no_read(tmp_path: Path, front: FaultyFront) -> None:
    spec = uploaded(front, tmp_path, "openrlhf", settle_seconds=0.01)
    assert find_window(spec).steps[-1] == STEPS
    kinds = Counter(request.kind for request in front.requests)
    assert kinds["list"] == 4
    assert kinds["read"] == (2 * SHARDS + len(COMPANIONS)) * (STEPS + 1)


def test_steps_are_looked_at_at_the_same_time(tmp_path: Path, front: FaultyFront) -> None:
    """The answer about any step's config waits for the question about another step's."""
    spec = uploaded(front, tmp_path, "verl")
    asked, met, together = set[str](), list[bool](), threading.Event()

    def wait_for_another(handler: Handler, request: Request) -> None:
        asked.add(request.path.partition("global_step_")[2][:1])
        if len(asked) > 1:
            together.set()
        met.append(together.wait(20))
        handler.send(handler.forward(request))

    front.plan("read", "config.json", lambda handler, request: handler.send(handler.forward(request)))  # the base's
    front.plan_always("read", "config.json", wait_for_another)
    assert find_window(spec).steps[-1] == STEPS
    assert met == [True] * STEPS
