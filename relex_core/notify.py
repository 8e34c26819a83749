"""notify: Outcome -> a signed HTTP request, for a trainer or a registry that cannot poll for RUN/published.json.

    POST URL
    X-Relex-Signature: sha256=HMAC-SHA256(secret, body), hexadecimal
    X-Relex-Delivery: SHA-256 of the body; the same outcome is the same delivery, however often it is sent

The receiver computes the signature of the bytes it got, compares in constant time, and ignores a delivery it has seen.
"""

from __future__ import annotations

import hashlib
import hmac

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from relex_core.errors import SpecError, StorageError, WindowNotReady
from relex_core.publish import NOTHING_YET, published

SIGNATURE, DELIVERY = "X-Relex-Signature", "X-Relex-Delivery"
SECONDS = 30.0
"""For one attempt."""
RETRIES = Retry(total=5, backoff_factor=1.0, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=("POST",))


def notify(run: str, url: str, secret: bytes, *, retries: Retry = RETRIES) -> str:
    """Send RUN/published.json; safe to repeat.

    Args:
        url: of the receiver.
        secret: shared with it.

    Returns:
        The delivery's id.

    Raises:
        SpecError: there is no secret, or the receiver refuses the request (4xx).
        WindowNotReady: nothing is published yet.
        StorageError: the receiver cannot be reached, or failed, after retries.
    """
    if not secret:
        raise SpecError("there is no secret to sign with", next_step="share one with the receiver")
    outcome = published(run)
    if outcome == NOTHING_YET:
        raise WindowNotReady("nothing is published yet", where=run, next_step=f"relex publish {run}")
    body = outcome.model_dump_json().encode()
    delivery = hashlib.sha256(body).hexdigest()
    headers = {"Content-Type": "application/json", SIGNATURE: signature(secret, body), DELIVERY: delivery}
    with requests.Session() as session:
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(max_retries=retries))
        try:
            answer = session.post(url, data=body, headers=headers, timeout=SECONDS, allow_redirects=False)
        except requests.RequestException as error:
            raise StorageError(f"the receiver cannot be told: {error}", where=url, next_step="try again") from error
    if answer.status_code >= 300:
        raise SpecError(f"the receiver answered {answer.status_code}: {answer.text:.200}", where=url)
    return delivery


def signature(secret: bytes, body: bytes) -> str:
    """What the receiver must find in X-Relex-Signature."""
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
