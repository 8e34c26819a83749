"""Damaged and hostile .pt files: every one ends in a named problem, within bounded memory, and nothing is executed."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fsdp.archive import Tamper, write_archive
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relex_core.checkpoints import pickle_machine
from relex_core.checkpoints.checkpoint import open_checkpoint
from relex_core.checkpoints.contents import Checkpoint
from relex_core.checkpoints.pickle_index import MAX_PICKLE_BYTES, LocalTensor, read_index
from relex_core.checkpoints.pickle_machine import RefusedPickle
from relex_core.checkpoints.reader import Piece, TensorReader
from relex_core.storage import open_store

FILE = "model_world_size_1_rank_0.pt"
STATE = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.arange(5), "empty": torch.zeros(0, 2)}
few = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


def opened(folder: Path) -> Checkpoint:
    store = open_store(str(folder))
    return open_checkpoint(store, list(store.list()))


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {info.filename.partition("/")[2]: file.read(info) for info in file.infolist()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save(STATE, tmp_path / FILE)
    return tmp_path


def assert_sound(folder: Path, checkpoint: Checkpoint) -> None:
    """Either something is wrong, or every tensor can be read."""
    reader = TensorReader("test", open_store(str(folder)), checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items() if not checkpoint.problems else ():
        assert tensor.nbytes == sum(extent.nbytes for extent in tensor.extents) < 1000
        reader.read([Piece(name, 0, tensor.nbytes, 0)], memoryview(bytearray(tensor.nbytes)))


def test_the_archives_of_these_tests_are_those_of_torch(saved: Path) -> None:
    """Written again by the tests' own writer, a file has the same bytes but for times, and torch loads it."""
    members = members_of(saved / FILE)
    write_archive(saved / "mine.pt", members)
    assert torch.equal(torch.load(saved / "mine.pt", weights_only=True)["a"], STATE["a"])
    (saved / FILE).unlink()
    (saved / "mine.pt").rename(saved / FILE)
    assert opened(saved).problems == []
    assert list(opened(saved).tensors) == list(STATE)


@few
@given(st.data())
def test_flipped_and_cut_files(saved: Path, data: st.DataObject) -> None:
    torch.save(STATE, saved / FILE)
    whole = bytearray((saved / FILE).read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))
    (saved / FILE).write_bytes(bytes(whole[:cut]) + data.draw(st.binary(max_size=3)))
    assert_sound(saved, opened(saved))


@few
@given(st.data())
def test_flipped_pickles_with_the_right_checksum(saved: Path, data: st.DataObject) -> None:
    """Past the checksum, so that the pickle itself is interpreted."""
    torch.save(STATE, saved / FILE)
    members = members_of(saved / FILE)
    changed = bytearray(members["data.pkl"])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(2, len(changed) - 1))] = data.draw(st.integers(0, 255))
    write_archive(saved / FILE, {**members, "data.pkl": bytes(changed)})
    assert_sound(saved, opened(saved))


NAMES = (
    b"torch._utils\n_rebuild_tensor_v2\n",
    b"collections\nOrderedDict\n",
    b"torch\nFloatStorage\n",
    b"os\nsystem\n",
)
OPERATIONS = st.one_of(
    st.sampled_from([bytes([code]) for code in pickle_machine._OPERATIONS if chr(code) not in "cqrhjKMJGX\x8a"]),
    st.sampled_from([b"c" + name for name in NAMES]),
    st.integers(0, 255).map(lambda n: b"q" + bytes([n])),
    st.integers(0, 255).map(lambda n: b"h" + bytes([n])),
    st.integers(0, 255).map(lambda n: b"K" + bytes([n])),
    st.binary(max_size=8).map(lambda b: b"\x8a" + bytes([len(b)]) + b),
    st.sampled_from(["storage", "0", "cpu", "x"]).map(lambda t: b"X" + struct.pack("<L", len(t)) + t.encode()),
    st.binary(min_size=1, max_size=3),
)


@settings(max_examples=200)
@given(st.lists(OPERATIONS, max_size=60))
def test_arbitrary_pickles(operations: list[bytes]) -> None:
    try:
        state = read_index(b"\x80\x02" + b"".join(operations) + b".")
    except RefusedPickle:
        return
    assert type(state) is dict
    assert all(isinstance(value, LocalTensor) for value in state.values())


class Attack:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("where", ["alone", "value", "key", "nested"])
def test_nothing_is_executed(tmp_path: Path, protocol: int, where: str) -> None:
    marker = tmp_path / "executed"
    call = Attack(os.system, f"touch {marker}")
    value = {"alone": call, "value": {"x": call}, "key": {"x": {call: 1}}, "nested": {"x": [({"y": call},)]}}[where]
    data = pickle.dumps(value, protocol)
    members = {"data.pkl": data, "byteorder": b"little", "data/0": bytes(8), "version": b"3\n"}
    write_archive(tmp_path / FILE, members)
    checkpoint = opened(tmp_path)
    assert f"{FILE} cannot be read: data.pkl: " in checkpoint.wrong[0]
    assert protocol != 2 or "it names 'posix.system'" in checkpoint.wrong[0]
    assert not marker.exists()
    if where != "key":
        pickle.loads(data)
        assert marker.exists(), "the attack works where pickles are executed"


def test_names_are_not_even_imported(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with pytest.raises(RefusedPickle, match=r"it names 'evil\.x'"):
            read_index(b"\x80\x02cevil\nx\n.")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<L", len(value)) + value.encode()


BOMBS = {
    "a memo index of 4 billion": b"Nr\xff\xff\xff\xff",
    "a text of 4 GiB": b"X\xff\xff\xff\xff",
    "deep nesting": b")" + b"\x85" * 90_000,
    "deep nesting as a key": b"})" + b"\x85" * 90_000 + b"Ns",
    "numbers as keys": b"}(" + b"K\x01N" * 1000 + b"u",
    "a list that holds itself": b"]q\x00h\x00a",
    "many dictionaries": b"(" + b"}" * 200_000,
    "many marks": b"(" * 200_000,
    "a dictionary filled again and again": b"}" + (text("x") + b"Ns") * 40_000,
    "a frame": b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    "a number in digits": b"I" + b"9" * 100_000 + b"\n",
    "an empty stack": b"R",
    "a call of a storage": b"ctorch\nFloatStorage\n)R",
    "an instance of a function": b"ctorch._utils\n_rebuild_tensor_v2\n)\x81",
    "a size of 10^600": b"ctorch\nSize\n\x8a\xff" + b"\x7f" * 255 + b"\x85\x85R",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fortieth of the opcodes that are really allowed, so that it does not take minutes."""
    monkeypatch.setattr(pickle_machine, "MAX_OPCODES", pickle_machine.MAX_OPCODES // 40)
    tracemalloc.start()
    with pytest.raises(RefusedPickle):
        read_index(b"\x80\x02" + BOMBS[name] + b".")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600 * 2**20 / 40


def tensor(offset: int = 0, shape: Any = (3, 4), stride: Any = (4, 1), numel: int = 12, key: str = "0") -> bytes:
    """A state dict of one float32 tensor, pickled as torch does."""

    class Stored(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", numel) if value == "the storage" else None

    import io

    stream = io.BytesIO()
    rebuild = Attack(torch._utils._rebuild_tensor_v2, "the storage", offset, shape, stride, False, {})
    Stored(stream, 2).dump({"x": rebuild})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (tensor(numel=13), "it does not fit its storage"),
        (tensor(offset=1), "it does not fit its storage"),
        (tensor(shape=(2**62, 2**62), stride=(2**62, 1)), "it does not fit its storage"),
        (tensor(shape=(4, 3), stride=(1, 4)), "is not contiguous (stride [1, 4])"),
        (tensor(shape=(3, 4), stride=(0, 1)), "is not contiguous (stride [0, 1])"),
        (tensor(key="1"), "its storage is not in"),
        (tensor(key="../version"), "its storage is not in"),
        (tensor(shape=(-3, -4)), "a size is negative"),
        (tensor(offset=-4), "a size is negative"),
        (tensor(shape=(True, 12), stride=(12, 1)), "no integer"),
        (tensor(shape=(1,) * 100, stride=(1,) * 100), "sizes are no short tuple"),
        (tensor(stride=(1,)), "different lengths"),
        (b"\x80\x02}.", None),
        (b"\x80\x02N.", "it is no state dict"),
        (b"\x80\x02}.}", "something follows its end"),
        (bytes(MAX_PICKLE_BYTES + 1), "missing or longer than"),
    ],
)
def test_tensors_that_do_not_fit_their_storage(tmp_path: Path, data: bytes, problem: str | None) -> None:
    write_archive(tmp_path / FILE, {"data.pkl": data, "byteorder": b"little", "data/0": bytes(48)})
    checkpoint = opened(tmp_path)
    assert problem is None or problem in checkpoint.wrong[0]
    assert checkpoint.tensors == {}


def test_the_pickles_of_these_tests_are_those_of_torch(tmp_path: Path) -> None:
    write_archive(tmp_path / FILE, {"data.pkl": tensor(), "byteorder": b"little", "data/0": bytes(48), "version": b"3"})
    assert opened(tmp_path).tensors["x"].shape == (3, 4)
    assert torch.load(tmp_path / FILE, weights_only=True)["x"].shape == (3, 4)


def change(index: int, **fields: Any) -> Tamper:
    return lambda entries, _: entries[index].update(fields)


def shift(index: int, **fields: int) -> Tamper:
    return lambda entries, _: entries[index].update({name: entries[index][name] + by for name, by in fields.items()})


def end(**fields: int) -> Tamper:
    return lambda _, record: record.update(fields)


LAYOUT = "does not lie as torch.save lays members out"


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        (change(2, method=8), "compressed or encrypted"),
        (change(2, flags=0x0809), "compressed or encrypted"),
        (shift(2, packed=1), "compressed or encrypted"),
        (shift(2, size=1, packed=1), LAYOUT),
        (shift(2, size=2**31, packed=2**31), LAYOUT),
        (change(2, header=0), LAYOUT),
        (shift(2, header=64), LAYOUT),
        (change(2, header=2**32 - 2), LAYOUT),
        (change(2, header=2**40, extra=struct.pack("<HHQ", 1, 8, 2**63)), LAYOUT),
        (change(2, header=2**40), "a zip64 field is missing or damaged"),
        (change(2, size=2**40, packed=2**40, extra=struct.pack("<HHQQ", 1, 16, 5, 6)), "a member is compressed"),
        (change(2, name=b"archive/data.pkl"), "two members have the same name"),
        (change(2, name=b"another/data/00"), "lies outside the archive's folder"),
        (change(2, name=b"archive/\xff\xff\xff\xff\xff\xff"), "no UTF-8 name"),
        (change(2, comment=3), "the central directory is damaged"),
        (change(2, disk=1), "the central directory is damaged"),
        (lambda entries, _: entries.append(entries[2]), LAYOUT),
        (lambda entries, _: entries.pop(1), LAYOUT),
        (lambda entries, _: entries.clear(), "the archive claims 0 members"),
        (end(count=5), "the central directory ends early"),
        (end(count=3), "the central directory is longer than its members"),
        (end(count=10**9), "the archive claims 1000000000 members"),
        (end(at=10), "the central directory is damaged"),
        (end(comment=1), "contradict each other"),
    ],
)
def test_hostile_archives(tmp_path: Path, tamper: Tamper, problem: str) -> None:
    members = {"data.pkl": tensor(), "byteorder": b"little", "data/0": bytes(48), "data/1": bytes(48)}
    write_archive(tmp_path / FILE, members)
    assert opened(tmp_path).problems == []
    write_archive(tmp_path / FILE, members, tamper)
    assert problem in opened(tmp_path).wrong[0]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_other_zip_writers(tmp_path: Path, method: int) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / FILE, "w", method) as file:
        file.writestr("archive/data.pkl", tensor())
        file.writestr("archive/data/0", bytes(48))
    assert "contradict each other" in opened(tmp_path).wrong[0]


def test_the_old_format_of_torch(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / FILE, _use_new_zipfile_serialization=False)
    assert "no end of an archive" in opened(tmp_path).incomplete[0]


def test_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    write_archive(tmp_path / FILE, {"data.pkl": tensor(), "byteorder": b"big", "data/0": bytes(48)})
    assert "its numbers are not little-endian" in opened(tmp_path).wrong[0]


def test_a_changed_pickle_does_not_have_its_checksum(tmp_path: Path) -> None:
    write_archive(tmp_path / FILE, {"data.pkl": tensor(), "data/0": bytes(48)}, change(0, crc=1))
    assert "data.pkl does not have the checksum" in opened(tmp_path).wrong[0]


def test_files_without_checksums_are_read(saved: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, saved / FILE)
    finally:
        torch.serialization.set_crc32_options(True)
    assert opened(saved).problems == []


def test_a_shard_of_terabytes_is_only_looked_at(tmp_path: Path) -> None:
    """Sizes and offsets beyond 32 bits (zip64), in a file that is a hole."""
    numel = 2**40
    members = {"data.pkl": tensor(numel=numel, shape=(numel,), stride=(1,)), "data/0": 4 * numel, "version": b"3\n"}
    write_archive(tmp_path / FILE, members)
    tracemalloc.start()
    checkpoint = opened(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert checkpoint.problems == []
    assert checkpoint.tensors["x"].nbytes == 4 * numel
    assert peak < 10 * 2**20
