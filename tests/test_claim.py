"""One claim, many workers: on a folder and on a real object store server."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gcs.server import fake_gcs, new_bucket  # noqa: F401

from relex_core.claim import Claim, ClaimLost
from relex_core.storage import open_store, write_bytes

LEASE = 1.0


@pytest.fixture(params=["local", "gcs"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "local":
        return str(tmp_path / "root")
    url = request.getfixturevalue("fake_gcs")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    return f"gs://{new_bucket(url)}/run"


def claim(root: str, owner: str = "", lease: float = LEASE) -> Claim:
    return Claim(open_store(root), "watch/key", lease=lease, owner=owner)


def test_of_sixteen_claimers_one_wins(root: str) -> None:
    claims = [claim(root, f"worker {number}") for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(Claim.try_take, claims))
    assert won.count(True) == 1
    loser = claims[won.index(False)]
    assert not loser.try_take()
    assert loser.holder == f"worker {won.index(True)}"


def test_a_dead_owner_is_followed_after_the_lease_by_one_of_many(root: str) -> None:
    assert claim(root, "dead").try_take()  # and never a heartbeat
    others = [claim(root, f"worker {number}") for number in range(8)]
    assert not any(other.try_take() for other in others)  # they see it for the first time: it may be alive
    time.sleep(LEASE * 1.1)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(Claim.try_take, others)).count(True) == 1


def test_a_living_owner_keeps_its_claim(root: str) -> None:
    owner, other = claim(root), claim(root)
    assert owner.try_take()
    with owner.held():
        deadline = time.monotonic() + 2.5 * LEASE
        while time.monotonic() < deadline:
            assert not other.try_take()
            time.sleep(0.1)
        owner.require()
    assert other.try_take(), "a claim that was given back is free at once"


def test_an_owner_that_was_overtaken_steps_back(root: str) -> None:
    stalled, other = claim(root), claim(root)
    assert stalled.try_take()
    assert not other.try_take()
    time.sleep(LEASE * 1.1)
    assert other.try_take()
    with pytest.raises(ClaimLost):
        stalled.require()
    with stalled.held():  # its release does not touch the claim of the other
        pass
    other.require()


def test_a_claim_that_cannot_be_read_counts_by_its_age(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write_bytes(store, "watch/key/claim-00007.json", b"{")
    write_bytes(store, "watch/key/note.txt", b"not a claim")
    worker = claim(str(tmp_path))
    assert not worker.try_take()
    time.sleep(LEASE * 1.1)
    assert worker.try_take()
    assert (tmp_path / "watch/key/claim-00008.json").exists()


def test_owners_say_where_they_run(tmp_path: Path) -> None:
    import os
    import socket

    assert claim(str(tmp_path)).owner == f"{socket.gethostname()}:{os.getpid()}"
