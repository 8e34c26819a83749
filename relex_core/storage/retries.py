"""Which failures of Google Cloud Storage are worth another try, and how long to wait before it."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar, cast

import requests
import urllib3.exceptions
from google.api_core.exceptions import GoogleAPICallError
from google.api_core.retry import exponential_sleep_generator, retry_target
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud.storage.exceptions import InvalidResponse
from urllib3.util import Retry

P = ParamSpec("P")
R = TypeVar("R")

TRANSIENT_CODES = frozenset({408, 429, 500, 502, 503, 504})

# What google.cloud.storage.retry takes for transient; there it is a private name.
TRANSIENT_ERRORS = (
    ConnectionError,
    TimeoutError,
    TransportError,
    ssl.SSLError,
    http.client.HTTPException,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.PoolError,
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.SSLError,
    urllib3.exceptions.TimeoutError,
)


@dataclass(frozen=True)
class Retries:
    """Exponential backoff with jitter, which waits at least as long as the server's Retry-After asks.

    It can be passed wherever google-cloud-storage takes a ``retry``.
    """

    initial: float = 1.0
    """Upper bound of the first wait, seconds."""
    maximum: float = 32.0
    """Upper bound of any wait, seconds; Retry-After may ask for more."""
    timeout: float = 120.0
    """No new try starts later than this, seconds after the first one."""

    def __call__(self, target: Callable[P, R]) -> Callable[P, R]:
        """`target`, called again while it fails for a transient reason.

        The result raises google.api_core's RetryError when the time is over, and any other error as it is.
        """

        def retried(*args: P.args, **kwargs: P.kwargs) -> R:
            waits = _Waits(self.initial, self.maximum)
            call = partial(target, *args, **kwargs)
            return cast(R, retry_target(call, is_transient, waits, timeout=self.timeout, on_error=waits.note))

        return retried


class _Waits:
    """The waits between tries, in seconds: the backoff's, or what the last error asked for if that is longer."""

    def __init__(self, initial: float, maximum: float) -> None:
        self._backoff = exponential_sleep_generator(initial, maximum)
        self._asked: float = 0.0

    def note(self, error: Exception) -> None:
        self._asked = retry_after(getattr(error, "response", None))

    def __iter__(self) -> Iterator[float]:
        return self

    def __next__(self) -> float:
        return max(self._asked, float(next(self._backoff)))


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, GoogleAPICallError):
        return error.code in TRANSIENT_CODES
    if isinstance(error, InvalidResponse):
        return error.response.status_code in TRANSIENT_CODES
    if isinstance(error, GoogleAuthError) and error.retryable:
        return True
    return isinstance(error, TRANSIENT_ERRORS)


def retry_after(response: requests.Response | None) -> float:
    """Seconds that a response asks to wait: Retry-After as seconds or as an HTTP date; 0 without one."""
    text = response.headers.get("Retry-After") if response is not None else None
    try:
        return float(Retry().parse_retry_after(text)) if text else 0.0
    except urllib3.exceptions.InvalidHeader:
        return 0.0
