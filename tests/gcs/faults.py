"""A front for a fake-gcs-server that fails on purpose: the n-th request for an object meets the n-th fault planned.

The front also keeps resumable uploads itself, as Google documents them: fake-gcs-server publishes an upload when it is
asked how much of it has arrived.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import google_crc32c
import urllib3

from relex_core.storage.crc32c import encode


@dataclass
class Reply:
    """What the server answered, or is about to be told to the client."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Request:
    """One request, as it came."""

    kind: str
    """read, stat, list, create (one request), start, chunk (resumable), cancel or delete."""
    key: str
    """Last part of the object's name."""
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    client: int
    """Port of the client's connection."""

    @property
    def first_byte(self) -> int:
        """Where a range read begins."""
        return int(re.findall(r"\d+", self.headers["range"])[0])


Fault = Callable[["Handler", Request], None]
"""Answers a request; may call `handler.forward(request)` and send some of it, or nothing."""


@dataclass
class FaultyFront:
    """The plan and the record of one front."""

    url: str
    upstream: str
    plans: dict[tuple[str, str], deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    always: dict[tuple[str, str], Fault] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    sessions: dict[str, tuple[str, bytearray]] = field(default_factory=dict)
    finished: dict[str, Reply] = field(default_factory=dict)
    bytes_sent: int = 0
    latency: float = 0.0
    """Seconds that every request waits before it is answered: a far-away server."""
    released: threading.Event = field(default_factory=threading.Event)
    """Ends stalls."""

    def plan(self, kind: str, key: str, *faults: Fault) -> None:
        """The next requests of `kind` for `key` meet these faults, the ones after them none."""
        self.plans[kind, key].extend(faults)

    def plan_always(self, kind: str, key: str, fault: Fault) -> None:
        """Every request of `kind` for `key` meets this fault."""
        self.always[kind, key] = fault

    def seen(self, kind: str, key: str) -> list[Request]:
        """The requests of `kind` for `key` so far."""
        return [request for request in self.requests if (request.kind, request.key) == (kind, key)]


@contextmanager
def faulty_front(upstream: str) -> Iterator[FaultyFront]:
    """Run a front for the server at `upstream`."""
    server = _Server(("127.0.0.1", 0), Handler)
    front = server.front = FaultyFront(f"http://127.0.0.1:{server.server_address[1]}", upstream)  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield front
    finally:
        front.released.set()
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """Clients break connections here all the time."""


class Handler(BaseHTTPRequestHandler):
    """One client's connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    pool = urllib3.PoolManager(maxsize=32)

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        front = self.front
        request = self._request()
        front.requests.append(request)
        time.sleep(front.latency)
        name = (request.kind, request.key)
        fault = front.plans[name].popleft() if front.plans[name] else front.always.get(name)
        with suppress(OSError):  # the client may well have gone
            if fault is None:
                self.send(self.forward(request))
            else:
                fault(self, request)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle  # noqa: N815

    @property
    def front(self) -> FaultyFront:
        return self.server.front  # type: ignore[attr-defined, no-any-return]

    def _request(self) -> Request:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        _, _, name = url.path.partition("/o/")
        name = urllib.parse.unquote(name) or query.get("name", "")
        if query.get("uploadType") == "multipart":
            kind, name = "create", json.loads(body[body.index(b"{") : body.index(b"}\r\n") + 1])["name"]
        elif query.get("uploadType") == "resumable":
            kind = {"POST": "start", "PUT": "chunk", "DELETE": "cancel"}[self.command]
        elif self.command == "DELETE":
            kind = "delete"
        else:
            kind = "read" if query.get("alt") == "media" else "stat" if name else "list"
        headers = {key.lower(): value for key, value in self.headers.items()}
        return Request(kind, name.rpartition("/")[2], self.command, self.path, headers, body, self.client_address[1])

    def forward(self, request: Request) -> Reply:
        """What the server says to the request."""
        if request.kind in ("start", "chunk", "cancel"):
            return _resumable(self.front, request)
        headers = {key: value for key, value in request.headers.items() if key not in ("host", "content-length")}
        response = self.pool.request(
            request.method, self.front.upstream + request.path, body=request.body or None, headers=headers
        )
        own = ("content-length", "transfer-encoding", "date")  # the front sends a body whole
        kept = {key: value for key, value in response.headers.items() if key.lower() not in own}
        return Reply(response.status, kept, response.data)

    def send(self, reply: Reply, *, length: int | None = None) -> None:
        """Answer; `length`: bytes to announce, if other than the body has."""
        lines = {"Content-Length": str(len(reply.body) if length is None else length), **reply.headers}
        head = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
        self.wfile.write(f"HTTP/1.1 {reply.status} -\r\n{head}\r\n".encode("latin-1"))
        for start in range(0, len(reply.body), 1 << 16):
            self.front.bytes_sent += self.wfile.write(reply.body[start : start + (1 << 16)])
        self.wfile.flush()

    def reset(self) -> None:
        """End the connection as a crashed peer does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.end()

    def end(self) -> None:
        """End the connection; the client sees the end of the stream."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def _resumable(front: FaultyFront, request: Request) -> Reply:
    """The protocol of resumable uploads; what is finished is handed to the server."""
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(request.path).query))
    if request.kind == "start":
        session = str(len(front.sessions) + len(front.finished))
        front.sessions[session] = (query["name"], bytearray())
        location = f"{front.url}{request.path}&upload_id={session}"
        return Reply(200, {"Location": location}, b"")
    session = query["upload_id"]
    if session in front.finished:
        return front.finished[session]
    if request.kind == "cancel":
        front.sessions.pop(session)
        return Reply(499, {}, b"")
    if session not in front.sessions:
        return Reply(410, {}, b"")
    name, stored = front.sessions[session]
    first, total = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", request.headers["content-range"]).groups()  # type: ignore[union-attr]
    if first is not None:
        if int(first) != len(stored):
            return Reply(400, {}, b"the chunk does not begin where the last one ended")
        stored += request.body
    if total == "*" or len(stored) < int(total):
        return Reply(308, {"Range": f"bytes=0-{len(stored) - 1}"} if stored else {}, b"")
    if request.headers.get("x-goog-hash") not in (None, f"crc32c={encode(google_crc32c.value(bytes(stored)))}"):
        return Reply(400, {}, b'{"error": {"message": "Provided CRC32C does not match calculated CRC32C"}}')
    url = urllib.parse.urlsplit(request.path).path
    upload = front.upstream + url + "?" + urllib.parse.urlencode({"uploadType": "media", "name": name})
    response = Handler.pool.request("POST", upload, body=bytes(stored))
    del front.sessions[session]
    front.finished[session] = Reply(response.status, {"Content-Type": "application/json"}, response.data)
    return front.finished[session]


def status(code: int, message: str = "planned", **headers: str) -> Fault:
    """An error instead of the answer, worded as Google's JSON API does."""
    body = json.dumps({"error": {"code": code, "message": message}}).encode()

    def fault(handler: Handler, request: Request) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.send(Reply(code, {"Content-Type": "application/json", **named}, body))

    return fault


def plain_status(code: int, message: str) -> Fault:
    """An error as Google words it for media downloads: plain text."""
    return lambda handler, request: handler.send(Reply(code, {"Content-Type": "text/html"}, message.encode()))


def reset_after(count: int) -> Fault:
    """The connection is reset after `count` bytes of the body."""

    def fault(handler: Handler, request: Request) -> None:
        reply = handler.forward(request)
        handler.send(Reply(reply.status, reply.headers, reply.body[:count]), length=len(reply.body))
        handler.reset()

    return fault


def cut_after(count: int) -> Fault:
    """The connection is closed in order after `count` bytes of the body."""

    def fault(handler: Handler, request: Request) -> None:
        reply = handler.forward(request)
        handler.send(Reply(reply.status, reply.headers, reply.body[:count]), length=len(reply.body))
        handler.end()

    return fault


def stall_after(count: int) -> Fault:
    """Nothing comes any more after `count` bytes of the body."""

    def fault(handler: Handler, request: Request) -> None:
        reply = handler.forward(request)
        handler.send(Reply(reply.status, reply.headers, reply.body[:count]), length=len(reply.body))
        handler.front.released.wait(30)
        handler.end()

    return fault


def altered(change: Callable[[Reply], Reply]) -> Fault:
    """The answer, changed."""
    return lambda handler, request: handler.send(change(handler.forward(request)))


def with_headers(**headers: str | None) -> Fault:
    """The answer with other headers; None takes one away."""

    def change(reply: Reply) -> Reply:
        named = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        kept = {name: value for name, value in reply.headers.items() if name.lower() not in named}
        added = {name: value for name, value in named.items() if value is not None}
        return Reply(reply.status, {**kept, **added}, reply.body)

    return altered(change)


def flipped(position: int) -> Fault:
    """One bit of the body is wrong."""

    def change(reply: Reply) -> Reply:
        body = bytearray(reply.body)
        body[position] ^= 1
        return Reply(reply.status, reply.headers, bytes(body))

    return altered(change)


def ignored_range(handler: Handler, request: Request) -> None:
    """The whole object, with status 200."""
    request.headers.pop("range")
    handler.send(handler.forward(request))


def whole(size: int) -> Fault:
    """An object of `size` zeros, with status 200, whatever the range."""

    def fault(handler: Handler, request: Request) -> None:
        generation = urllib.parse.parse_qs(urllib.parse.urlsplit(request.path).query)["generation"][0]
        handler.send(Reply(200, {"X-Goog-Generation": generation}, bytes(size)))

    return fault


def lost_answer(handler: Handler, request: Request) -> None:
    """The request is carried out, but the client does not learn it."""
    handler.forward(request)
    handler.reset()


def after(action: Callable[[], object], fault: Fault | None = None) -> Fault:
    """Something happens just before the request arrives."""

    def late(handler: Handler, request: Request) -> None:
        action()
        if fault is None:
            handler.send(handler.forward(request))
        else:
            fault(handler, request)

    return late


def stored_in_part(count: int, fault: Fault) -> Fault:
    """Only `count` bytes of a chunk are kept, then `fault`."""

    def partly(handler: Handler, request: Request) -> None:
        begin, _ = re.findall(r"\d+", request.headers["content-range"])[:2]
        headers = {**request.headers, "content-range": f"bytes {begin}-{int(begin) + count - 1}/*"}
        handler.forward(replace(request, headers=headers, body=request.body[:count]))
        fault(handler, request)

    return partly


def damaged(handler: Handler, request: Request) -> None:
    """The server stores other bytes than were sent, and takes no notice."""
    spoilt = request.body.replace(b"content", b"contemt")
    headers = {name: value for name, value in request.headers.items() if name != "x-goog-hash"}
    handler.send(handler.forward(replace(request, headers=headers, body=spoilt)))
