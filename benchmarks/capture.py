"""What captured steps take, and how fast blocks are packed and unpacked.

    python benchmarks/capture.py [TRAJECTORY]

With a trajectory (for example relex-demo/rl-run), all of its complete steps are captured into a temporary folder. Then
one core packs blocks of bfloat16 weights of which a share changed by one unit in the last place.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from array import array

from relex_core.capture import capture_step
from relex_core.observe import observe
from relex_core.storage.patches import BLOCK_BYTES, pack, unpack

BLOCKS = 8
SHARES = (0.01, 0.03, 0.1)


def capture(trajectory: str) -> None:
    with tempfile.TemporaryDirectory() as run:
        reports = [capture_step(run, step) for step in observe(trajectory) if step.complete]
    raw, stored = sum(r.raw_bytes for r in reports), sum(r.stored_bytes for r in reports)
    print(f"{len(reports)} steps: {stored / 1e6:.1f} of {raw / 1e6:.1f} MB, {raw / stored:.1f} x smaller")


def codec(share: float) -> None:
    rng = random.Random(0)
    packing = unpacking = stored = 0.0
    for _ in range(BLOCKS):
        weights = array("H", (0x3C00 + int(abs(rng.gauss(0, 200))) for _ in range(BLOCK_BYTES // 2)))
        earlier = weights.tobytes()
        for index in range(len(weights)):
            if rng.random() < share:
                weights[index] += 1
        later = weights.tobytes()
        start = time.perf_counter()
        block, data = pack(memoryview(later), earlier)
        middle = time.perf_counter()
        assert unpack(block, data, earlier, BLOCK_BYTES, "here") == later
        packing, unpacking = packing + middle - start, unpacking + time.perf_counter() - middle
        stored += len(data)
    megabytes = BLOCKS * BLOCK_BYTES / 1e6
    print(
        f"{share:.0%} changed: {megabytes * 1e6 / stored:.0f} x smaller, packing {megabytes / packing:.0f} MB/s, "
        f"unpacking {megabytes / unpacking:.0f} MB/s a core"
    )


if __name__ == "__main__":
    for trajectory in sys.argv[1:]:
        capture(trajectory)
    for share in SHARES:
        codec(share)
