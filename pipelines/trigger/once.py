"""Submit once: a claim object decides who of several submitters does it, the run's name whether it was done.

    submissions/<name>-00001.json    created atomically: its creator submits, the others wait for the run to appear
    submissions/<name>-00002.json    the same again, after the first failed, or no run appeared for `patience`

Claims are never deleted, so of one number there is one winner. What is left is a submitter that stalls for longer than
`patience` and then goes on, or an API that takes longer to list what it accepted: then there are two runs, which
is a waste and no harm, because every step of the pipeline recognises what is done.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable

from relex_core.errors import ObjectExists
from relex_core.storage import Store, read_bytes, write_bytes

log = logging.getLogger("relex")

FOLDER = "submissions"
SECONDS_BETWEEN_LOOKS = 2.0
FAILED = b'{"failed": true}'


def submit_once(
    store: Store,
    name: str,
    find: Callable[[], str | None],
    submit: Callable[[], str],
    *,
    patience: float = 120.0,
) -> str:
    """The run of that name: submitted by this call, or by another one before or meanwhile.

    Args:
        store: the run directory.
        name: of the submission.
        find: the id of the run of that name, if the API knows one.
        submit: makes the run; returns its id.
        patience: seconds after which a submitter whose run has not appeared is taken for dead.

    Raises:
        Whatever `find` and `submit` raise; another call may then try at once.
    """
    while True:
        number = sum(1 for info in store.list(FOLDER) if info.name.startswith(f"{FOLDER}/{name}-"))
        if number and not _failed(store, _claim(name, number)):
            found = _appears(store, _claim(name, number), find, patience)
        else:
            found = find()
        if found is not None:
            return found
        claim = _claim(name, number + 1)
        try:
            store.create(claim, json.dumps({"name": name}).encode())
        except ObjectExists:
            continue
        if (found := find()) is not None:  # by an earlier claimant that was slow
            return found
        try:
            return submit()
        except BaseException:
            write_bytes(store, claim, FAILED)
            raise


def _claim(name: str, number: int) -> str:
    return f"{FOLDER}/{name}-{number:05d}.json"


def _failed(store: Store, claim: str) -> bool:
    return read_bytes(store, claim) == FAILED


def _appears(store: Store, claim: str, find: Callable[[], str | None], patience: float) -> str | None:
    """The run of another submitter; None if it failed, or seems to have died."""
    deadline = time.monotonic() + patience
    while (found := find()) is None and not _failed(store, claim):
        if time.monotonic() >= deadline:
            log.warning("%s/%s is claimed, but no run appeared in %g s: taking over", store.uri, claim, patience)
            return None
        time.sleep(min(SECONDS_BETWEEN_LOOKS, patience))
    return found
