"""What a fit of 70 B parameters and 100 steps takes on 1 to 64 pods: a simulation, not a measurement.

    python benchmarks/pods.py [--steps 100] [--cores 16] [--gigabytes-per-second 1.0] [--budget 64GiB] [--changed 0.25]

Real: the tensors of a Llama 3 70B, and how relex groups them, shares the groups out to pods (`--shard i/N`), and reads
them (once, or twice where T slices exceed the memory budget). Assumed, and to be replaced by what you measure:

* so many weights of every stripe ever change (`--changed`; 1: as the plan has it, for the worst case);
* a pod reads at a constant rate, all pods together no faster than the bucket's;
* the arithmetic takes a + b T + c T² ns of one core per weight (benchmarks/growth.py prints the three) and overlaps
  with reading, so that the slower one counts;
* directions are written at the rate of reading; pods start within the same time (scheduling, image, imports);
* the merge reads the Gram matrices and takes what 1 ms a tensor adds up to.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

from relex_core.groups import Group, shard_groups
from relex_core.manifest import BaseRecord, CheckpointRecord, TensorRecord, WindowManifest
from relex_core.plan import FitPlan, plan_fit
from relex_core.spec import FitSpec

PODS = (1, 2, 4, 8, 16, 32, 64)
LAYERS, HIDDEN, INNER, KEY_VALUE, VOCABULARY = 80, 8192, 28672, 1024, 128256
SECONDS_PER_MERGED_TENSOR = 0.001


@dataclass(frozen=True)
class Pod:
    """Seconds of one pod."""

    reading: float
    computing: float
    writing: float

    @property
    def seconds(self) -> float:
        return max(self.reading, self.computing) + self.writing


def main() -> None:
    arguments = parse()
    plan = plan_of(arguments)
    weights = sum(tensor.numel for group in plan.groups for tensor in group.tensors)
    tensors = sum(len(group.tensors) for group in plan.groups)
    read = bytes_of(plan, plan.groups, arguments.changed)
    print(f"{weights / 1e9:.1f} B parameters, {plan.steps} steps: {read / 1e12:.1f} TB to read, ", end="")
    print(f"{read / (weights * 2 * (plan.steps + 1)):.2f} x (window + base); ", end="")
    print(f"{plan.peak_bytes / 2**30:.1f} GiB a pod, {arguments.cores} cores\n")
    print("| pods | largest share | reading s | arithmetic s | writing s | fit s | with start and merge | pod hours |")
    print("|---|---|---|---|---|---|---|---|")
    for pods in PODS:
        found = [pod(arguments, plan, shard_groups(plan.groups, i, pods), pods) for i in range(1, pods + 1)]
        share = max(sum(map(weights_of, shard_groups(plan.groups, i, pods))) for i in range(1, pods + 1)) / weights
        slowest = max(found, key=lambda one: one.seconds)
        whole = arguments.start + slowest.seconds + tensors * SECONDS_PER_MERGED_TENSOR
        hours = sum(arguments.start + one.seconds for one in found) / 3600
        print(
            f"| {pods} | {share * pods:.2f} of 1/{pods} | {slowest.reading:,.0f} | {slowest.computing:,.0f} | "
            f"{slowest.writing:,.0f} | {slowest.seconds:,.0f} | {whole:,.0f} s | {hours:.1f} |"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--cores", type=int, default=16, help="of each pod")
    parser.add_argument("--gigabytes-per-second", type=float, default=1.0, help="one pod reads")
    parser.add_argument("--bucket", type=float, default=25.0, help="gigabytes a second of all pods together")
    parser.add_argument("--budget", default="64GiB", help="fit.memory_budget of each pod")
    parser.add_argument("--changed", type=float, default=1.0, help="share of the weights that ever change")
    parser.add_argument("--start", type=float, default=90.0, help="seconds until a pod runs")
    parser.add_argument("--nanoseconds", type=float, nargs=3, default=DEFAULT, metavar=("A", "B", "C"))
    return parser.parse_args()


DEFAULT = (48, 1.28, 0.0182)
"""Measured on two cores of an AMD EPYC (docs/performance.md)."""


def plan_of(arguments: argparse.Namespace) -> FitPlan:
    """The plan that relex makes for this model in each pod."""
    names = [TensorRecord(name=name, shape=shape, dtype="BF16") for name, shape in shapes()]
    steps = [
        CheckpointRecord(step=step, uri=f"gs://run/step_{step}", files=()) for step in range(1, arguments.steps + 1)
    ]
    base = BaseRecord(uri="base", files=())
    manifest = WindowManifest(base=base, checkpoints=tuple(steps), tensors=tuple(names), t_cut=arguments.steps)
    spec = FitSpec(memory_budget=arguments.budget)
    return plan_fit(
        manifest, {record.name: "BF16" for record in names}, spec, int(spec.memory_budget), workers=arguments.cores
    )


def shapes() -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama 3 70B."""
    layer = {
        **{"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEY_VALUE, HIDDEN)},
        **{"self_attn.v_proj": (KEY_VALUE, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN)},
        **{"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)},
        **{"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)},
    }
    whole = [("model.embed_tokens.weight", (VOCABULARY, HIDDEN))]
    whole += [(f"model.layers.{i}.{name}.weight", shape) for i in range(LAYERS) for name, shape in layer.items()]
    return [*whole, ("model.norm.weight", (HIDDEN,)), ("lm_head.weight", (VOCABULARY, HIDDEN))]


def bytes_of(plan: FitPlan, groups: Sequence[Group], changed: float) -> float:
    """Bytes read, second reads included: stripes of which at most a third changed wait packed, several in a buffer."""
    row = 2 * plan.steps
    in_a_buffer = int(row / (max(changed, 0.001) * (row + 2 + 4))) if changed <= 1 / 3 else 1
    packed = (in_a_buffer - 1) * plan.columns * (row + 2)
    return sum(
        plan.tensor_bytes(tensor) + max(plan.again_bytes(tensor) - plan.kept_buffers(tensor) * packed, 0)
        for group in groups
        for tensor in group.tensors
    )


def weights_of(group: Group) -> int:
    return sum(math.prod(tensor.shape) for tensor in group.tensors)


def pod(arguments: argparse.Namespace, plan: FitPlan, groups: list[Group], pods: int) -> Pod:
    """One pod's seconds, if every pod gets its share of the bucket."""
    rate = min(arguments.gigabytes_per_second, arguments.bucket / pods) * 1e9
    weights = sum(map(weights_of, groups))
    a, b, c = arguments.nanoseconds
    return Pod(
        reading=bytes_of(plan, groups, arguments.changed) / rate,
        computing=weights * (a + b * plan.steps + c * plan.steps**2) * 1e-9 / arguments.cores,
        writing=weights * plan.stored_columns * plan.direction_item_bytes / rate,
    )


if __name__ == "__main__":
    main()
