"""Reading YAML and JSON that people write: a key that stands twice is refused, not silently overruled."""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any

import yaml


class DuplicateKey(ValueError):
    """A mapping holds a key twice."""


class _Loader(yaml.SafeLoader):
    """SafeLoader keeps the last of several equal keys; a second `window:` far below would win unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<`: its keys may be overruled, that is what it is for
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                continue  # refused below
            if key in lines:
                raise DuplicateKey(f"line {line}: {key!r:.80} stands twice, first in line {lines[key]}")
            lines[key] = line
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Plain data of a YAML text.

    Raises:
        yaml.YAMLError: it is not YAML, or asks for more than plain data.
        DuplicateKey: a mapping holds a key twice; the message names the lines.
    """
    return yaml.load(text, _Loader)


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
