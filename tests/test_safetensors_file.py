"""The safetensors reader and writer, against the real library in both directions and against hostile files."""

from __future__ import annotations

import json
import math
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, load_file, save, save_file

from relex_core.checkpoints.reader import Piece, open_files_reader
from relex_core.checkpoints.safetensors_file import (
    ITEM_BYTES,
    Header,
    TornFile,
    build_header,
    parse_header,
    read_header,
)
from relex_core.checkpoints.writer import safetensors_writer
from relex_core.errors import DataError, RelexError
from relex_core.storage import open_store

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def header_of(data: bytes, folder: Path) -> Header:
    """What the reader makes of a file with these bytes."""
    (folder / "x.safetensors").write_bytes(data)
    store = open_store(str(folder))
    return read_header(store, store.stat("x.safetensors"))


def file_with(header: object, body: int = 0) -> bytes:
    """A file with this header (text, or data to spell as JSON) and `body` zero bytes of tensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(body)


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


tensors_strategy = st.dictionaries(
    st.text(min_size=1, max_size=20).filter(lambda n: n != "__metadata__"),
    st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=4)),
    min_size=1,
    max_size=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(tensors_strategy, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
def test_reads_what_the_real_library_writes(
    tmp_path: Path, described: dict[str, tuple[str, list[int]]], metadata: dict[str, str]
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randint(0, 2, shape, generator=generator).to(DTYPES[dtype])
        for name, (dtype, shape) in described.items()
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    store = open_store(str(tmp_path))
    info = store.stat("x.safetensors")
    header = read_header(store, info)
    assert {e.name: (e.dtype, list(e.shape)) for e in header.tensors} == described
    assert dict(header.metadata) == metadata
    reader = open_files_reader("test", store, [info])
    for found in header.tensors:
        data = bytearray(found.nbytes)
        reader.read([Piece(found.name, 0, found.nbytes, 0)], memoryview(data))
        assert bytes(data) == tensors[found.name].contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(tensors_strategy)
def test_the_real_library_reads_what_we_write(tmp_path: Path, described: dict[str, tuple[str, list[int]]]) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: torch.randint(0, 2, shape, generator=generator).to(DTYPES[dtype])
        for name, (dtype, shape) in described.items()
    }
    store = open_store(str(tmp_path))
    listing = [(name, dtype, tuple(shape)) for name, (dtype, shape) in described.items()]
    with safetensors_writer(store, "sub/y.safetensors", listing, {"format": "pt"}) as stream:
        for tensor in tensors.values():
            stream.write(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    path = tmp_path / "sub/y.safetensors"
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0  # tensors are aligned
    assert [e.name for e in read_header(store, store.stat("sub/y.safetensors")).tensors if e.numel] == [
        name for name, tensor in tensors.items() if tensor.numel()
    ]


@pytest.mark.parametrize("written", [4, 12])
def test_a_file_with_other_bytes_than_promised_never_appears(tmp_path: Path, written: int) -> None:
    store = open_store(str(tmp_path))
    with (
        pytest.raises(ValueError, match=f"{written} bytes of tensors written, 8 promised"),
        safetensors_writer(store, "y.safetensors", [("a", "F32", (2,))], {}) as stream,
    ):
        stream.write(bytes(written))
    assert list(tmp_path.iterdir()) == []


def test_a_header_longer_than_the_first_read_is_read_whole(tmp_path: Path) -> None:
    tensors = {f"layer.{number}.{'x' * 100}": torch.tensor([number]) for number in range(2000)}
    data = save(tensors)
    header = header_of(data, tmp_path)
    assert {e.name for e in header.tensors} == set(tensors)
    assert header.tensors[0].offset == 8 + int.from_bytes(data[:8], "little")


ENTRY = json.dumps(entry()).encode()

HOSTILE = {
    "not JSON": file_with(b"{]", 4),
    "no JSON at all": file_with(b"    ", 4),
    "a list": file_with([], 0),
    "a number": file_with(1, 0),
    "UTF-16": file_with(json.dumps({"a": entry()}).encode("utf-16-le"), 4),
    "a byte order mark": file_with(b"\xef\xbb\xbf" + json.dumps({"a": entry()}).encode(), 4),
    "not UTF-8": file_with(b'{"\xff":1}', 0),
    "a name that is no text": file_with(rb'{"\ud800":%s}' % ENTRY, 4),
    "the same name twice": file_with(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        4,
    ),
    "a field twice": file_with(b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4),
    "overlap": file_with({"a": entry(), "b": entry(offsets=(2, 6))}, 6),
    "the same bytes twice": file_with({"a": entry(), "b": entry()}, 4),
    "a gap": file_with({"a": entry(), "b": entry(offsets=(8, 12))}, 12),
    "a gap before the first tensor": file_with({"a": entry(offsets=(4, 8))}, 8),
    "bytes after the last tensor": file_with({"a": entry()}, 5),
    "bytes and no tensor": file_with({}, 1),
    "backward offsets": file_with({"a": entry(offsets=(4, 0))}, 4),
    "negative offsets": file_with({"a": entry(offsets=(-4, 0))}, 4),
    "three offsets": file_with({"a": entry(offsets=(0, 4, 4))}, 4),
    "one offset": file_with({"a": entry(offsets=(4,))}, 4),
    "offsets that are no list": file_with({"a": entry(offsets="04")}, 4),
    "shape and size that disagree": file_with({"a": entry(shape=(2,))}, 4),
    "dtype and size that disagree": file_with({"a": entry(dtype="BF16")}, 4),
    "a negative size": file_with({"a": entry(shape=(-1, -1))}, 4),
    "a size beyond 63 bits": file_with({"a": entry(shape=(2**63,), offsets=(0, 2**65))}, 0),
    "a size of 5000 digits": file_with(b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % (b"9" * 5000), 4),
    "a product beyond all memory": file_with({"a": entry(shape=[2**62] * 64)}, 4),
    "a product that takes an hour": file_with({"a": entry(shape=[2**62] * 500_000)}, 4),
    "a boolean size": file_with({"a": entry(shape=[True])}, 4),
    "a float size": file_with({"a": entry(shape=[1.0])}, 4),
    "a float offset": file_with({"a": entry(offsets=[0, 4.0])}, 4),
    "a size in quotes": file_with({"a": entry(shape=["1"])}, 4),
    "NaN": file_with(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', 4),
    "a size of null": file_with({"a": entry(shape=None)}, 4),
    "an unknown dtype": file_with({"a": entry(dtype="F8_E4M3", offsets=(0, 1))}, 1),
    "a dtype that is no text": file_with({"a": {**entry(), "dtype": ["F32"]}}, 4),
    "an entry that is no object": file_with({"a": [0, 4]}, 4),
    "an entry without shape": file_with({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, 4),
    "an entry with another field": file_with({"a": {**entry(), "more": 1}}, 4),
    "deep nesting": file_with(b"[" * 200_000 + b"]" * 200_000, 0),
    "deep nesting in an entry": file_with(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 0),
    "metadata that is no map": file_with({"__metadata__": [], "a": entry()}, 4),
    "metadata of numbers": file_with({"__metadata__": {"x": 1}, "a": entry()}, 4),
    "a header longer than any": (2**63).to_bytes(8, "little") + bytes(100),
}

TORN = {
    "empty": b"",
    "half a length": bytes(5),
    "a header longer than the object": file_with({"a": entry()}, 4)[:30],
    "only the length": file_with({"a": entry()}, 4)[:8],
    "no tensors": file_with({"a": entry()}, 0),
    "reserved, nothing written": bytes(100),
    "reserved, only the length written": file_with(bytes(64), 4),
    "one byte short": file_with({"a": entry()}, 3),
    "an offset far out of range": file_with({"a": entry(shape=(2**40,), offsets=(0, 2**42))}, 4),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, data: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        header_of(data, tmp_path)
    assert not isinstance(caught.value, TornFile)  # waiting would not help
    assert str(tmp_path) in caught.value.where
    assert len(str(caught.value)) < 4000
    str(caught.value).encode()  # can be printed
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("data", TORN.values(), ids=TORN)
def test_short_files_are_torn(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(TornFile):
        header_of(data, tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        (99_000_000).to_bytes(8, "little") + bytes(100),
        (2**62).to_bytes(8, "little") + bytes(100),
        file_with({"a": entry(shape=(2**40,), offsets=(0, 2**42))}, 4),
    ],
)
def test_nothing_is_allocated_by_the_word_of_a_header(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    store = open_store(str(tmp_path))
    info = store.stat("x.safetensors")
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read_header(store, info)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_tensors_of_no_elements_are_no_overlap(tmp_path: Path) -> None:
    tensors = {"empty": torch.zeros(0, 3), "full": torch.ones(2), "also": torch.zeros(4, 0)}
    header = header_of(save(tensors), tmp_path)
    assert {e.name: e.shape for e in header.tensors} == {"empty": (0, 3), "full": (2,), "also": (4, 0)}


VALID = save({"a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "b": torch.ones(3)}, {"format": "pt"})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.data())
def test_random_damage_gives_a_sound_header_or_a_refusal(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        if data.draw(st.booleans()):
            damaged[at] = data.draw(st.sampled_from(list(b'{}[]",:0123456789eE-.\x00\xff\\ x')))
        else:
            del damaged[at : at + data.draw(st.integers(1, 20))]
    try:
        header = header_of(bytes(damaged), tmp_path)
    except DataError:
        return
    # Whatever is accepted tiles the file exactly.
    end = 8 + int.from_bytes(damaged[:8], "little")
    for found in header.tensors:
        assert found.offset == end
        assert found.nbytes == math.prod(found.shape) * ITEM_BYTES[found.dtype]
        end += found.nbytes
    assert end == len(damaged)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(sorted(ITEM_BYTES)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(sorted(ITEM_BYTES)) | json_values,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 30), min_size=2, max_size=2) | json_values,
    }
)


@settings(max_examples=300)
@given(st.dictionaries(st.text(max_size=5), entries | json_values, max_size=4), st.integers(0, 200))
def test_any_json_gives_a_header_or_a_refusal(header: dict[str, Any], body: int) -> None:
    text = json.dumps(header).encode()
    try:
        parse_header(text, file_size=8 + len(text) + body, where="file")
    except RelexError as error:
        assert isinstance(error, DataError)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_give_a_header_or_a_refusal(text: bytes, body: int) -> None:
    try:
        parse_header(text, file_size=8 + len(text) + body, where="file")
    except RelexError as error:
        assert isinstance(error, DataError)


@settings(max_examples=100)
@given(tensors_strategy)
def test_what_we_accept_the_real_library_accepts(described: dict[str, tuple[str, list[int]]]) -> None:
    listing = [(name, dtype, tuple(shape)) for name, (dtype, shape) in described.items()]
    head = build_header(listing, {})
    body = bytes(sum(math.prod(shape) * ITEM_BYTES[dtype] for _, dtype, shape in listing))
    parsed = parse_header(head[8:], file_size=len(head) + len(body), where="file")
    assert {(e.name, e.dtype, e.shape) for e in parsed.tensors} == set(listing)
    assert {name: tuple(tensor.shape) for name, tensor in load(head + body).items()} == {n: s for n, _, s in listing}


def test_equal_headers_are_checked_against_each_files_own_size_and_name() -> None:
    text = file_with({"a": entry(), "b": entry(dtype="F31")})[8:]
    for name in ("first", "second"):
        with pytest.raises(DataError) as caught:
            parse_header(text, file_size=8 + len(text) + 4, where=name)
        assert caught.value.where == f"{name}, tensor b"
    text = file_with({"a": entry()})[8:]
    assert parse_header(text, file_size=8 + len(text) + 4, where="whole").tensors[0].name == "a"
    with pytest.raises(TornFile) as torn:
        parse_header(text, file_size=8 + len(text) + 3, where="torn")
    assert torn.value.where == "torn"
