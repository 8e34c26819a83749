"""Reading JSON that people write: a key that stands twice is refused, not silently overruled."""

from __future__ import annotations

import json
from typing import Any


class DuplicateKey(ValueError):
    """A mapping holds a key twice."""


def parse_json(text: str) -> Any:
    """Plain data of a JSON text.

    Raises:
        ValueError: it is not JSON.
        DuplicateKey: an object holds a key twice.
    """
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise DuplicateKey(f"{key!r:.80} stands twice in one object")
        data[key] = value
    return data
