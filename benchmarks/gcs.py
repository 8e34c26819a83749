"""How fast relex reads from Google Cloud Storage, beside two other ways, from a fake-gcs-server on this machine.

    python benchmarks/gcs.py [--megabytes 512] [--rounds 5] [--threads 8]

Each way reads one object in ranges of 8 MiB. Server and client share the processors of this machine, so compare the
ways, not these rates with those of a network; CPU seconds are the client's alone. relex checks every range and the
crc32c of the whole object on the way, the others check nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import urllib3

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # before this folder, where `gcs` is this file

PIECE = 8 << 20
BUCKET, KEY = "benchmark", "step_60/model.safetensors"
WAYS = ("relex", "download_as_bytes", "urllib3")


def main() -> None:
    arguments = parse()
    size = arguments.megabytes * 1_000_000
    from gcs.server import fake_gcs_server

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, BUCKET, KEY)
        path.parent.mkdir(parents=True)
        path.write_bytes(os.urandom(size))
        with fake_gcs_server(Path(folder)) as url:
            os.environ["STORAGE_EMULATOR_HOST"] = url
            buffer = memoryview(bytearray(size))
            ways = readers(url, buffer, arguments.threads)
            measured: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
            for _ in range(arguments.rounds + 1):  # in turn, so that a noisy neighbour disturbs all of them
                for name in WAYS:
                    measured[name].append(measure(ways[name]))
            same = path.read_bytes() == buffer
    report(measured, size, same)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=512, help="size of the object, 10^6 bytes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=8, help="of the two other ways; relex has its own")
    return parser.parse_args()


def readers(url: str, buffer: memoryview, threads: int) -> dict[str, Callable[[], object]]:
    """Each way as a function that reads the whole object."""
    from google.cloud.storage import Client

    from relex_core.storage import open_store

    store = open_store(f"gs://{BUCKET}")
    info = store.stat(KEY)
    blob = Client(project=None).bucket(BUCKET).blob(KEY)
    pool, connections = ThreadPoolExecutor(threads), urllib3.PoolManager(maxsize=threads, block=True)
    media = f"{url}/download/storage/v1/b/{BUCKET}/o/{quote(KEY, safe='')}?alt=media&generation={info.generation}"
    pieces = [(start, min(start + PIECE, len(buffer))) for start in range(0, len(buffer), PIECE)]

    def download(piece: tuple[int, int]) -> None:
        blob.download_as_bytes(start=piece[0], end=piece[1] - 1)

    def plain(piece: tuple[int, int]) -> None:
        headers = {"Range": f"bytes={piece[0]}-{piece[1] - 1}"}
        response = connections.request("GET", media, headers=headers, preload_content=False)
        view = buffer[slice(*piece)]
        while view and (count := response.readinto(view)):
            view = view[count:]
        response.release_conn()

    return {
        "relex": lambda: store.read_into(KEY, info.generation, 0, buffer),
        "download_as_bytes": lambda: list(pool.map(download, pieces)),
        "urllib3": lambda: list(pool.map(plain, pieces)),
    }


def measure(read: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process."""
    began, cpu = time.perf_counter(), time.process_time()
    read()
    return time.perf_counter() - began, time.process_time() - cpu


def report(measured: dict[str, list[tuple[float, float]]], size: int, same: bool) -> None:
    """Medians over the rounds; the first round is left out: it opens the connections."""
    rates = {name: size / 1e6 / statistics.median(wall for wall, _ in runs[1:]) for name, runs in measured.items()}
    cpus = {name: statistics.median(cpu for _, cpu in runs[1:]) / size * 1e9 for name, runs in measured.items()}
    for name in WAYS:
        print(f"{name:<18} {rates[name]:7.0f} MB/s  {cpus[name]:6.2f} CPU s/GB")
    print(f"relex / download_as_bytes  {rates['relex'] / rates['download_as_bytes']:.2f}x  (aim: 3)")
    print(f"relex / urllib3            {rates['relex'] / rates['urllib3']:.2f}x  (aim: 0.9)")
    print(f"bytes {'equal' if same else 'DIFFER'}")


if __name__ == "__main__":
    main()
