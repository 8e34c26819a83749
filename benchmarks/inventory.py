"""How long relex needs to find an observation window on a far-away Google Cloud Storage.

    python benchmarks/inventory.py [--checkpoints 150] [--shards 4] [--milliseconds 20] [--rounds 3]

A fake-gcs-server process holds sharded checkpoints with a header of a real model's length; a front on loopback lets
every request wait before it is answered. Timed is `find_window`: the listings, the base, and every marker, config,
index and header. Front, server and client share the processors of this machine, so the figure is an upper bound.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # before this folder, where `gcs` is another file

BUCKET = "inventory"
TENSORS = 400
"""Of a checkpoint: about a 1.5B model's, so that headers have its length. The tensors are of one number each."""


def main() -> None:
    arguments = parse()
    from gcs.faults import faulty_front
    from gcs.server import fake_gcs_server

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, BUCKET), arguments.checkpoints, arguments.shards)
        with fake_gcs_server(Path(folder)) as url, faulty_front(url) as front:
            os.environ["STORAGE_EMULATOR_HOST"] = front.url
            front.latency = arguments.milliseconds / 1000
            seconds = []
            for _ in range(arguments.rounds):
                front.requests.clear()
                seconds.append(measure(arguments.checkpoints))
            kinds = Counter(request.kind for request in front.requests)
    print(f"{arguments.checkpoints} checkpoints x {arguments.shards} shards, {arguments.milliseconds} ms a request")
    print(f"window found in     {statistics.median(seconds):.2f} s  (median of {arguments.rounds})")
    print(
        f"requests            {kinds.total()}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    )
    print(f"one after another   {kinds.total() * arguments.milliseconds / 1000:.0f} s of waiting")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=150)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--milliseconds", type=float, default=20, help="what every request waits")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def write(bucket: Path, checkpoints: int, shards: int) -> None:
    """A base and a trajectory in verl's layout; every step has other weights."""
    for step in range(checkpoints + 1):
        folder = bucket / (f"run/global_step_{step}/actor/huggingface" if step else "base")
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 1536}))
        weight_map = {}
        for shard in range(shards):
            name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            tensors = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(shard, TENSORS, shards)]
            (folder / name).write_bytes(safetensors(tensors, step))
            weight_map |= dict.fromkeys(tensors, name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (bucket / "run" / "latest_checkpointed_iteration.txt").write_text(str(checkpoints))


def safetensors(names: list[str], value: int) -> bytes:
    """A file of one float32 a tensor."""
    header: dict[str, Any] = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + value.to_bytes(4, "little") * len(names)


def measure(checkpoints: int) -> float:
    """Seconds of one find_window."""
    from relex_core.collect import find_window
    from relex_core.spec import resolve_spec

    data = {"base": f"gs://{BUCKET}/base", "trajectory": f"gs://{BUCKET}/run", "window": {"t_cut": checkpoints}}
    spec = resolve_spec(data, where="benchmark", folder=Path.cwd())
    began = time.perf_counter()
    manifest = find_window(spec)
    seconds = time.perf_counter() - began
    assert len(manifest.steps) == checkpoints
    return seconds


if __name__ == "__main__":
    main()
