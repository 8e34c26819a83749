"""Every fault of storage that we know: right bytes, or the right error, exit code and advice; nothing half written."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest
from gcs import faults
from gcs.faults import Fault, FaultyFront, faulty_front
from gcs.server import fake_gcs, new_bucket  # noqa: F401

from relex_core.errors import (
    AccessDenied,
    CheckpointChanged,
    DataError,
    ObjectExists,
    ObjectNotFound,
    RelexError,
    StorageError,
)
from relex_core.storage import exists, open_store, ranges, read_bytes, uploads, write_bytes
from relex_core.storage.gcs import GcsStore
from relex_core.storage.local import LocalStore
from relex_core.storage.retries import Retries

DATA = random.Random(0).randbytes((2 << 20) + 4321)
KEY = "model.safetensors"
ACCOUNT = "trainer@project.iam.gserviceaccount.com"
DENIED = (
    f"{ACCOUNT} does not have storage.objects.{{0}} access to the Google Cloud Storage object. "
    "Permission 'storage.objects.{0}' denied on resource (or it may not exist)."
)


@pytest.fixture
def front(fake_gcs: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyFront]:  # noqa: F811
    with faulty_front(fake_gcs) as front:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        yield front


@pytest.fixture
def store(front: FaultyFront) -> GcsStore:
    """A store that is patient for 2 s, and whose server holds DATA under KEY."""
    store = quick_store(f"gs://{new_bucket(front.upstream)}/run")
    write_bytes(store, KEY, DATA)
    front.requests.clear()
    front.bytes_sent = 0
    return store


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let uploads of a few MiB take the path of large ones."""
    monkeypatch.setattr(uploads, "CHUNK_BYTES", 1 << 20)
    monkeypatch.setattr(uploads, "SINGLE_BYTES", 1 << 19)


def quick_store(uri: str, timeout: float = 2.0) -> GcsStore:
    return GcsStore(uri, retries=Retries(initial=0.01, maximum=0.05, timeout=timeout), timeouts=(1.0, 0.3))


def read(store: GcsStore, start: int = 0, stop: int = len(DATA)) -> bytes:
    buffer = bytearray(stop - start)
    store.read_into(KEY, generation(store), start, memoryview(buffer))
    return bytes(buffer)


def generation(store: GcsStore) -> int:
    return store.stat(KEY).generation


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(timezone.utc) + timedelta(seconds=seconds), usegmt=True)


def check(error: RelexError, kind: type[RelexError], exit_code: int, *words: str) -> None:
    assert type(error) is kind and error.exit_code == exit_code
    for word in words:
        assert word in str(error), str(error)


RECOVERED: dict[str, tuple[Fault, ...]] = {
    "503 burst": (faults.status(503),) * 5,
    "500, 502, 504": (faults.status(500), faults.status(502), faults.status(504)),
    "408": (faults.status(408),),
    "429": (faults.status(429, Retry_After="0"),),
    "reset before the body": (faults.reset_after(0),),
    "reset mid-body": (faults.reset_after(1 << 20),),
    "closed mid-body": (faults.cut_after(1_234_567), faults.cut_after(10), faults.cut_after(600_000)),
    "stall before the body": (faults.stall_after(0),),
    "stall mid-body": (faults.stall_after(1_500_000),),
    "short 206": (faults.altered(lambda reply: faults.Reply(206, reply.headers, reply.body[:99_999])),),
    "everything in turn": (
        faults.status(503),
        faults.cut_after(700_000),
        faults.status(429, Retry_After="0"),
        faults.reset_after(900_000),
        faults.stall_after(5),
    ),
}


class TestReadsThatRecover:
    @pytest.mark.parametrize("name", RECOVERED)
    def test_the_bytes_are_right(self, front: FaultyFront, store: GcsStore, name: str) -> None:
        front.plan("read", KEY, *RECOVERED[name])
        assert read(store) == DATA
        assert len(front.seen("read", KEY)) == len(RECOVERED[name]) + 1
        assert store.ledger.verified

    def test_a_shorter_range_than_asked_for_is_completed(self, front: FaultyFront, store: GcsStore) -> None:
        def halved(reply: faults.Reply) -> faults.Reply:
            body = reply.body[: len(reply.body) // 2]
            headers = {**reply.headers, "Content-Range": f"bytes 0-{len(body) - 1}/{len(DATA)}"}
            return faults.Reply(206, headers, body)

        front.plan("read", KEY, faults.altered(halved))
        assert read(store) == DATA
        assert [request.first_byte for request in front.seen("read", KEY)] == [0, len(DATA) // 2]

    @pytest.mark.parametrize(("fault", "lost"), [(faults.cut_after, 0), (faults.stall_after, ranges.CHUNK_BYTES)])
    def test_a_broken_read_goes_on_where_it_stopped(
        self, front: FaultyFront, store: GcsStore, fault: Callable[[int], Fault], lost: int
    ) -> None:
        front.plan("read", KEY, fault(1_600_000), fault(300_000))
        assert read(store, 100, len(DATA)) == DATA[100:]
        first, second, third = (request.first_byte for request in front.seen("read", KEY))
        assert first == 100
        assert 1_600_100 - lost <= second <= 1_600_100
        assert second + 300_000 - lost <= third <= second + 300_000

    @pytest.mark.parametrize("asked", ["1", "date"])
    @pytest.mark.parametrize("kind", ["read", "stat", "list"])
    def test_retry_after_is_honoured(self, front: FaultyFront, store: GcsStore, asked: str, kind: str) -> None:
        key = "" if kind == "list" else KEY
        pinned = generation(store)
        text = http_date(1.99) if asked == "date" else asked  # whole seconds: 1 to 2 from now
        front.plan(kind, key, faults.status(429, Retry_After=text))
        calls = {
            "read": lambda: store.read_into(KEY, pinned, 0, memoryview(bytearray(9))),
            "stat": lambda: store.stat(KEY),
            "list": lambda: list(store.list()),
        }
        began = time.monotonic()
        calls[kind]()
        assert 0.9 < time.monotonic() - began < 2.0

    def test_waiting_longer_than_allowed_is_refused_at_once(self, front: FaultyFront, store: GcsStore) -> None:
        front.plan_always("read", KEY, faults.status(503, "come back tomorrow", Retry_After="86400"))
        began = time.monotonic()
        with pytest.raises(StorageError, match="come back tomorrow"):
            read(store)
        assert time.monotonic() - began < 1

    def test_pieces_in_parallel_recover_each(
        self, front: FaultyFront, store: GcsStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ranges, "PIECE_BYTES", 100_000)
        front.plan("read", KEY, *[faults.status(503), faults.cut_after(50_000), faults.reset_after(7)] * 6)
        assert read(store) == DATA
        assert store.ledger.verified

    def test_connections_are_used_again(self, front: FaultyFront, store: GcsStore) -> None:
        for start in range(0, 2_000_000, 100_000):
            read(store, start, start + 100_000)
        assert len({request.client for request in front.requests}) <= 2


REFUSED: dict[str, tuple[Fault, type[RelexError], int, tuple[str, ...]]] = {
    "503 for ever": (faults.status(503, "backend down"), StorageError, 5, ("backend down", "retrying", "run the same")),
    "reset for ever": (faults.reset_after(0), StorageError, 5, ("retrying",)),
    "cut for ever": (faults.cut_after(0), StorageError, 5, ("retrying",)),
    "400": (faults.status(400, "bad bucket name"), StorageError, 5, ("bad bucket name",)),
    "ignored range": (faults.ignored_range, StorageError, 5, ("status 200", "206", "proxy")),
    "whole object called a range": (
        faults.altered(lambda reply: faults.Reply(200, reply.headers, reply.body)),
        StorageError,
        5,
        ("status 200", "206"),
    ),
    "other range": (
        faults.with_headers(Content_Range=f"bytes 1-{len(DATA) - 1}/{len(DATA)}"),
        StorageError,
        5,
        ("Content-Range", "bytes 0-"),
    ),
    "no range": (faults.with_headers(Content_Range=None), StorageError, 5, ("Content-Range",)),
    "no generation": (faults.with_headers(X_Goog_Generation=None), StorageError, 5, ("X-Goog-Generation",)),
    "longer range": (
        faults.with_headers(Content_Range=f"bytes 0-{len(DATA) + 9}/{len(DATA) + 100}"),
        StorageError,
        5,
        ("Content-Range",),
    ),
    "shorter object": (
        faults.with_headers(Content_Range=f"bytes 0-{len(DATA) - 2}/{len(DATA) - 1}"),
        StorageError,
        5,
        (f"ends at byte {len(DATA) - 1}",),
    ),
    "wrong generation": (faults.with_headers(X_Goog_Generation="17"), CheckpointChanged, 4, ("17", "collect again")),
    "412": (faults.status(412, "conditionNotMet"), CheckpointChanged, 4, ("replaced", "collect again")),
    "gzip": (faults.with_headers(Content_Encoding="gzip"), DataError, 4, ("compressed", "upload it again")),
    "stored as gzip": (faults.with_headers(X_Goog_Stored_Content_Encoding="gzip"), DataError, 4, ("compressed",)),
    "401": (faults.status(401, "Invalid Credentials"), AccessDenied, 5, ("credentials", "gcloud auth")),
    "403": (
        faults.plain_status(403, DENIED.format("get")),
        AccessDenied,
        5,
        (
            f"{ACCOUNT} lacks the permission storage.objects.get",
            "--member=serviceAccount:",
            "roles/storage.objectViewer",
        ),
    ),
    "403 of nobody": (
        faults.plain_status(403, "Anonymous caller does not have storage.objects.get access"),
        AccessDenied,
        5,
        ("Anonymous caller lacks the permission storage.objects.get", "--member=PRINCIPAL"),
    ),
    "403 without words": (faults.plain_status(403, ""), AccessDenied, 5, ("the caller lacks", "storage.objects.get")),
}


class TestReadsThatAreRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_the_error_says_what_where_and_what_next(self, front: FaultyFront, store: GcsStore, name: str) -> None:
        fault, kind, exit_code, words = REFUSED[name]
        pinned = generation(store)
        store = quick_store(store.uri, timeout=0.2)
        front.plan_always("read", KEY, fault)
        with pytest.raises(RelexError) as caught:
            store.read_into(KEY, pinned, 0, memoryview(bytearray(len(DATA))))
        check(caught.value, kind, exit_code, f"{store.uri}/{KEY}", *words)
        assert not store.ledger.verified

    def test_only_passing_failures_are_tried_again(self, front: FaultyFront, store: GcsStore) -> None:
        for code in (400, 403, 404, 412, 416):
            front.requests.clear()
            front.plan("read", KEY, faults.status(code))
            with pytest.raises(RelexError):
                read(store)
            assert len(front.seen("read", KEY)) == 1

    def test_an_ignored_range_is_not_read_whole(self, front: FaultyFront, store: GcsStore) -> None:
        front.plan("read", KEY, faults.whole(64 << 20))
        with pytest.raises(StorageError, match="status 200"):
            read(store, 5, 10)
        time.sleep(0.2)
        assert front.bytes_sent < 16 << 20  # what the kernel's buffers took

    def test_a_missing_object(self, front: FaultyFront, store: GcsStore) -> None:
        for call in (lambda: store.stat("absent"), lambda: store.read_into("absent", 1, 0, memoryview(bytearray(1)))):
            with pytest.raises(ObjectNotFound) as caught:
                call()
            check(caught.value, ObjectNotFound, 5, "no such object", f"{store.uri}/absent")

    def test_a_missing_bucket(self, front: FaultyFront) -> None:
        with pytest.raises(ObjectNotFound) as caught:
            list(quick_store("gs://no-such-bucket/run").list())
        check(caught.value, ObjectNotFound, 5, "no such bucket", "gs://no-such-bucket/run")

    def test_a_flipped_bit_is_found_once_the_ranges_tile_the_object(self, front: FaultyFront, store: GcsStore) -> None:
        front.plan("read", KEY, faults.with_headers(), faults.flipped(1234))
        read(store, 0, 1_000_000)
        read(store, 1_500_000, len(DATA))
        with pytest.raises(DataError) as caught:
            read(store, 1_000_000, 1_500_000)
        check(caught.value, DataError, 4, "crc32c", store.stat(KEY).crc32c or "?", f"{store.uri}/{KEY}")

    def test_an_object_replaced_between_two_reads(self, front: FaultyFront, store: GcsStore) -> None:
        pinned, buffer = generation(store), memoryview(bytearray(1_000_000))
        store.read_into(KEY, pinned, 0, buffer)
        write_bytes(store, KEY, DATA[::-1])
        with pytest.raises(CheckpointChanged) as caught:
            store.read_into(KEY, pinned, 1_000_000, buffer)
        check(caught.value, CheckpointChanged, 4, str(generation(store)), str(pinned), "collect again")

    def test_an_object_replaced_while_a_read_is_resumed(self, front: FaultyFront, store: GcsStore) -> None:
        replace = faults.after(lambda: write_bytes(store, KEY, DATA[::-1]))
        front.plan("read", KEY, faults.cut_after(1_000_000), replace)
        with pytest.raises(CheckpointChanged):
            read(store)

    def test_the_buffer_is_left_alone_after_an_error(
        self, front: FaultyFront, store: GcsStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ranges, "PIECE_BYTES", 100_000)
        front.plan("read", KEY, faults.status(403), *[faults.after(lambda: time.sleep(0.05))] * 30)
        buffer, pinned = bytearray(len(DATA)), generation(store)
        with pytest.raises(StorageError):
            store.read_into(KEY, pinned, 0, memoryview(buffer))
        buffer[:] = bytes(len(buffer))
        time.sleep(0.2)
        assert not any(buffer)

    def test_an_unknown_host(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://no-such-host.invalid")
        store = quick_store("gs://bucket/run", timeout=0.2)
        for call in (lambda: list(store.list()), lambda: store.read_into(KEY, 1, 0, memoryview(bytearray(1)))):
            with pytest.raises(StorageError) as caught:
                call()
            check(caught.value, StorageError, 5, "no-such-host.invalid", "check the network")

    def test_no_credentials(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        with pytest.raises(StorageError) as caught:
            open_store("gs://bucket/run")
        check(caught.value, AccessDenied, 5, "credentials", "gcloud auth application-default login")


class TestListing:
    def test_a_page_that_fails_is_asked_for_again(self, front: FaultyFront, store: GcsStore) -> None:
        front.plan("list", "", faults.status(503), faults.reset_after(10), faults.status(429, Retry_After="0"))
        assert [info.name for info in store.list()] == [KEY]

    def test_a_lacking_permission_is_named(self, front: FaultyFront, store: GcsStore) -> None:
        front.plan("list", "", faults.status(403, DENIED.format("list")))
        with pytest.raises(StorageError) as caught:
            list(store.list())
        check(caught.value, AccessDenied, 5, "storage.objects.list", ACCOUNT, "roles/storage.objectViewer", store.uri)


class TestCreating:
    def test_a_lost_answer_does_not_lose_the_claim(self, front: FaultyFront, store: GcsStore) -> None:
        front.plan("create", "claim", faults.lost_answer)
        info = store.create("claim", b"mine")
        assert [request.kind for request in front.requests] == ["create", "create", "stat"]
        assert info == store.stat("claim") and read_bytes(store, "claim") == b"mine"

    def test_another_claim_between_the_tries_wins(self, front: FaultyFront, store: GcsStore) -> None:
        rival = quick_store(store.uri)
        first = faults.after(lambda: rival.create("claim", b"mine"), faults.status(503))
        front.plan("create", "claim", first)
        with pytest.raises(ObjectExists):
            store.create("claim", b"mine")

    def test_a_claim_that_is_gone_again_was_still_taken(self, front: FaultyFront, store: GcsStore) -> None:
        store.create("claim", b"other")
        front.plan("stat", "claim", faults.status(404))
        with pytest.raises(ObjectExists):
            store.create("claim", b"mine")

    def test_a_lacking_permission_is_named(self, front: FaultyFront, store: GcsStore) -> None:
        front.plan("create", "claim", faults.status(403, DENIED.format("create")))
        with pytest.raises(StorageError) as caught:
            store.create("claim", b"mine")
        check(caught.value, AccessDenied, 5, "storage.objects.create", "roles/storage.objectUser", f"{store.uri}/claim")

    def test_deleting_survives_a_lost_answer(self, front: FaultyFront, store: GcsStore) -> None:
        front.plan("delete", KEY, faults.status(503), faults.lost_answer)
        store.delete(KEY)
        assert len(front.seen("delete", KEY)) == 3 and not exists(store, KEY)


UPLOADS_THAT_RECOVER: dict[str, dict[str, tuple[Fault, ...]]] = {
    "start fails": {"start": (faults.status(503), faults.reset_after(0))},
    "chunks fail": {"chunk": (faults.status(503), faults.status(429, Retry_After="0"), faults.reset_after(0))},
    "answer to a chunk lost": {"chunk": (faults.lost_answer,)},
    "stored in part, then an error": {"chunk": (faults.stored_in_part(256 << 10, faults.status(503)),)},
    "stored in part, then a reset": {"chunk": (faults.stored_in_part(512 << 10, faults.reset_after(0)),)},
    "stored in part": {
        "chunk": (faults.stored_in_part(256 << 10, faults.status(308, Range=f"bytes=0-{(256 << 10) - 1}")),)
    },
    "answer to the last chunk lost": {"chunk": (*[faults.with_headers()] * 2, faults.lost_answer)},
    "last chunk fails": {"chunk": (*[faults.with_headers()] * 2, faults.status(503), faults.status(500))},
    "stall": {"chunk": (faults.stall_after(0),)},
}


@pytest.mark.usefixtures("small_chunks")
class TestUploads:
    @pytest.mark.parametrize("name", UPLOADS_THAT_RECOVER)
    def test_the_object_is_right(self, front: FaultyFront, store: GcsStore, name: str) -> None:
        for kind, planned in UPLOADS_THAT_RECOVER[name].items():
            front.plan(kind, "upload", *planned)
        with store.open_write("upload") as writer:
            writer.write(DATA)
            assert not exists(store, "upload")
        assert read_bytes(store, "upload") == DATA
        assert not front.plans["chunk", "upload"] and not front.plans["start", "upload"]

    @pytest.mark.parametrize("fault", [faults.status(503), faults.lost_answer])
    def test_a_small_object_is_right(self, front: FaultyFront, store: GcsStore, fault: Fault) -> None:
        front.plan("create", "upload", fault)
        write_bytes(store, "upload", b"small")
        assert read_bytes(store, "upload") == b"small"

    @pytest.mark.parametrize(
        ("kind", "fault", "words"),
        [
            (
                "start",
                faults.status(403, DENIED.format("create")),
                ("storage.objects.create", "roles/storage.objectUser"),
            ),
            ("chunk", faults.status(503, "backend down"), ("backend down", "retrying")),
            ("chunk", faults.status(410, "session gone"), ("session gone",)),
            ("chunk", faults.status(308), ("lost bytes",)),
            (
                "chunk",
                faults.status(403, DENIED.format("delete")),
                (f"{ACCOUNT} lacks the permission storage.objects.delete",),
            ),
        ],
    )
    def test_a_failed_upload_leaves_nothing(
        self, front: FaultyFront, store: GcsStore, kind: str, fault: Fault, words: tuple[str, ...]
    ) -> None:
        if kind == "chunk":  # the first goes well
            front.plan("chunk", "upload", faults.with_headers())
        store = quick_store(store.uri, timeout=0.2)
        front.plan_always(kind, "upload", fault)
        with pytest.raises(StorageError) as caught, store.open_write("upload") as writer:
            writer.write(DATA)
        kind_of_error = AccessDenied if "storage.objects" in " ".join(words) else StorageError
        check(caught.value, kind_of_error, 5, f"{store.uri}/upload", *words)
        assert not exists(store, "upload")
        assert not front.sessions

    def test_an_abandoned_upload_is_cancelled(self, front: FaultyFront, store: GcsStore) -> None:
        with pytest.raises(ZeroDivisionError), store.open_write("upload") as writer:
            writer.write(DATA)
            raise ZeroDivisionError
        assert len(front.seen("cancel", "upload")) == 1
        assert not exists(store, "upload")

    def test_an_abandoned_upload_reports_the_first_error(self, front: FaultyFront, store: GcsStore) -> None:
        front.plan_always("cancel", "upload", faults.reset_after(0))
        with pytest.raises(ZeroDivisionError), store.open_write("upload") as writer:
            writer.write(DATA)
            raise ZeroDivisionError

    @pytest.mark.parametrize(
        ("kind", "size", "planned", "word"),
        [
            ("create", 1, [faults.damaged], "damaged"),
            ("chunk", 200_000, [faults.damaged], "CRC32C"),  # the server finds it
            ("chunk", 200_000, [faults.with_headers(), faults.damaged], "damaged"),  # the server does not look
        ],
    )
    def test_a_damaged_upload_is_removed(
        self, front: FaultyFront, store: GcsStore, kind: str, size: int, planned: list[Fault], word: str
    ) -> None:
        front.plan(kind, "upload", *planned)
        with pytest.raises(StorageError) as caught:
            write_bytes(store, "upload", b"content " * size)
        check(caught.value, StorageError, 5, word, f"{store.uri}/upload")
        assert not exists(store, "upload")

    def test_memory_stays_within_a_chunk(self, front: FaultyFront, store: GcsStore) -> None:
        with store.open_write("upload") as writer:
            for _ in range(5):
                writer.write(DATA)
                assert len(writer._buffer) <= uploads.CHUNK_BYTES  # type: ignore[attr-defined]
        assert {len(request.body) for request in front.seen("chunk", "upload")[:-1]} == {1 << 20}


class TestLocalDisk:
    def test_a_file_that_may_not_grow_leaves_nothing(self, tmp_path: Path) -> None:
        """RLIMIT_FSIZE stands in for a full disk where nothing can be mounted."""
        for call in ("store.create('object', bytes(1 << 20))", "write_bytes(store, 'object', bytes(1 << 20))"):
            finished = in_process(tmp_path, call, limit=resource.RLIMIT_FSIZE)
            assert finished.returncode == 5, finished.stderr
            assert "File too large" in finished.stdout and f"{tmp_path}/object" in finished.stdout
            assert [*tmp_path.iterdir()] == []

    def test_a_full_disk_leaves_nothing(self, tmp_path: Path) -> None:
        mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(tmp_path)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("no permission to mount a small file system")
        try:
            for call in ("store.create('object', bytes(1 << 20))", "write_bytes(store, 'object', bytes(1 << 20))"):
                finished = in_process(tmp_path, call)
                assert finished.returncode == 5, finished.stderr
                assert "No space left on device" in finished.stdout and "free disk space" in finished.stdout
                assert [*tmp_path.iterdir()] == []
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)

    def test_the_callers_error_comes_through_a_full_disk(self, tmp_path: Path) -> None:
        call = "raise_after_writing(store.open_write('object'))"
        finished = in_process(tmp_path, call, limit=resource.RLIMIT_FSIZE)
        assert finished.stderr.strip().splitlines()[-1] == "ZeroDivisionError: division by zero", finished.stderr
        assert [*tmp_path.iterdir()] == []

    def test_a_folder_that_vanishes_while_it_is_written_to_is_made_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mkdir, vanished = Path.mkdir, []

        def fleeting(path: Path, *arguments: object, **options: object) -> None:
            mkdir(path, *arguments, **options)  # type: ignore[arg-type]
            if len(vanished) < 3:
                path.rmdir()
                vanished.append(path)

        monkeypatch.setattr(Path, "mkdir", fleeting)
        write_bytes(LocalStore(str(tmp_path)), "folder/object", b"x")
        assert len(vanished) == 3 and read_bytes(LocalStore(str(tmp_path)), "folder/object") == b"x"

    def test_a_folder_that_cannot_be_read_is_no_empty_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_bytes(LocalStore(str(tmp_path)), "step_1/a", b"")
        scandir = os.scandir

        def refused(path: object) -> object:
            if str(path).endswith("step_1"):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)  # type: ignore[call-overload]

        monkeypatch.setattr(os, "scandir", refused)
        with pytest.raises(AccessDenied, match="Permission denied") as caught:
            LocalStore(str(tmp_path)).list()
        assert caught.value.where == str(tmp_path / "step_1")

    def test_a_folder_that_cannot_be_written_is_named_by_the_object(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(path: object, *_: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system", f"{path}.hidden")

        monkeypatch.setattr(os, "link", refused)
        with pytest.raises(StorageError, match="Read-only file system") as caught:
            LocalStore(str(tmp_path)).create("a", b"")
        assert caught.value.where == str(tmp_path / "a")
        assert caught.value.next_step == "make the folder writable, or use another run directory"

    def test_what_a_killed_writer_left_is_never_seen_and_removed_by_the_next(self, tmp_path: Path) -> None:
        call = "block = store.open_write('a[b]c'); block.__enter__().write(bytes(99999)); os.kill(os.getpid(), 9)"
        assert in_process(tmp_path, call).returncode == -signal.SIGKILL
        store = LocalStore(str(tmp_path))
        assert len([*tmp_path.iterdir()]) == 1 and [*store.list()] == []
        write_bytes(store, "a[b]c", b"whole")
        assert [path.name for path in tmp_path.iterdir()] == ["a[b]c"]


def in_process(folder: Path, call: str, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run `call` on a store of `folder` in another process, which ends as the command line does."""
    code = (
        "import os, sys; from relex_core.errors import RelexError; from relex_core.storage import *\n"
        "def raise_after_writing(block):\n"
        "    with block as writer: writer.write(bytes(5000)); 1 / 0\n"
        f"store = open_store({str(folder)!r})\n"
        f"try: {call}\n"
        "except RelexError as error: print(error); sys.exit(error.exit_code)\n"
    )
    limited = (lambda: resource.setrlimit(limit, (4096, 4096))) if limit is not None else None
    command = [sys.executable, "-B", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=limited)
