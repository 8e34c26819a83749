"""Reading YAML as `json_text` reads JSON. Imported where there is YAML to read: what relex itself wrote is JSON."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from relex_core.json_text import DuplicateKey


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
        ValueError: it is not YAML, or asks for more than plain data.
        DuplicateKey: a mapping holds a key twice; the message names the lines.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
