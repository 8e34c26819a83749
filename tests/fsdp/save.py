"""Real torch.distributed processes that save a trajectory's weights as verl's FSDP workers do.

    python -m fsdp.save '[{"kind": "fsdp2", "world": 3, "source": ..., "out": ..., "steps": [1, 2]}, ...]'

Every job forks `world` ranks on gloo. The model is a tree of modules with the names and shapes of `source`'s Hugging
Face checkpoints, sharded layer by layer; where the config ties them, lm_head.weight is the embedding's parameter. What
follows is what verl does in FSDPCheckpointManager.save_checkpoint: `torch.save(model.state_dict(), ...)` for each rank
(with SHARDED_STATE_DICT for FSDP1, where verl always gives a device mesh), optimizer and extra state beside it, config
and tokenizer in huggingface/, and the last step in latest_checkpointed_iteration.txt.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # fully_shard does so: once here, before the ranks are forked
import torch._inductor.config
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardedStateDictConfig, StateDictType, fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def module_of(tensors: dict[str, Tensor], tied: bool) -> nn.Module:
    """Modules with parameters of these names."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, nn.Parameter(tensor.clone()))
    if tied:
        root.lm_head = nn.Module()
        root.lm_head.weight = root.model.embed_tokens.weight  # type: ignore[union-attr]
    return root


def sharded(model: nn.Module, kind: str, mesh: DeviceMesh) -> nn.Module:
    if kind == "fsdp1":
        return FullyShardedDataParallel(model, device_mesh=mesh, device_id=torch.device("cpu"))
    if kind == "sharded_tensor":
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    for layer in model.model.layers.children():  # type: ignore[union-attr, operator]
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def state_dict(model: nn.Module) -> dict[str, Any]:
    if not isinstance(model, FullyShardedDataParallel):
        return model.state_dict()
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig()):
        return model.state_dict()


def rank_of(rank: int, rendezvous: str, job: dict[str, Any]) -> None:
    """One process."""
    warnings.simplefilter("ignore")
    world, kind = job["world"], job["kind"]
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    shape, names = ((world // 2, 2), ("ddp", "fsdp")) if kind == "hsdp" else ((world,), ("fsdp",))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for step in job["steps"]:
        source = Path(job["source"]) / f"global_step_{step}" / "actor" / "huggingface"
        save(job, step, source, mesh)
    dist.destroy_process_group()


def save(job: dict[str, Any], step: int, source: Path, mesh: DeviceMesh) -> None:
    weights = load_file(source / "model.safetensors")
    tied = json.loads((source / "config.json").read_text()).get("tie_word_embeddings", False)
    started = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    model = sharded(module_of(weights if job["kind"] != "fsdp2" else started, tied), job["kind"], mesh)
    if job["kind"] == "fsdp2":  # as verl's fsdp2_load_full_state_dict
        full = {**weights, OUTPUT: weights[EMBEDDING]} if tied else weights
        set_model_state_dict(model, full, options=StateDictOptions(full_state_dict=True))
    actor = Path(job["out"]) / f"global_step_{step}" / "actor"
    actor.mkdir(parents=True, exist_ok=True)
    suffix = f"world_size_{dist.get_world_size()}_rank_{dist.get_rank()}.pt"
    torch.save(state_dict(model), actor / f"model_{suffix}")
    torch.save({"state": {}}, actor / f"optim_{suffix}")
    torch.save({"lr_scheduler": None, "rng": {"cpu": torch.get_rng_state()}}, actor / f"extra_state_{suffix}")
    dist.barrier()
    if dist.get_rank() == 0:
        (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": job["world"]}))
        shutil.copytree(
            source, actor / "huggingface", ignore=shutil.ignore_patterns("*.safetensors*"), dirs_exist_ok=True
        )
        (Path(job["out"]) / "latest_checkpointed_iteration.txt").write_text(str(step))


def save_oddities(rank: int, rendezvous: str, job: dict[str, Any]) -> None:
    """One folder for each thing that is refused, each with a state dict of one tensor "x"."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=1)
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("fsdp",))
    square = torch.arange(16.0).reshape(4, 4)

    def placed(tensor: Tensor, *placements: Placement, on: DeviceMesh = mesh) -> DTensor:
        return DTensor.from_local(tensor, on, placements, run_check=False)

    two = init_device_mesh("cpu", (1, 1), mesh_dim_names=("fsdp", "tp"))
    oddities = {
        "columns": placed(square, Shard(1)),
        "partial": placed(square, Partial()),
        "strided": placed(square, _StridedShard(0, split_factor=2)),
        "twice": placed(square, Shard(0), Shard(1), on=two),
        "transposed": placed(square.T, Shard(0)),
        "float8": square.to(torch.float8_e4m3fn),
        "complex": square.to(torch.complex64),
        "sparse": square.to_sparse(),
        "parameter": nn.Parameter(square),
        "number": 3,
        "view": square[1:3],
        "replicated": placed(square, Replicate()),
    }
    for name, tensor in oddities.items():
        folder = Path(job["out"]) / name
        folder.mkdir(parents=True)
        torch.save({"x": tensor}, folder / "model_world_size_1_rank_0.pt")
    dist.destroy_process_group()


def main() -> None:
    torch.set_num_threads(1)
    for job in json.loads(sys.argv[1]):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.start_processes(
                save_oddities if job["kind"] == "odd" else rank_of,
                (f"{folder}/rendezvous", job),
                nprocs=job["world"],
                start_method="fork",
            )


if __name__ == "__main__":
    main()
