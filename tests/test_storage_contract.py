"""One contract for every storage backend: what relex relies on, asked of a folder and of a real fake-gcs-server."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from gcs.server import fake_gcs, new_bucket  # noqa: F401
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from relex_core.errors import CheckpointChanged, ObjectExists, ObjectNotFound, SpecError, StorageError
from relex_core.storage import Store, absolute_uri, exists, join_uri, open_store, read_bytes, write_bytes
from relex_core.storage.atomic import PARTIAL
from relex_core.storage.base import ObjectInfo
from relex_core.storage.local import WRITE_BACK_BYTES

ODD_NAMES = (
    "with space.json",
    "ünïcödé-Δσ.txt",
    "percent%20sign",
    "plus+hash#question?.json",
    "brackets[0]*.bin",
    "quote'\"&=.x",
    ".hidden",
    "a.b/c d/é%2Ff",
)


@pytest.fixture(params=["local", "gcs"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty folder."""
    if request.param == "local":
        return str(tmp_path / "root")
    url = request.getfixturevalue("fake_gcs")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    return f"gs://{new_bucket(url)}/some folder/root"


@pytest.fixture
def store(root: str) -> Store:
    return open_store(root)


def read(store: Store, info: ObjectInfo, start: int, stop: int) -> bytes:
    buffer = bytearray(stop - start)
    store.read_into(info.name, info.generation, start, memoryview(buffer))
    return bytes(buffer)


def names(store: Store, prefix: str = "") -> list[str]:
    return [info.name for info in store.list(prefix)]


class TestListing:
    def test_an_empty_store_lists_nothing(self, store: Store) -> None:
        assert names(store) == names(store, "no/such/folder") == []

    def test_names_come_in_order_at_any_depth(self, store: Store) -> None:
        keys = ["b", "a/z", "a/b/c", "a.json", "a-1/x", "Z", "a/b.json", "é"]
        for key in keys:
            write_bytes(store, key, key.encode())
        assert names(store) == sorted(keys)
        assert [info.size for info in store.list()] == [len(key.encode()) for key in sorted(keys)]

    def test_a_prefix_is_a_folder_not_the_beginning_of_a_name(self, store: Store) -> None:
        for key in ("step_1/a", "step_1/b/c", "step_10/a", "step_1.json"):
            write_bytes(store, key, b"x")
        assert names(store, "step_1") == names(store, "step_1/") == ["step_1/a", "step_1/b/c"]
        assert names(store, "step_1/b") == ["step_1/b/c"]
        assert names(store, "step") == names(store, "step_1/a") == []

    def test_a_store_shows_only_what_is_below_its_root(self, root: str) -> None:
        write_bytes(open_store(root), "a", b"1")
        write_bytes(open_store(root + "-sibling"), "b", b"2")
        assert names(open_store(root)) == ["a"]
        above, _, folder = root.rpartition("/")
        assert names(open_store(above)) == [f"{folder}-sibling/b", f"{folder}/a"]
        assert read_bytes(open_store(above), f"{folder}/a") == b"1"

    def test_a_listing_shows_what_stat_shows(self, store: Store) -> None:
        created = store.create("fit/fit.json", b"{}")
        assert list(store.list()) == [store.stat("fit/fit.json")] == [created]
        assert created.size == 2 and created.generation > 0

    def test_an_object_s_age_is_known_and_no_part_of_what_it_is(self, store: Store) -> None:
        before = time.time()
        created = store.create("a", b"1")
        write_bytes(store, "b", b"2")
        for info in (created, *store.list(), store.stat("b")):
            assert info.updated is not None
            assert before - 1 <= info.updated <= time.time() + 1  # file systems' clocks tick more coarsely
        assert replace(created, updated=None) == created
        assert hash(replace(created, updated=0.0)) == hash(created)

    def test_an_object_that_is_replaced_is_young_again(self, store: Store) -> None:
        write_bytes(store, "a", b"1")
        first = store.stat("a").updated
        time.sleep(0.02)
        write_bytes(store, "a", b"2")
        second = store.stat("a").updated
        assert first is not None and second is not None and second > first

    @pytest.mark.parametrize("root", ["local"], indirect=True)
    def test_a_file_s_age_cannot_be_set_back(self, store: Store, root: str) -> None:
        created = store.create("a", b"1")
        os.utime(Path(root, "a"), (1, 1))
        (listed,) = store.list()
        assert listed.generation == 10**9
        assert created.updated is not None and listed.updated is not None and listed.updated >= created.updated

    @pytest.mark.parametrize("root", ["gcs"], indirect=True)
    def test_the_empty_objects_that_stand_for_folders_are_left_out(self, store: Store, root: str) -> None:
        for name in ("root/", "root/a/", "root/a/b/"):
            open_store(root.rpartition("/")[0]).create(name, b"")
        write_bytes(store, "a/c", b"x")
        assert names(store) == names(store, "a") == ["a/c"]

    @pytest.mark.parametrize("root", ["gcs"], indirect=True)
    def test_pages_are_followed(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(7):
            write_bytes(store, f"{number}", b"")
        bucket = store._bucket  # type: ignore[attr-defined]
        listing = bucket.list_blobs
        monkeypatch.setattr(bucket, "list_blobs", lambda **options: listing(page_size=2, **options))
        assert names(store) == list("0123456")


class TestMissing:
    def test_every_read_of_a_missing_key_says_so(self, store: Store) -> None:
        write_bytes(store, "folder/there", b"x")
        for key in ("absent", "folder/absent", "absent/absent", "folder/there/absent", "folder"):
            with pytest.raises(ObjectNotFound) as caught:
                store.stat(key)
            assert key in caught.value.where
            with pytest.raises(ObjectNotFound):
                store.read_into(key, 1, 0, memoryview(bytearray(1)))
            with pytest.raises(ObjectNotFound):
                store.read_into(key, 1, 0, memoryview(b""))
            assert not exists(store, key)

    def test_deleting_is_idempotent_and_takes_one_object_only(self, store: Store) -> None:
        for key in ("a/b/c", "a/b/d", "a/b/c2"):
            write_bytes(store, key, b"x")
        store.delete("a/b/c")
        for key in ("a/b/c", "a/b", "a", "a/b/d/e", "absent/absent"):
            store.delete(key)
        assert names(store) == ["a/b/c2", "a/b/d"]


class TestReading:
    @pytest.mark.parametrize("key", ODD_NAMES)
    def test_any_name_comes_back(self, store: Store, key: str) -> None:
        data = key.encode() * 3
        store.create(key, data)
        write_bytes(store, key + "2", data)
        assert names(store) == [key, key + "2"]
        assert read_bytes(store, key) == read_bytes(store, key + "2") == data
        with pytest.raises(ObjectExists):
            store.create(key, data)
        store.delete(key)
        assert names(store) == [key + "2"]

    def test_empty_objects(self, store: Store) -> None:
        info = store.create("created", b"")
        write_bytes(store, "written", b"")
        assert [(found.name, found.size) for found in store.list()] == [("created", 0), ("written", 0)]
        assert read_bytes(store, "created") == read_bytes(store, "written") == b""
        with pytest.raises(StorageError, match="ends"):
            read(store, info, 0, 1)

    def test_ranges_at_all_alignments(self, store: Store) -> None:
        data = os.urandom(70_000)
        write_bytes(store, "object", data)
        info = store.stat("object")

        @hypothesis_settings(max_examples=60, deadline=None)
        @given(st.tuples(st.integers(0, len(data)), st.integers(0, len(data))).map(sorted))
        def check(ends: list[int]) -> None:
            assert read(store, info, *ends) == data[slice(*ends)]

        check()

    def test_a_buffer_of_several_pieces_fills_in_its_place(self, store: Store) -> None:
        data = os.urandom((17 << 20) + 12345)
        write_bytes(store, "object", data)
        whole = bytearray(b"#" * (len(data) + 2))
        store.read_into("object", store.stat("object").generation, 5, memoryview(whole)[1 : len(data) - 4])
        assert whole[1 : len(data) - 4] == data[5:] and whole[:1] + whole[len(data) - 4 :] == b"#" * 7

    def test_typed_buffers_are_filled_as_bytes(self, store: Store) -> None:
        write_bytes(store, "object", bytes(range(32)))
        numbers = memoryview(bytearray(16)).cast("I")
        store.read_into("object", store.stat("object").generation, 8, numbers)
        assert numbers.tobytes() == bytes(range(8, 24))

    def test_a_range_beyond_the_end_is_refused(self, store: Store) -> None:
        info = store.create("object", b"0123456789")
        assert read(store, info, 8, 10) == b"89"
        for start, stop in ((8, 11), (10, 11), (500, 600), (0, 11)):
            with pytest.raises(StorageError, match="ends"):
                read(store, info, start, stop)

    def test_reads_from_many_threads_do_not_mix(self, store: Store) -> None:
        contents = {f"object-{i}": bytes([i]) * (100_000 + i) for i in range(12)}
        for key, data in contents.items():
            write_bytes(store, key, data)
        with ThreadPoolExecutor(12) as pool:
            assert list(pool.map(lambda key: read_bytes(store, key), list(contents) * 4)) == [*contents.values()] * 4

    def test_a_small_object_that_is_replaced_while_it_is_read_is_the_newer_one(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_bytes(store, "small", b"older")
        real, newer = store.stat, [b"newer", b"newest of all"]

        def stat(key: str) -> ObjectInfo:
            info = real(key)
            if newer:
                time.sleep(0.02)  # file systems' clocks tick every few milliseconds
                write_bytes(store, key, newer.pop(0))
            return info

        monkeypatch.setattr(store, "stat", stat)
        assert read_bytes(store, "small") == b"newest of all"
        newer.extend([b"again and again"] * 20)
        with pytest.raises(CheckpointChanged):
            read_bytes(store, "small")

    def test_a_replaced_object_is_reported(self, store: Store) -> None:
        old = store.create("object", b"0123456789")
        write_bytes(store, "object", b"abcdefghij")
        for stop in (10, 0):
            with pytest.raises(CheckpointChanged) as caught:
                read(store, old, 0, stop)
            assert "object" in caught.value.where and str(old.generation) in caught.value.expected
        new = store.stat("object")
        assert new.generation != old.generation
        assert read(store, new, 0, 10) == b"abcdefghij"

    def test_a_deleted_object_is_reported(self, store: Store) -> None:
        old = store.create("object", b"0123456789")
        store.delete("object")
        with pytest.raises(ObjectNotFound):
            read(store, old, 0, 10)


class TestCreating:
    def test_a_taken_name_is_refused_and_kept(self, store: Store) -> None:
        store.create("claim", b"first")
        with pytest.raises(ObjectExists) as caught:
            store.create("claim", b"second")
        assert "claim" in caught.value.where
        assert read_bytes(store, "claim") == b"first"
        store.delete("claim")
        store.create("claim", b"third")
        assert read_bytes(store, "claim") == b"third"

    def test_the_same_content_does_not_make_it_ours(self, store: Store) -> None:
        store.create("claim", b"same")
        with pytest.raises(ObjectExists):
            store.create("claim", b"same")

    def test_sixteen_threads_one_winner(self, store: Store) -> None:
        def claim(number: int) -> int | None:
            try:
                store.create(f"claims/{round_}", b"%d" % number)
            except ObjectExists:
                return None
            return number

        for round_ in range(8):
            with ThreadPoolExecutor(16) as pool:
                winners = [number for number in pool.map(claim, range(16)) if number is not None]
            assert len(winners) == 1
            assert read_bytes(store, f"claims/{round_}") == b"%d" % winners[0]
        assert names(store) == [f"claims/{round_}" for round_ in range(8)]

    def test_processes_one_winner(self, root: str) -> None:
        code = (
            "import sys; from relex_core.errors import ObjectExists; from relex_core.storage import open_store\n"
            "store = open_store(sys.argv[1]); sys.stdin.read()\n"
            "try: store.create('claim', sys.argv[2].encode()); print(sys.argv[2])\n"
            "except ObjectExists: pass\n"
        )
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, root, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for number in range(4)
        ]
        for process in processes:  # they wait for the end of their input, so that all are ready
            process.stdin.close()  # type: ignore[union-attr]
        answers = [process.stdout.read().strip() for process in processes]  # type: ignore[union-attr]
        assert [process.wait() for process in processes] == [0] * 4
        winners = [answer for answer in answers if answer]
        assert len(winners) == 1 and read_bytes(open_store(root), "claim") == winners[0]

    def test_creating_and_deleting_in_one_folder_at_once(self, store: Store) -> None:
        rounds = 10 if store.uri.startswith("gs://") else 100

        def churn(number: int) -> None:
            for _ in range(rounds):
                store.create(f"deep/folder/{number}", b"x")
                store.delete(f"deep/folder/{number}")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(churn, range(8)))
        assert names(store) == []


class TestReplacing:
    def test_the_object_that_was_read_is_replaced(self, store: Store) -> None:
        first = store.create("log", b"1")
        second = store.replace("log", b"12", first.generation)
        assert read_bytes(store, "log") == b"12" and store.stat("log") == second
        assert second.generation != first.generation
        write_bytes(store, "log", b"written without asking")
        third = store.replace("log", b"", store.stat("log").generation)
        assert read_bytes(store, "log") == b"" and names(store) == ["log"]
        assert len({first.generation, second.generation, third.generation}) == 3

    def test_another_one_is_kept(self, store: Store) -> None:
        first = store.create("log", b"1")
        second = store.replace("log", b"2", first.generation)
        for generation in (first.generation, second.generation + 1):
            with pytest.raises(CheckpointChanged) as caught:
                store.replace("log", b"3", generation)
            assert "log" in caught.value.where and str(generation) in caught.value.expected
        assert read_bytes(store, "log") == b"2" and store.stat("log") == second

    def test_one_that_is_gone_does_not_come_back(self, store: Store) -> None:
        info = store.create("folder/log", b"1")
        store.delete("folder/log")
        for key in ("folder/log", "never/there"):
            with pytest.raises(ObjectNotFound):
                store.replace(key, b"2", info.generation)
        assert names(store) == []

    def test_replacements_faster_than_a_clock_ticks_differ(self, store: Store) -> None:
        info = store.create("log", b"0")
        generations = [info.generation]
        for number in range(30):
            info = store.replace("log", b"%d" % number, info.generation)
            generations.append(info.generation)
        assert sorted(set(generations)) == generations

    def test_sixteen_threads_one_winner(self, store: Store) -> None:
        def replace_it(number: int) -> ObjectInfo | None:
            try:
                return store.replace("log", b"%d" % number, seen.generation)
            except CheckpointChanged:
                return None

        seen = store.create("log", b"")
        for _ in range(8):
            with ThreadPoolExecutor(16) as pool:
                results = list(pool.map(replace_it, range(16)))
            [winner] = [number for number, info in enumerate(results) if info]
            assert read_bytes(store, "log") == b"%d" % winner and store.stat("log") == results[winner]
            seen = results[winner] or seen
        assert names(store) == ["log"]


class TestWriting:
    def test_nothing_is_seen_before_the_block_ends(self, store: Store) -> None:
        with store.open_write("candidates/x/model.safetensors") as writer:
            writer.write(b"0123")
            writer.write(memoryview(b"4567"))
            assert names(store) == [] and not exists(store, "candidates/x/model.safetensors")
        assert read_bytes(store, "candidates/x/model.safetensors") == b"01234567"

    def test_a_replacement_keeps_the_old_object_until_the_end(self, store: Store) -> None:
        write_bytes(store, "object", b"old")
        with store.open_write("object") as writer:
            writer.write(b"new and longer")
            assert read_bytes(store, "object") == b"old"
        assert read_bytes(store, "object") == b"new and longer"
        assert names(store) == ["object"]

    @pytest.mark.parametrize(
        "error", [KeyError("k"), FileNotFoundError("mine"), OSError(28, "mine"), KeyboardInterrupt()]
    )
    @pytest.mark.parametrize("size", [5, 3 << 20])
    def test_an_error_in_the_block_drops_the_object_and_passes_through(
        self, store: Store, root: str, error: BaseException, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small_chunks(monkeypatch)
        with pytest.raises(type(error)) as caught, store.open_write("folder/object") as writer:
            writer.write(bytes(size))
            raise error
        assert caught.value is error
        assert names(store) == []
        if not root.startswith("gs://"):
            assert not [path for path in Path(root).rglob("*") if path.is_file()]

    def test_a_file_starts_for_the_disk_while_it_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not hasattr(os, "posix_fadvise"):
            pytest.skip("not on this system")
        real, asked = os.posix_fadvise, []

        def advise(handle: int, start: int, size: int, advice: int) -> None:
            asked.append((start, start + size))
            real(handle, start, size, advice)

        monkeypatch.setattr(os, "posix_fadvise", advise)
        data = random.Random(0).randbytes(3 * WRITE_BACK_BYTES + 5)
        with open_store(str(tmp_path)).open_write("large") as writer:
            for start in range(0, len(data), 5_000_011):
                writer.write(memoryview(data)[start : start + 5_000_011])
        assert (tmp_path / "large").read_bytes() == data
        assert len(asked) == 2 and all(end - start >= WRITE_BACK_BYTES for start, end in asked)
        assert [start for start, _ in asked] == [0, asked[0][1]], "one range after the other"

    @pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20, (3 << 20) + 7])
    def test_sizes_around_the_chunk_limits(self, store: Store, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        small_chunks(monkeypatch)
        data = os.urandom(size)
        with store.open_write("object") as writer:
            for start in range(0, size, 400_000):
                writer.write(memoryview(data)[start : start + 400_000])
        assert store.stat("object").size == size
        assert read_bytes(store, "object") == data

    def test_typed_memory_is_written_as_bytes(self, store: Store) -> None:
        with store.open_write("object") as writer:
            writer.write(memoryview(bytes(range(16))).cast("I"))
        assert read_bytes(store, "object") == bytes(range(16))

    def test_many_writers_of_one_name_leave_one_whole_object(self, store: Store) -> None:
        contents = [bytes([number]) * (200_000 + number) for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda data: write_bytes(store, "object", data), contents))
        assert names(store) == ["object"] and read_bytes(store, "object") in contents


class TestLocations:
    def test_the_store_knows_its_uri(self, store: Store, root: str) -> None:
        assert store.uri == root
        write_bytes(store, "folder/object", b"x")
        assert read_bytes(open_store(join_uri(root, "folder")), "object") == b"x"

    def test_a_file_uri_is_the_path(self, tmp_path: Path) -> None:
        folder = tmp_path / "with space%é"
        write_bytes(open_store(str(folder)), "object", b"x")
        assert absolute_uri(folder.as_uri(), Path("/")) == str(folder)
        assert absolute_uri(f"file://localhost{tmp_path}", Path("/")) == str(tmp_path)
        assert read_bytes(open_store(absolute_uri(folder.as_uri(), Path("/"))), "object") == b"x"

    def test_a_file_uri_with_two_slashes_is_refused(self) -> None:
        with pytest.raises(SpecError, match="file"):
            absolute_uri("file://data/runs", Path("/"))

    def test_a_file_uri_opens_a_store_and_an_unknown_scheme_none(self, tmp_path: Path) -> None:
        (tmp_path / "a b").mkdir()
        write_bytes(open_store((tmp_path / "a b").as_uri()), "object", b"x")
        assert (tmp_path / "a b" / "object").read_bytes() == b"x"
        with pytest.raises(SpecError, match="unknown scheme s3://"):
            open_store("s3://bucket/run")

    @pytest.mark.parametrize(
        ("uri", "meant"),
        [
            ("runs/../t", "/specs/t"),
            ("../t/./x/", "/t/x"),
            ("/a/b/../../..", "/"),
            ("file:///data/x/../runs", "/data/runs"),
            ("file:///data/%2E%2E/runs", "/runs"),
            ("gs://bucket/a/../b/./c/", "gs://bucket/b/c"),
            ("gs://bucket/a/..", "gs://bucket"),
            ("gs://bucket/a..b/...", "gs://bucket/a..b/..."),
        ],
    )
    def test_dots_are_resolved(self, uri: str, meant: str) -> None:
        assert absolute_uri(uri, Path("/specs")) == meant
        assert absolute_uri(meant, Path("/")) == meant

    def test_dots_behind_a_link_lead_where_the_system_says(self, tmp_path: Path) -> None:
        (tmp_path / "disk" / "runs").mkdir(parents=True)
        (tmp_path / "disk" / "base").write_bytes(b"x")
        (tmp_path / "link").symlink_to(tmp_path / "disk" / "runs")
        found = absolute_uri("link/../base", tmp_path)
        assert found == str(tmp_path / "disk" / "base")
        assert Path(found).samefile(tmp_path / "link" / ".." / "base")
        assert absolute_uri("link/x", tmp_path) == str(tmp_path / "link" / "x")  # as the user wrote it

    @pytest.mark.parametrize(
        ("uri", "fault"),
        [
            ("gs://bucket/../other", "leaves its bucket"),
            ("gs://bucket/a/../../other", "leaves its bucket"),
            ("a\0b", "NUL"),
            ("file:///a%00b", "NUL"),
            ("~nobody-of-that-name/x", "home"),
        ],
    )
    def test_locations_that_lead_nowhere_are_refused(self, uri: str, fault: str) -> None:
        with pytest.raises(SpecError, match=fault):
            absolute_uri(uri, Path("/specs"))

    @pytest.mark.parametrize("uri", ["gs://bucket/a b/c", "gs://bucket/a b/c/", "gs://bucket//a b/c//"])
    def test_gs_uris_are_normalised(self, uri: str) -> None:
        assert absolute_uri(uri, Path("/")) == "gs://bucket/a b/c"

    def test_a_bucket_is_a_root_too(self, fake_gcs: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs)
        store = open_store(absolute_uri(f"gs://{new_bucket(fake_gcs)}/", Path("/")))
        write_bytes(store, "a/b", b"x")
        assert names(store) == names(store, "a") == ["a/b"]

    @pytest.mark.parametrize("key", ["../outside", "a/../../outside", "{above}/outside", "a/.."])
    def test_a_key_cannot_leave_a_local_root(self, tmp_path: Path, key: str) -> None:
        (tmp_path / "outside").write_bytes(b"")
        store, key = open_store(str(tmp_path / "root")), key.format(above=tmp_path)
        for call in (store.stat, store.delete, lambda key: store.create(key, b""), lambda key: list(store.list(key))):
            with pytest.raises(StorageError, match="leaves"):
                call(key)

    def test_importing_the_package_imports_no_google(self) -> None:
        code = "import sys, relex_core.storage; print(*sys.modules)"
        modules = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
        assert not {"google.auth", "google.api_core", "google.cloud.storage", "google_crc32c", "requests"} & {*modules}


def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let uploads of a few MiB take the path of large ones."""
    from relex_core.storage import uploads

    monkeypatch.setattr(uploads, "CHUNK_BYTES", 1 << 20)
    monkeypatch.setattr(uploads, "SINGLE_BYTES", 1 << 19)


def test_a_linked_folder_is_listed_and_a_circle_is_not(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.safetensors").write_bytes(b"12")
    root = tmp_path / "root"
    (root / "step_1").mkdir(parents=True)
    (root / "step_2").symlink_to(tmp_path / "elsewhere")
    (root / "step_1" / "up").symlink_to(root)
    assert [info.name for info in open_store(str(root)).list()] == ["step_2/model.safetensors"]


class TestAbandoned:
    """Temporary files of killed writers, of folders only; those of writers that live are left alone."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "batches").mkdir()
        return tmp_path / "batches"

    @staticmethod
    def left(folder: Path) -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    def test_a_listing_removes_them(self, folder: Path) -> None:
        store = open_store(str(folder.parent))
        with store.open_write("batches/b") as writer:
            writer.write(b"1")
            for name in ("a", "b"):  # another process has finished `a` meanwhile
                (folder / f".{name}.0{PARTIAL}").write_bytes(b"half")
            write_bytes(store, "batches/a", b"whole")
            (folder / f".a.0{PARTIAL}").write_bytes(b"half")
            assert names(store) == ["batches/a"]
            assert [name.split(".")[1] for name in self.left(folder) if name.endswith(PARTIAL)] == ["b"]
        assert self.left(folder) == ["a", "b"]

    def test_deleting_an_object_removes_its_own(self, folder: Path) -> None:
        store = open_store(str(folder.parent))
        store.create("batches/a", b"1")
        os.link(folder / "a", folder / f".a.0{PARTIAL}")  # killed between the two names
        live = (folder / f".a.1{PARTIAL}").open("xb")
        with live:
            fcntl.flock(live, fcntl.LOCK_EX)
            store.delete("batches/a")
            assert self.left(folder) == [f".a.1{PARTIAL}"]
        store.create("batches/a", b"1")
        os.link(folder / "a", folder / f".a.0{PARTIAL}")
        store.delete("batches/a")
        assert not folder.exists()

    def test_one_that_may_not_be_removed_is_no_error(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(path: Path, missing_ok: bool = False) -> None:
            raise PermissionError(13, "no", str(path))

        store = open_store(str(folder.parent))
        (folder / f".a.0{PARTIAL}").write_bytes(b"half")
        monkeypatch.setattr(Path, "unlink", refused)
        assert names(store) == []
