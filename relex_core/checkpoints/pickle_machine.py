"""A pickle read as data: its opcodes are followed, nothing that it names is imported, called or built.

There is no unpickler here. Values are None, bool, int, float, str, tuple, list, dict, and two stand-ins: `Name` for
something that the pickle names, `Record` for an instance that it describes. What a call means is decided by the
caller's table of names; any other name, and every opcode that torch.save does not write, is refused.

What a hostile pickle could still do is bounded. Dictionaries have text as keys: hashing a deeply nested tuple would
overflow the stack, and integers can be chosen to collide. The memo is a dictionary, where the C unpickler allocates an
array up to the highest index named. No opcode multiplies what it is given; no value is compared, printed or walked
through here. The number of opcodes, each of which makes at most one small object, is limited.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

# torch.save writes about 120 opcodes for a sharded tensor.
MAX_OPCODES = 4_000_000

PROTO, STOP = 0x80, ord(".")
PROTOCOL = 2  # torch.save's


class RefusedPickle(ValueError):
    """The pickle is damaged, or holds what is not allowed."""


@dataclass(frozen=True, slots=True, eq=False)
class Name:
    """Something that the pickle names, "module.attribute"."""

    name: str


@dataclass(slots=True, eq=False)
class Record:
    """An instance that the pickle describes."""

    of: str
    arguments: tuple[Any, ...]
    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Vocabulary:
    """What a pickle may name, and what its calls mean."""

    calls: Mapping[str, Callable[[tuple[Any, ...]], Any]]
    records: Collection[str]
    names: Collection[str]
    """Named, but neither called nor instantiated."""
    storage: Callable[[Any], Any]
    """Meaning of a persistent id."""

    def name(self, name: str) -> Name:
        if name in self.calls or name in self.records or name in self.names:
            return Name(name)
        raise RefusedPickle(f"it names {name[:100]!r}, which is not part of what is read here")


def interpret(data: bytes, vocabulary: Vocabulary) -> Any:
    """The value that a pickle describes.

    Raises:
        RefusedPickle: it is damaged, names something else than `vocabulary` has, or is too long.
    """
    if data[:2] != bytes([PROTO, PROTOCOL]):
        raise RefusedPickle(f"it does not begin as a pickle of protocol {PROTOCOL}")
    machine = _Machine(data, vocabulary)
    try:
        for _ in range(MAX_OPCODES):
            code = data[machine.at]
            machine.at += 1
            if code == STOP:
                return machine.result()
            _OPERATIONS[code](machine)
    except KeyError as error:
        raise RefusedPickle(f"opcode or memo {error} is not there, or not allowed") from None
    except (IndexError, TypeError, AttributeError, struct.error, UnicodeError) as error:
        raise RefusedPickle(f"it is damaged ({type(error).__name__})") from None
    raise RefusedPickle(f"it has more than {MAX_OPCODES} opcodes")


class _Machine:
    """The stack, the memo, and the place in the data."""

    def __init__(self, data: bytes, vocabulary: Vocabulary) -> None:
        self.data, self.vocabulary, self.at = data, vocabulary, 2
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        if self.at != len(self.data) or len(self.stack) != 1 or self.marked:
            raise RefusedPickle("something follows its end, or is left on its stack")
        return self.stack[0]

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self.at += count
        if self.at > len(self.data):
            raise RefusedPickle("it is cut off")
        return self.data[self.at - count : self.at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def line(self) -> str:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise RefusedPickle("it is cut off")
        line, self.at = self.data[self.at : end], end + 1
        return line.decode()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        """The values above the last mark."""
        values, self.stack = self.stack, self.marked.pop()
        return values

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def find(self) -> None:
        self.stack.append(self.vocabulary.name(f"{self.line()}.{self.line()}"))

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        call = self.vocabulary.calls.get(function.name) if type(function) is Name else None
        if call is None or type(arguments) is not tuple:
            raise RefusedPickle("it calls what may not be called")
        self.stack.append(call(arguments))

    def new(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if type(kind) is not Name or kind.name not in self.vocabulary.records or type(arguments) is not tuple:
            raise RefusedPickle("it makes an instance of what may not be one")
        self.stack.append(Record(kind.name, arguments))

    def build(self) -> None:
        """Give a record its state; that of a dictionary (attributes of an OrderedDict) is dropped."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Record and type(state) is dict:
            target.state = state
        elif type(target) is not dict:
            raise RefusedPickle("it sets the state of what has none")

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(pairs) % 2 or not all(type(key) is str for key in pairs[::2]):
            raise RefusedPickle("it fills no dictionary, or one whose keys are not text")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise RefusedPickle("it appends to no list")
        target.extend(values)

    def make_tuple(self, count: int) -> None:
        values = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def remember(self, width: int) -> None:
        self.memo[self.number(width)] = self.stack[-1]

    def recall(self, width: int) -> None:
        self.stack.append(self.memo[self.number(width)])


_OPERATIONS: dict[int, Callable[[_Machine], None]] = {
    ord("("): _Machine.mark,
    ord("c"): _Machine.find,
    ord("R"): _Machine.reduce,
    0x81: _Machine.new,
    ord("b"): _Machine.build,
    ord("Q"): lambda m: m.push(m.vocabulary.storage(m.stack.pop())),
    ord("q"): lambda m: m.remember(1),
    ord("r"): lambda m: m.remember(4),
    ord("h"): lambda m: m.recall(1),
    ord("j"): lambda m: m.recall(4),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.number(1)),
    ord("M"): lambda m: m.push(m.number(2)),
    ord("J"): lambda m: m.push(int.from_bytes(m.take(4), "little", signed=True)),
    0x8A: lambda m: m.push(int.from_bytes(m.take(m.number(1)), "little", signed=True)),
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    ord("X"): lambda m: m.push(m.take(m.number(4)).decode()),
    ord(")"): lambda m: m.push(()),
    ord("]"): lambda m: m.push([]),
    ord("}"): lambda m: m.push({}),
    ord("t"): lambda m: m.push(tuple(m.pop_mark())),
    0x85: lambda m: m.make_tuple(1),
    0x86: lambda m: m.make_tuple(2),
    0x87: lambda m: m.make_tuple(3),
    ord("a"): lambda m: m.append([m.stack.pop()]),
    ord("e"): lambda m: m.append(m.pop_mark()),
    ord("s"): _Machine.set_item,
    ord("u"): lambda m: m.set_items(m.pop_mark()),
}
