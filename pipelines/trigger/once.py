"""One submission out of many submitters: the one that holds the claim submits, the others wait for its run to appear.

    submissions/<name>/claim-00001.json      relex_core.claim, kept alive while its owner submits

A submitter that dies is followed by another as soon as its lease is over, one that fails at once, and one that is only
slow by nobody. It holds the claim until the API lists its run, so an API that lists late is asked for no second one.
What is left is a submitter that is stopped between asking for a run and seeing it, for longer than a lease: then there
may be two runs, which is a waste and no harm, because every step of the pipeline recognises what is done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress

from relex_core.claim import Claim, ClaimLost
from relex_core.storage import Store

log = logging.getLogger("relex")

FOLDER = "submissions"
LEASE_SECONDS = 120.0
SECONDS_BETWEEN_LOOKS = 2.0


def submit_once(
    store: Store,
    name: str,
    find: Callable[[], str | None],
    submit: Callable[[], str],
    *,
    lease: float = LEASE_SECONDS,
) -> str:
    """The run of that name: submitted by this call, or by another one before or meanwhile.

    Args:
        store: the run directory.
        name: of the submission.
        find: the id of the run of that name, if the API knows one.
        submit: makes the run; returns its id.
        lease: seconds without a heartbeat after which a submitter is taken for dead.

    Raises:
        Whatever `find` and `submit` raise; another call may then try at once.
    """
    claim = Claim(store, f"{FOLDER}/{name}", lease=lease)
    wait = min(SECONDS_BETWEEN_LOOKS, lease / 4)
    while (found := find()) is None:
        if not claim.try_take():
            log.info("%s is submitting %s; standing by", claim.holder, name)
            time.sleep(wait)
            continue
        with suppress(ClaimLost), claim.held():
            if (found := find()) is not None:  # by the one who held the claim before
                return found
            claim.require()
            made = submit()
            _until_listed(find, lease, wait)
            return made
    return found


def _until_listed(find: Callable[[], str | None], patience: float, wait: float) -> None:
    deadline = time.monotonic() + patience
    while find() is None:
        if time.monotonic() >= deadline:
            log.warning("the run was accepted, but is not listed after %g s", patience)
            return
        time.sleep(wait)
