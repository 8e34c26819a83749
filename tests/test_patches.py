"""Captured steps as files: blocks, patches, hostile indexes, and reading them as if the originals were there."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from relex_core.errors import CheckpointChanged, DataError, ObjectNotFound, RelexError, StorageError
from relex_core.storage import open_store, open_stores, write_bytes
from relex_core.storage.base import ObjectInfo
from relex_core.storage.captured import CapturedSteps
from relex_core.storage.patches import (
    BLOCK_BYTES,
    MAGIC,
    Block,
    CapturedFile,
    PatchIndex,
    checksum,
    encode_index,
    pack,
    parse_index,
    read_index,
    unpack,
)


def changed(data: bytes, share: float, seed: int) -> bytes:
    """`data` with about this share of its bytes replaced."""
    rng = random.Random(seed)
    out = bytearray(data)
    for _ in range(int(len(data) * share)):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def name_of(step: int) -> str:
    return f"step-{step:012d}.relexpatch"


def write_step(folder: Path, step: int, files: dict[str, bytes], parent: int | None = None) -> str:
    """Write one captured step by hand, against `parent`; returns its URI."""
    store = open_store(str(folder))
    earlier = {}
    parent_sum, depth = None, 0
    if parent is not None:
        steps = CapturedSteps(store)
        opened = steps.step(name_of(parent))
        parent_sum, depth = opened.index_checksum, opened.index.depth + 1
        for name, file in opened.files.items():
            earlier[name] = [steps.block(name_of(parent), name, number) for number in range(len(file.blocks))]
    body, captured = b"", []
    for name, data in files.items():
        blocks = []
        for number, start in enumerate(range(0, len(data), BLOCK_BYTES)):
            before = earlier.get(name, [])
            block, stored = pack(
                memoryview(data)[start : start + BLOCK_BYTES], before[number] if number < len(before) else None
            )
            blocks.append(block)
            body += stored
        captured.append(CapturedFile(name=name, size=len(data), crc32c="x", blocks=tuple(blocks)))
    index = PatchIndex(
        step=step,
        source="somewhere",
        layout="verl",
        parent=None if parent is None else name_of(parent),
        parent_crc32c=parent_sum,
        depth=depth,
        files=tuple(captured),
    )
    write_bytes(store, name_of(step), body + encode_index(index))
    return str(folder / name_of(step))


def read_all(store: object, info: ObjectInfo) -> bytes:
    buffer = bytearray(info.size)
    store.read_into(info.name, info.generation, 0, memoryview(buffer))  # type: ignore[attr-defined]
    return bytes(buffer)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000), st.one_of(st.none(), st.binary(max_size=3000)), st.booleans())
def test_a_block_comes_back_as_it_was(data: bytes, earlier: bytes | None, same: bool) -> None:
    earlier = data if same and data else earlier
    block, stored = pack(memoryview(data), earlier)
    assert len(stored) == block.stored <= max(len(data), 0)
    assert unpack(block, stored, earlier, len(data), "here") == data


def test_the_shortest_way_is_taken() -> None:
    noise = random.Random(0).randbytes(BLOCK_BYTES)
    assert pack(memoryview(noise), None)[0].kind == "raw"
    assert pack(memoryview(bytes(BLOCK_BYTES)), None)[0].kind == "zstd"
    assert pack(memoryview(noise), noise) == (Block("same", 0, pack(memoryview(noise), None)[0].crc32c), b"")
    patch, stored = pack(memoryview(changed(noise, 0.01, 1)), noise)
    assert patch.kind == "patch" and len(stored) < BLOCK_BYTES / 15
    assert pack(memoryview(random.Random(1).randbytes(BLOCK_BYTES)), noise)[0].kind == "raw"


def test_steps_are_folders_with_the_files_as_they_were(tmp_path: Path) -> None:
    first = {"a.bin": random.Random(0).randbytes(3 * BLOCK_BYTES + 17), "empty": b"", "b.json": b"{}"}
    second = {**first, "a.bin": changed(first["a.bin"], 0.01, 1)}
    third = {"a.bin": changed(second["a.bin"], 0.01, 2)[: 2 * BLOCK_BYTES + 5], "new": b"only here"}
    uris = [
        write_step(tmp_path, 1, first),
        write_step(tmp_path, 2, second, parent=1),
        write_step(tmp_path, 5, third, parent=2),
    ]
    for stores in (open_stores(uris), [open_store(uri) for uri in uris], open_stores(uris[::-1])[::-1]):
        for store, files in zip(stores, (first, second, third), strict=True):
            listed = list(store.list())
            assert [info.name for info in listed] == sorted(files)
            assert {info.name: read_all(store, info) for info in listed} == files
    whole, patched = (Path(uri).stat().st_size for uri in uris[:2])
    assert patched < whole / 10


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_range_is_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("ranges")
    content = random.Random(0).randbytes(2 * BLOCK_BYTES + 100)
    newer = changed(content, 0.001, 3)
    write_step(folder, 1, {"f": content})
    store = open_store(write_step(folder, 2, {"f": newer}, parent=1))
    info = store.stat("f")
    for _ in range(5):
        start = data.draw(st.integers(0, len(newer)))
        stop = data.draw(st.integers(start, len(newer)))
        buffer = bytearray(stop - start)
        store.read_into("f", info.generation, start, memoryview(buffer))
        assert buffer == newer[start:stop]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    store = open_store(write_step(tmp_path, 1, {"f": b"abc"}))
    info = store.stat("f")
    with pytest.raises(ObjectNotFound):
        store.stat("g")
    with pytest.raises(StorageError, match="ends at byte 3"):
        store.read_into("f", info.generation, 1, memoryview(bytearray(3)))
    with pytest.raises(CheckpointChanged, match="replaced"):
        store.read_into("f", info.generation + 1, 0, memoryview(bytearray(3)))
    for write in (store.create, lambda key, _: store.open_write(key), lambda key, _: store.delete(key)):
        with pytest.raises(StorageError, match="not written to"):
            write("f", b"")


def test_a_chain_whose_parent_is_gone_or_replaced_is_refused(tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(BLOCK_BYTES)
    parent = Path(write_step(tmp_path, 1, {"f": noise}))
    uri = write_step(tmp_path, 2, {"f": changed(noise, 0.01, 1)}, parent=1)
    write_step(tmp_path, 1, {"f": changed(noise, 0.5, 2)})
    store = open_store(uri)
    with pytest.raises(DataError, match="was replaced"):
        read_all(store, store.stat("f"))
    parent.unlink()
    store = open_store(uri)
    with pytest.raises(DataError, match="is gone") as caught:
        read_all(store, store.stat("f"))
    assert not isinstance(caught.value, CheckpointChanged), "else a file that a trainer is writing"


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(BLOCK_BYTES)
    uri = Path(write_step(tmp_path, 1, {"f": noise}))
    damaged = bytearray(uri.read_bytes())
    damaged[1000] ^= 1
    uri.write_bytes(damaged)
    store = open_store(str(uri))
    with pytest.raises(DataError, match="checksum"):
        read_all(store, store.stat("f"))


def test_an_original_is_known_by_its_checksum_or_else_by_its_generation() -> None:
    copied = CapturedFile(name="f", size=5, crc32c="x", generation=7, blocks=(Block("raw", 5, 0),))
    assert copied.copies(ObjectInfo("f", 5, 8, "x")), "uploaded again"
    assert not copied.copies(ObjectInfo("f", 5, 7, "y"))
    assert copied.copies(ObjectInfo("f", 5, 7))
    assert not copied.copies(ObjectInfo("f", 5, 8))
    of_an_earlier_version = copied.model_copy(update={"generation": None})
    assert of_an_earlier_version.copies(ObjectInfo("f", 5, 8))
    assert not of_an_earlier_version.copies(ObjectInfo("f", 6, 8))


def one_file(**changes: object) -> PatchIndex:
    data = {
        "step": 1,
        "source": "s",
        "layout": "verl",
        "parent": None,
        "parent_crc32c": None,
        "depth": 0,
        "files": [{"name": "f", "size": 5, "crc32c": "x", "blocks": [["raw", 5, 0]]}],
    }
    return PatchIndex.model_validate({**data, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"files": [{"name": "../f", "size": 5, "crc32c": "x", "blocks": [["raw", 5, 0]]}]},
        {"files": [{"name": "f", "size": 5, "crc32c": "x", "blocks": []}]},
        {"files": [{"name": "f", "size": 2**52, "crc32c": "x", "blocks": [["zstd", 5, 0]]}]},
        {"files": [{"name": "f", "size": 5, "crc32c": "x", "blocks": [["raw", 4, 0]]}]},
        {"files": [{"name": "f", "size": 5, "crc32c": "x", "blocks": [["patch", 4, 0]]}]},
        {"files": [{"name": "f", "size": 5, "crc32c": "x", "blocks": [["raw", -1, 0]]}]},
        {"files": [{"name": "f", "size": 0, "crc32c": "x", "blocks": []}] * 2},
        {"step": 10**400},
        {"depth": 3},
        {"parent": "step-000000000001.relexpatch", "parent_crc32c": "0", "depth": 0},
        {"parent": "step-\0", "parent_crc32c": "0", "depth": 1},
    ],
    ids=[
        *("outside", "no blocks", "too few", "raw size", "orphan", "negative", "twice", "400 digits", "depth"),
        *("parent", "no step's name"),
    ],
)
def test_indexes_that_contradict_themselves_are_refused(changes: dict[str, object]) -> None:
    text = one_file().model_copy(update=changes).model_dump_json(warnings=False)
    with pytest.raises(DataError, match="not valid"):
        parse_index(text.encode(), "here")


def test_a_patch_that_unpacks_to_more_than_it_declares_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(2**26))
    small = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2**26))
    for data in (bomb, small, b"no frame at all"):
        with pytest.raises(DataError, match="unpack"):
            unpack(Block("zstd", len(data), 0), data, None, 5, "here")


@pytest.mark.parametrize("length", [0, 1, 10, 2**40, 2**63])
def test_a_trailer_that_lies_is_refused(tmp_path: Path, length: int) -> None:
    index = one_file().model_dump_json().encode()
    store = open_store(str(tmp_path))
    write_bytes(store, "f", b"12345" + index + length.to_bytes(8, "little") + MAGIC)
    with pytest.raises(DataError):
        read_index(store, store.stat("f"))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 1))
def test_bytes_that_are_no_captured_step_are_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, ending: int
) -> None:
    store = open_store(str(tmp_path_factory.mktemp("x")))
    tail = len(data).to_bytes(8, "little") + MAGIC if ending else b""
    write_bytes(store, "f", data + tail)
    with pytest.raises(RelexError):
        read_index(store, store.stat("f"))


def test_a_ring_of_parents_ends(tmp_path: Path) -> None:
    """Two steps that name each other as parent (checksums cannot match; depth forbids it besides)."""
    store = open_store(str(tmp_path))
    patch = [{"name": "f", "size": 5, "crc32c": "x", "blocks": [["same", 0, 0]]}]
    for step, other in ((1, 2), (2, 1)):
        index = one_file(step=step, parent=name_of(other), parent_crc32c=checksum(b""), depth=1, files=patch)
        write_bytes(store, name_of(step), encode_index(index))
    opened = open_store(str(tmp_path / name_of(1)))
    for read in (lambda: read_all(opened, opened.stat("f")), lambda: list(opened.list())):
        with pytest.raises(RelexError):
            read()
