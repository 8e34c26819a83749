"""A trajectory that a real second process is writing or deleting while collect looks at it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import WEIGHTS_FOLDER, line_of_states, make_spec, random_weights, write_trajectory

from relex_core import observe as observing
from relex_core.collect import collect, find_window
from relex_core.errors import WindowError, WindowNotReady
from relex_core.observe import PLAINLY_OLD, observe, vouched
from relex_core.storage.local import LocalStore

UNMARKED = ("authors", "openrlhf", "skyrl")
SETTLE = {"settle_seconds": 0.3}

# Writes the last byte of a file again and again until it is told to stop, as a trainer that fills a reserved file does.
WRITER = """
import os, sys, time
path, stop = sys.argv[1:]
size = os.path.getsize(path)
while not os.path.exists(stop):
    with open(path, "r+b") as file:
        file.seek(size - 1)
        file.write(b"x")
    print("written", flush=True)
    time.sleep(0.02)
"""

# Deletes a step's files one by one, slowly, as save_total_limit on a mounted bucket does.
DELETER = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
files = sorted(folder.iterdir(), reverse=True)
for file in files:
    file.unlink()
    print("deleted", flush=True)
    time.sleep(0.15)
folder.rmdir()
"""


def trajectory(root: Path, layout: str = "openrlhf", steps: tuple[int, ...] = (1, 2, 3, 4), shards: int = 1) -> None:
    base = random_weights()
    write_trajectory(root, base, line_of_states(base, steps), steps, layout, shards)


def weights(root: Path, step: int, layout: str = "openrlhf") -> Path:
    return root / WEIGHTS_FOLDER[layout].format(step) / "model.safetensors"


@contextmanager
def second_process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run `code` beside the test, from its first line of output on."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders listed so far."""
    seen: list[str] = []
    real = LocalStore.list

    def counted(store: LocalStore, prefix: str = "") -> Any:
        seen.append(store.uri)
        return real(store, prefix)

    monkeypatch.setattr(LocalStore, "list", counted)
    return seen


# --- the newest checkpoint, without a marker --------------------------------------------------------------------------


@pytest.mark.parametrize("layout", UNMARKED)
def test_a_newest_step_that_another_process_is_writing_is_not_taken(tmp_path: Path, layout: str) -> None:
    trajectory(tmp_path, layout)
    spec = make_spec(tmp_path, t_cut=4, window=SETTLE)
    stop = tmp_path / "stop"
    with second_process(WRITER, weights(tmp_path, 4, layout), stop) as writer:
        with pytest.raises(WindowNotReady) as caught:  # its header promises just what is there
            collect(spec)
        assert "step 4" in caught.value.what
        assert not (tmp_path / "run" / "window.json").exists()
        # An earlier window does not wait for it: the newer folder vouches for it.
        assert find_window(make_spec(tmp_path, t_cut=3, window=SETTLE)).steps == (1, 2, 3)
        stop.touch()
        writer.wait()
    manifest = collect(spec)
    assert manifest.steps == (1, 2, 3, 4)
    status = weights(tmp_path, 4, layout).stat()
    assert manifest.checkpoints[-1].files[0].generation == status.st_mtime_ns


def test_a_step_that_is_finished_between_two_listings_is_taken(tmp_path: Path, listings: list[str]) -> None:
    trajectory(tmp_path)
    late = threading.Timer(0.1, lambda: os.utime(weights(tmp_path, 4)))
    late.start()
    assert find_window(make_spec(tmp_path, t_cut=4, window={"settle_seconds": 0.4})).steps == (1, 2, 3, 4)
    late.join()
    assert listings.count(str(tmp_path)) == 3  # the second differs from the first, the third does not


@pytest.mark.parametrize(
    ("layout", "t_cut", "settle", "count"),
    [
        ("openrlhf", 4, 0.01, 2),
        ("openrlhf", 3, 3600, 1),  # step 4 vouches for step 3
        ("openrlhf", 4, 0, 1),
        ("verl", 4, 3600, 1),
        ("hf", 4, 3600, 1),
        ("prime-rl", 4, 3600, 1),
    ],
)
def test_a_second_listing_only_where_the_answer_depends_on_it(
    tmp_path: Path, listings: list[str], layout: str, t_cut: int, settle: float, count: int
) -> None:
    trajectory(tmp_path, layout)
    assert find_window(make_spec(tmp_path, t_cut, window={"settle_seconds": settle})).steps[-1] == t_cut
    assert listings.count(str(tmp_path)) == count


def test_no_pause_before_the_answer_that_the_window_is_not_there_yet(tmp_path: Path, listings: list[str]) -> None:
    trajectory(tmp_path)
    with pytest.raises(WindowNotReady, match="the last complete checkpoint is step 4"):
        find_window(make_spec(tmp_path, t_cut=5, window={"settle_seconds": 3600}))
    assert listings.count(str(tmp_path)) == 1


def test_a_copy_of_a_verl_run_without_its_last_step_file_is_listed_twice(tmp_path: Path, listings: list[str]) -> None:
    trajectory(tmp_path, "verl")
    (tmp_path / "latest_checkpointed_iteration.txt").unlink()
    find_window(make_spec(tmp_path, t_cut=4, window={"settle_seconds": 0.01}))
    assert listings.count(str(tmp_path)) == 2


def test_what_is_plainly_old_is_not_waited_for(
    tmp_path: Path, listings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectory(tmp_path)
    spec = make_spec(tmp_path, t_cut=4, window={"settle_seconds": 3600})
    now = time.time()
    monkeypatch.setattr(observing.time, "time", lambda: now + PLAINLY_OLD + 60)
    assert find_window(spec).steps == (1, 2, 3, 4)
    assert listings.count(str(tmp_path)) == 1


def test_an_old_modification_time_alone_does_not_make_a_file_old(tmp_path: Path) -> None:
    """`cp -p` and `rsync -t` set it back while they copy."""
    trajectory(tmp_path)
    os.utime(weights(tmp_path, 4), (1, 1))
    steps = observe(str(tmp_path))
    assert [vouched(steps, step) for step in steps] == ["later step", "later step", "later step", ""]


# --- deleted under our eyes -------------------------------------------------------------------------------------------


def test_a_checkpoint_that_a_live_trainer_is_deleting_is_no_torn_one(tmp_path: Path) -> None:
    trajectory(tmp_path, "hf", shards=3)
    spec = make_spec(tmp_path, t_cut=4, window={"settle_seconds": 0.6})
    with second_process(DELETER, tmp_path / "checkpoint-1"):  # the listing finds the rest of its files
        assert find_window(spec).steps == (2, 3, 4)


def test_a_checkpoint_deleted_after_the_listing_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trajectory(tmp_path, "hf")
    real = LocalStore.list

    def list_while_deleted(store: LocalStore, prefix: str = "") -> Any:
        listed = list(real(store, prefix))
        shutil.rmtree(tmp_path / "checkpoint-1", ignore_errors=True)
        return iter(listed)

    monkeypatch.setattr(LocalStore, "list", list_while_deleted)
    assert find_window(make_spec(tmp_path, t_cut=4)).steps == (2, 3, 4)


def test_a_trajectory_that_never_comes_to_rest_is_no_reason_to_refuse_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectory(tmp_path, "hf")
    path = weights(tmp_path, 2, "hf")
    whole = path.read_bytes()
    real = LocalStore.list

    def list_while_changed(store: LocalStore, prefix: str = "") -> Any:
        if store.uri == str(tmp_path):
            path.write_bytes(whole[:-1])
        return real(store, prefix)

    monkeypatch.setattr(LocalStore, "list", list_while_changed)
    with pytest.raises(WindowNotReady, match="the trajectory changes while it is looked at: step 2"):
        find_window(make_spec(tmp_path, t_cut=4))


def test_a_torn_checkpoint_stays_refused_after_the_second_listing(tmp_path: Path, listings: list[str]) -> None:
    trajectory(tmp_path)
    weights(tmp_path, 2).write_bytes(weights(tmp_path, 2).read_bytes()[:-1])
    with pytest.raises(WindowError, match=r"step 2: model.safetensors is cut off"):
        find_window(make_spec(tmp_path, t_cut=4, window={"settle_seconds": 0.01}))
    assert listings.count(str(tmp_path)) == 2


# --- reserved, but not written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 8], ids=["nothing written", "only the header's length written"])
@pytest.mark.parametrize("layout", UNMARKED)
def test_a_reserved_file_without_a_header_is_still_being_written(tmp_path: Path, layout: str, kept: int) -> None:
    trajectory(tmp_path, layout)
    path = weights(tmp_path, 4, layout)
    path.write_bytes(path.read_bytes()[:kept] + bytes(path.stat().st_size - kept))
    with pytest.raises(WindowNotReady, match="the header is not written yet"):
        find_window(make_spec(tmp_path, t_cut=4))
    assert find_window(make_spec(tmp_path, t_cut=3)).steps == (1, 2, 3)


def test_a_half_written_header_is_looked_at_again(tmp_path: Path) -> None:
    """A header that is no JSON yet would be a permanent refusal; the second listing shows that it is in work."""
    trajectory(tmp_path)
    path = weights(tmp_path, 4)
    whole = path.read_bytes()
    path.write_bytes(whole[:30] + bytes(len(whole) - 30))
    late = threading.Timer(0.1, lambda: path.write_bytes(whole))
    late.start()
    assert find_window(make_spec(tmp_path, t_cut=4, window={"settle_seconds": 0.4})).steps == (1, 2, 3, 4)
    late.join()


def test_a_header_that_stays_broken_is_refused(tmp_path: Path) -> None:
    trajectory(tmp_path)
    path = weights(tmp_path, 4)
    path.write_bytes(path.read_bytes()[:30] + bytes(path.stat().st_size - 30))
    with pytest.raises(WindowError, match=r"step 4: model.safetensors is not a valid safetensors file"):
        find_window(make_spec(tmp_path, t_cut=4, window={"settle_seconds": 0.01}))


def test_a_last_step_file_rewritten_after_the_listing_is_read_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectory(tmp_path, "verl")
    real = LocalStore.list

    def list_before_the_next_step(store: LocalStore, prefix: str = "") -> Any:
        listed = list(real(store, prefix))
        (tmp_path / "latest_checkpointed_iteration.txt").write_text("5")
        return iter(listed)

    monkeypatch.setattr(LocalStore, "list", list_before_the_next_step)
    assert find_window(make_spec(tmp_path, t_cut=4)).steps == (1, 2, 3, 4)


def test_the_file_of_the_last_step_is_read_once_for_all_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trajectory(tmp_path, "verl")
    read: list[str] = []
    real = LocalStore.read_into

    def counted(store: LocalStore, key: str, *arguments: Any) -> None:
        read.append(key)
        real(store, key, *arguments)

    monkeypatch.setattr(LocalStore, "read_into", counted)
    observe(str(tmp_path))
    assert read.count("latest_checkpointed_iteration.txt") == 1
    assert json.loads((tmp_path / "latest_checkpointed_iteration.txt").read_text()) == 4
