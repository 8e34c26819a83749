"""Reading YAML as `json_text` reads JSON. Imported where there is YAML to read: what relex itself wrote is JSON."""

from __future__ import annotations

import re
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


# YAML 1.1, which SafeLoader speaks, reads 010 as 8 (octal) and 1:10 as 70 (sixtieths). Here numbers are decimal, as in
# YAML 1.2 but for what that would newly take for a number: 010, 1:10, 0x10 and 1e-2 are text. The spec reads 010 and
# 1e-2 where a number is due, and refuses the others by the field's name.
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_DECIMAL_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)$")
_DECIMAL_FLOAT = re.compile(
    r"([-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)?|\.[0-9][0-9_]*([eE][-+][0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, _DECIMAL_INT, list("-+0123456789"))
_Loader.add_implicit_resolver(_FLOAT, _DECIMAL_FLOAT, list("-+0123456789."))


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
