"""Hostile input, thousands of times: whatever the bytes are, nothing but our own errors comes out, nothing outside
of a checkpoint is read, and no buffer is larger than the file it is for. Run by `make fuzz`; FUZZ_EXAMPLES=20000 for
more examples of each.

A new reader of foreign bytes gets a test here: write the bytes with `folder_of`, read them through `Watched`, and call
it inside `only_our_errors`.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import make_spec, random_weights, write_checkpoint

from relex_core.checkpoints.checkpoint import INDEX, open_checkpoint
from relex_core.checkpoints.layouts import LAYOUTS, Layout, find_steps
from relex_core.checkpoints.safetensors_file import ITEM_BYTES, parse_header, read_header
from relex_core.collect import find_window
from relex_core.errors import RelexError
from relex_core.inspect import inspect_trajectory
from relex_core.observe import observe
from relex_core.spec import load_spec, resolve_layout
from relex_core.storage import ObjectInfo
from relex_core.storage.captured import CapturedSteps, CapturedStore
from relex_core.storage.local import LocalStore
from relex_core.storage.patches import MAGIC, Block, unpack
from relex_core.storage.uri import absolute_uri
from relex_core.tables import trajectory_text

pytestmark = pytest.mark.fuzz

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "2000"))

many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
some = settings(many, max_examples=EXAMPLES // 10)  # those that write several checkpoints an example

PARSED_BYTES_A_BYTE = 256
"""Python's objects for a byte of JSON, at most: "[" alone makes a list of 56 bytes and its place in another."""


@contextlib.contextmanager
def only_our_errors() -> Iterator[None]:
    """Ours may come out, and must be printable."""
    try:
        yield
    except RelexError as error:
        assert error.exit_code in (2, 3, 4, 5)
        str(error).encode()


class Watched(LocalStore):
    """A folder that notes what is asked of it."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.reads: list[tuple[str, int]] = []

    def read_into(self, key: str, generation: int, offset: int, buffer: memoryview) -> None:
        self.reads.append((key, offset + len(buffer)))
        super().read_into(key, generation, offset, buffer)


@contextlib.contextmanager
def folder_of(files: Mapping[str, bytes]) -> Iterator[Watched]:
    """A folder with these files; afterwards no read has left them or gone beyond their ends."""
    with tempfile.TemporaryDirectory() as root:
        for name, data in files.items():
            Path(root, name).write_bytes(data)
        store = Watched(root)
        yield store
        for key, end in store.reads:
            assert key in files, "a file that was not listed"
            assert end <= len(files[key]), "more than the file holds"


# --- what hostile files look like -------------------------------------------------------------------------------------

sizes = st.one_of(st.integers(0, 64), st.sampled_from([2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, -1, 10**30]))
scalars = st.one_of(st.none(), st.booleans(), sizes, st.floats(), st.text(max_size=8))
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
)
names = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["__metadata__", "a", "a.b", "\ud800", "\x00", "../a", "/etc/passwd", "..", ".", "", "a\\b", "a/b"]
    ),
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from([*ITEM_BYTES, "F8_E4M3", "f32", ""]), anything),
        "shape": st.one_of(st.lists(sizes, max_size=5), anything),
        "data_offsets": st.one_of(st.lists(sizes, min_size=2, max_size=2), anything),
        "more": anything,
    },
)
header_texts = st.one_of(
    st.binary(max_size=200),
    anything.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(names, st.one_of(entries, anything), max_size=4).map(lambda value: json.dumps(value).encode()),
    st.integers(1, 100_000).map(lambda depth: b"[" * depth),
    st.integers(1, 10_000).map(lambda digits: b'{"a":' + b"9" * digits + b"}"),
)
lengths = st.one_of(st.integers(0, 300), st.sampled_from([2**31, 2**32, 2**63, 2**64 - 1, 100_000_000, 100_000_001]))

REAL = b"".join(
    [
        (text := json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode())
        and len(text).to_bytes(8, "little"),
        text,
        bytes(24),
    ]
)


@st.composite
def damaged(draw: st.DrawFn, data: bytes = REAL) -> bytes:
    """A real file with some bytes replaced, then cut or lengthened."""
    spoilt = bytearray(data)
    for place in draw(st.lists(st.integers(0, len(data) - 1), max_size=6)):
        spoilt[place] = draw(st.integers(0, 255))
    return bytes(spoilt[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else spoilt) + draw(
        st.binary(max_size=20)
    )


@st.composite
def claimed(draw: st.DrawFn) -> bytes:
    """A length that may be a lie, a header text, and some bytes."""
    text = draw(header_texts)
    length = len(text) if draw(st.booleans()) else draw(lengths)
    return length.to_bytes(8, "little") + text + draw(st.binary(max_size=64))


weight_files = st.one_of(damaged(), claimed(), st.binary(max_size=64))
indexes = st.one_of(
    st.binary(max_size=200),
    anything.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(names, st.one_of(names, anything), max_size=6).map(
        lambda weight_map: json.dumps({"weight_map": weight_map}).encode()
    ),
    st.integers(1, 100_000).map(lambda depth: b'{"weight_map":' + b"[" * depth),
)

# --- the readers ------------------------------------------------------------------------------------------------------


@many
@given(header_texts, st.integers(0, 2**64))
def test_header_texts(text: bytes, file_size: int) -> None:
    with only_our_errors():
        header = parse_header(text, file_size=file_size, where="here")
        end = 8 + len(text)
        for entry in header.tensors:  # accepted: then it tiles the file
            assert entry.offset == end
            end += entry.nbytes
        assert end == file_size


@many
@given(weight_files)
@example((2**64 - 1).to_bytes(8, "little"))
@example((100_000_000).to_bytes(8, "little") + b"{}")
def test_weight_files(data: bytes) -> None:
    with folder_of({"x": data}) as store, only_our_errors():
        (info,) = store.list()
        tracemalloc.start()
        try:
            read_header(store, info)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < PARSED_BYTES_A_BYTE * len(data) + (1 << 18)


@many
@given(indexes, weight_files)
def test_indexes(index: bytes, weights: bytes) -> None:
    """An index may name any file; only those listed in its own folder are read."""
    files = {INDEX: index, "a": weights, "model-00001-of-00001.safetensors": REAL}
    with folder_of(files) as store, only_our_errors():
        checkpoint = open_checkpoint(store, list(store.list()))
        for stored in checkpoint.tensors.values():
            assert stored.file.name in files
            assert all(e.offset + e.nbytes <= len(files[e.file.name]) for e in stored.extents)
        for problem in checkpoint.problems:
            problem.encode()
            assert len(problem) < 5000


@many
@given(st.lists(st.sampled_from(["..", "/", "etc", "\\", "a", ".", "global_step_2", "model.safetensors"]), max_size=6))
def test_a_weight_map_that_points_outside_its_folder(parts: list[str]) -> None:
    index = json.dumps({"weight_map": {"a": "".join(parts)}}).encode()
    with folder_of({INDEX: index, "model.safetensors.1": REAL}) as store, only_our_errors():
        checkpoint = open_checkpoint(store, list(store.list()))
        assert checkpoint.problems and not checkpoint.tensors


folder_names = st.one_of(
    st.text(max_size=20),
    st.from_regex(r"(global_step|checkpoint|step|iter|tmp_step)[_-]?[0-9]{0,20}(_hf)?", fullmatch=True),
    st.integers(1, 500).map(lambda digits: "step_" + "9" * digits),
)
inner_names = st.one_of(
    st.sampled_from(
        ["", "actor/huggingface/model.safetensors", "policy/weights/.metadata", "STABLE", "model.safetensors"]
    ),
    st.text(max_size=20),
)


@many
@given(
    st.lists(st.tuples(folder_names, inner_names), max_size=8),
    st.one_of(st.none(), st.text("{}*step_-iter0(.[+", max_size=12), st.just("*{step}*")),
)
def test_listings(paths: list[tuple[str, str]], template: str | None) -> None:
    layouts: tuple[Layout, ...] = LAYOUTS
    with only_our_errors():
        if template is not None:
            layouts = (Layout("own", resolve_layout(template).step_folder, ""),)
        found = find_steps([ObjectInfo("/".join(path), 1, 1) for path in paths], layouts)
        steps = [folder.step for folder in found.steps]
        assert steps == sorted(set(steps)) and all(0 <= step < 10**15 for step in steps)


SMALL = random_weights(a=(2, 3))


@some
@given(
    config=st.one_of(anything.map(lambda value: json.dumps(value).encode()), st.binary(max_size=40)),
    state=st.one_of(anything.map(lambda value: json.dumps(value).encode()), st.binary(max_size=40)),
    field=anything,
    last=st.one_of(st.binary(max_size=100), st.integers(1, 500).map(lambda digits: b"9" * digits)),
    weights=weight_files,
)
def test_trajectories(config: bytes, state: bytes, field: Any, last: bytes, weights: bytes) -> None:
    """Everything around the weights, too: configs, trainer states, last-step files; through collect and inspect."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_checkpoint(root / "base", SMALL)
        for step in (1, 2, 3):
            write_checkpoint(root / f"checkpoint-{step}", SMALL)
            (root / f"checkpoint-{step}" / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
        (root / "checkpoint-1" / "config.json").write_bytes(config)
        (root / "checkpoint-2" / "trainer_state.json").write_bytes(state)
        (root / "checkpoint-3" / "model.safetensors").write_bytes(weights)
        with only_our_errors():
            find_window(make_spec(root, t_cut=3))
        with only_our_errors():
            trajectory_text(inspect_trajectory(str(root))).encode()
        (root / "checkpoint-2" / "trainer_state.json").write_text(json.dumps({"global_step": field}))
        with only_our_errors():
            observe(str(root))
        verl = root / "verl"
        write_checkpoint(verl / "global_step_1" / "actor" / "huggingface", SMALL)
        (verl / "latest_checkpointed_iteration.txt").write_bytes(last)
        with only_our_errors():
            observe(str(verl))


@many
@given(
    st.one_of(
        st.text(max_size=200),
        st.dictionaries(
            st.sampled_from(["base", "trajectory", "window", "layout", "fit", "t_cut", "step_folder"]),
            anything,
            max_size=5,
        ).map(lambda data: json.dumps(data, ensure_ascii=True)),
    ),
    st.sampled_from(["s.yaml", "s.json"]),
)
@example("&a [*a]", "s.yaml")
@example("? {a: 1}\n: 2", "s.yaml")
@example("? !!set {a}\n: 2", "s.yaml")
@example("{<<: [1]}", "s.yaml")
def test_specs(text: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with only_our_errors():
            load_spec(path)


@many
@given(st.one_of(st.text(max_size=40), st.text("gs:/file.~%20", max_size=30)))
def test_locations(uri: str) -> None:
    with only_our_errors():
        found = absolute_uri(uri, Path("/specs"))
        assert absolute_uri(found, Path("/")) == found
        assert ".." not in found.split("/")


# --- captured steps ---------------------------------------------------------------------------------------------------

CAPTURED_NAME = "step-000000000002.relexpatch"
blocks = st.one_of(
    st.tuples(st.sampled_from(["raw", "zstd", "patch", "same", "x"]), sizes, st.one_of(st.just(0), sizes)), anything
)
captured_files = st.fixed_dictionaries(
    {},
    optional={
        "name": names,
        "size": sizes,
        "crc32c": st.text(max_size=8),
        "blocks": st.one_of(st.lists(blocks, max_size=3), anything),
    },
)
indexes = st.fixed_dictionaries(
    {"step": sizes, "source": st.just("s"), "layout": st.just("verl"), "depth": st.one_of(st.integers(0, 3), sizes)},
    optional={
        "parent": st.one_of(st.none(), st.just(CAPTURED_NAME), names),
        "parent_crc32c": st.one_of(st.none(), st.text(max_size=8)),
        "files": st.lists(captured_files, max_size=2),
    },
)


@many
@given(
    st.binary(max_size=100),
    st.one_of(st.binary(max_size=100), indexes.map(lambda value: json.dumps(value).encode())),
    st.one_of(st.none(), sizes),
)
def test_captured_steps(body: bytes, text: bytes, length: int | None) -> None:
    """Any body, any index, any claim about its length: what can be listed is read to its end."""
    claimed = (len(text) if length is None else length % 2**64).to_bytes(8, "little")
    with folder_of({CAPTURED_NAME: body + text + claimed + MAGIC}) as store, only_our_errors():
        captured = CapturedStore(f"{store.uri}/{CAPTURED_NAME}", CapturedSteps(store))
        for info in captured.list():
            if info.size <= 2**22:
                captured.read_into(info.name, info.generation, 0, memoryview(bytearray(info.size)))


@many
@given(st.binary(max_size=300), st.sampled_from(["raw", "zstd", "patch", "same"]), st.binary(max_size=300), sizes)
def test_stored_blocks(data: bytes, kind: Literal["raw", "zstd", "patch", "same"], earlier: bytes, size: int) -> None:
    """Unpacking never gives anything but a block of the promised size and checksum."""
    with only_our_errors():
        content = unpack(Block(kind, len(data), 0), data, earlier, size, "here")
        assert len(content) == size
