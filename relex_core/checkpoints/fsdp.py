"""FSDP shards as verl saves them by default, read where they lie: model_world_size_W_rank_R.pt -> tensors.

    zip_storages (which member lies where) -> pickle_index (which tensor lies in which member) -> extents of all ranks

A tensor sharded along its first dimension is the ranks' row blocks one after the other, so joined extents are its
bytes; blocks may be uneven or empty. Of a replicated tensor, and of the replicas of a device mesh with more dimensions
(HSDP), the lowest rank's bytes are taken. What is divided in any other way is refused by name: verl can merge it.

Names are taken as they are: verl saves Hugging Face names, and its merger changes none either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

from relex_core.checkpoints.contents import Checkpoint, Extent, StoredTensor
from relex_core.checkpoints.kinds import FSDP_SHARD
from relex_core.checkpoints.pickle_index import MAX_PICKLE_BYTES, DistributedTensor, LocalTensor, Placement, read_index
from relex_core.checkpoints.pickle_machine import RefusedPickle
from relex_core.checkpoints.safetensors_file import ITEM_BYTES, TornFile
from relex_core.checkpoints.zip_storages import Member, read_member, read_members
from relex_core.errors import CheckpointChanged, DataError, ObjectNotFound
from relex_core.storage import ObjectInfo, Store, read_bytes

# verl keeps config and tokenizer there, whether or not it saves weights beside them.
CONFIG = "huggingface/config.json"
OUTPUT_EMBEDDING = "lm_head.weight"

# One process pickles the same index at every step of a run: reading it costs 0.2 ms a tensor, and is done once.
KNOWN_PICKLE_BYTES = 2**20
_known_index = lru_cache(maxsize=128)(read_index)

Tensor = LocalTensor | DistributedTensor


@dataclass(frozen=True)
class Rank:
    """One rank's file."""

    number: int
    file: ObjectInfo
    tensors: Mapping[str, Tensor]
    members: Mapping[str, Member]


@dataclass(frozen=True)
class _Block:
    """One rank's part of a tensor."""

    rank: Rank
    tensor: Tensor

    @property
    def local(self) -> LocalTensor:
        return self.tensor if isinstance(self.tensor, LocalTensor) else self.tensor.local

    @property
    def member(self) -> Member:
        member = self.rank.members.get(f"data/{self.local.storage.key}")
        if member is None:
            raise DataError(f"its storage is not in {self.rank.file.name}")
        return member

    @property
    def extent(self) -> Extent:
        """Its bytes in the file, with the index held against the archive.

        Raises:
            DataError: they are not where the index says, or not in C order.
        """
        local, member = self.local, self.member
        item = ITEM_BYTES[local.storage.dtype]
        nbytes = math.prod(local.shape) * item
        if member.size != local.storage.numel * item or local.offset * item + nbytes > member.size:
            raise DataError(f"it does not fit its storage in {self.rank.file.name}")
        if not local.contiguous:
            raise DataError(f"its part in {self.rank.file.name} is not contiguous (stride {list(local.stride)})")
        return Extent(self.rank.file, member.offset + local.offset * item, nbytes)

    @property
    def content(self) -> tuple[int, ...]:
        """Equal only for blocks of equal bytes: of the same storage, or of storages with the same checksum."""
        member = self.member
        proof = (member.crc32, member.size) if member.crc32 else (-1, self.rank.number, member.offset)
        return *proof, self.local.offset, *self.local.shape


def read_shards(store: Store, files: Mapping[str, ObjectInfo], checkpoint: Checkpoint) -> None:
    """Fill `checkpoint` with the tensors of all ranks, and with every problem found.

    Args:
        store: rooted at the folder of the shards.
        files: the objects in it, by name.

    Raises:
        StorageError: the storage failed; a file that vanished since the listing is ObjectNotFound.
    """
    checkpoint.config = checkpoint.config or _config(store)
    ranks = [rank for info in _files_of_ranks(files, checkpoint) if (rank := _read_rank(store, info, checkpoint))]
    if not checkpoint.problems:
        _join_ranks(ranks, checkpoint)
    if checkpoint.wrong:
        checkpoint.wrong.append(
            "verl may be able to merge what it wrote: python -m verl.model_merger merge --backend fsdp "
            f"--local_dir {store.uri} --target_dir {store.uri}/huggingface"
        )


def _config(store: Store) -> Mapping[str, object]:
    try:
        config = json.loads(read_bytes(store, CONFIG))
    except (ValueError, RecursionError, ObjectNotFound, CheckpointChanged):
        return {}
    return config if isinstance(config, dict) else {}


def _files_of_ranks(files: Mapping[str, ObjectInfo], checkpoint: Checkpoint) -> list[ObjectInfo]:
    """The files of ranks 0, 1, ... in order; none unless all are there."""
    worlds: dict[int, dict[int, ObjectInfo]] = {}
    for name, info in files.items():
        if match := FSDP_SHARD.fullmatch(name):
            worlds.setdefault(int(match[1]), {})[int(match[2])] = info
    if len(worlds) > 1:
        checkpoint.wrong.append(f"shards of different world sizes lie together: {', '.join(map(str, sorted(worlds)))}")
        return []
    [(world, ranks)] = worlds.items()
    if any(rank >= world for rank in ranks):
        checkpoint.wrong.append(f"{ranks[max(ranks)].name} is a rank beyond its own world size")
        return []
    if len(ranks) < world:
        first = next(rank for rank in range(world) if rank not in ranks)
        checkpoint.incomplete.append(f"{len(ranks)} of {world} shards are there; that of rank {first} is missing")
        return []
    return [ranks[rank] for rank in range(world)]


def _read_rank(store: Store, info: ObjectInfo, checkpoint: Checkpoint) -> Rank | None:
    checkpoint.files.append(info)
    match = FSDP_SHARD.fullmatch(info.name)
    assert match is not None
    try:
        members = read_members(store, info)
        return Rank(int(match[2]), info, _index(store, info, members), members)
    except TornFile as error:
        checkpoint.incomplete.append(f"{info.name} is cut off: {error.what}")
    except CheckpointChanged as error:  # since the listing: it is still being written
        checkpoint.incomplete.append(f"{info.name}: {error.what}")
    except DataError as error:
        checkpoint.wrong.append(f"{info.name} cannot be read: {error.what}")
    return None


def _index(store: Store, info: ObjectInfo, members: Mapping[str, Member]) -> Mapping[str, Tensor]:
    pickle, order = members.get("data.pkl"), members.get("byteorder")
    if pickle is None or pickle.size > MAX_PICKLE_BYTES:
        raise DataError(f"its data.pkl is missing or longer than {MAX_PICKLE_BYTES} bytes")
    if order is not None and order.crc32 not in (0, crc32(b"little")):
        raise DataError("its numbers are not little-endian")
    data = read_member(store, info, pickle)
    if pickle.crc32 not in (0, crc32(data)):
        raise DataError("data.pkl does not have the checksum that the archive gives for it")
    try:
        return _known_index(data) if len(data) <= KNOWN_PICKLE_BYTES else read_index(data)
    except RefusedPickle as error:
        advice = " (FSDP1 without a device mesh)" if "sharded_tensor" in str(error) else ""
        raise DataError(f"data.pkl: {error}{advice}") from None


def _join_ranks(ranks: Sequence[Rank], checkpoint: Checkpoint) -> None:
    """Put the ranks' parts together, tensor by tensor."""
    first = ranks[0]
    if any("lora_" in name for name in first.tensors):
        checkpoint.wrong.append("the shards hold LoRA adapters beside the base, no merged weights")
        return
    for rank in ranks[1:]:
        for name in sorted(first.tensors.keys() ^ rank.tensors.keys()):
            checkpoint.wrong.append(f"tensor {name[:200]} is not in the shards of both rank 0 and rank {rank.number}")
    if checkpoint.wrong:
        return
    contents: dict[tuple[tuple[int, ...], ...], str] = {}
    for name in first.tensors:
        try:
            blocks = _ordered_blocks([_Block(rank, rank.tensors[name]) for rank in ranks])
            checkpoint.tensors[name] = _joined(name, blocks)
        except DataError as error:
            checkpoint.wrong.append(f"tensor {name[:200]}: {error.what}")
            continue
        original = contents.setdefault(tuple(block.content for block in blocks), name)
        # Without a config of its own (captured by an earlier version of relex) the base's decides, in collect.
        tie = not checkpoint.config or checkpoint.config.get("tie_word_embeddings") is True
        if original != name and name == OUTPUT_EMBEDDING and tie:
            checkpoint.tied[name] = original


def _ordered_blocks(blocks: Sequence[_Block]) -> list[_Block]:
    """The blocks that make up a tensor, in the order of its rows: one if nothing is divided.

    Raises:
        DataError: the ranks contradict each other, or it is divided along another dimension than the first.
    """
    tensors = [block.tensor for block in blocks]
    if len({_description(tensor) for tensor in tensors}) > 1:
        raise DataError("its shape, dtype or placement differs between the ranks")
    tensor = tensors[0]
    divided = [] if isinstance(tensor, LocalTensor) else _divided_axes(tensor.placements)
    if not divided:
        if len({block.content for block in blocks if block.member.crc32}) > 1:
            raise DataError("its bytes differ between the ranks although it is not sharded")
        return [blocks[0]]
    by_place: dict[int, _Block] = {}
    for block in blocks:
        by_place.setdefault(_place(block, divided[0]), block)
        if by_place[_place(block, divided[0])].local.shape != block.local.shape:
            raise DataError("two replicas of a shard have different shapes")
    if sorted(by_place) != list(range(len(by_place))):
        raise DataError(f"of its shards only those at {sorted(by_place)[:20]} of the device mesh are there")
    return [by_place[place] for place in sorted(by_place)]


def _description(tensor: Tensor) -> tuple[object, ...]:
    """What all ranks must agree in."""
    if isinstance(tensor, LocalTensor):
        return tensor.storage.dtype, tensor.shape
    return tensor.local.storage.dtype, tensor.shape, tensor.placements


def _divided_axes(placements: Sequence[Placement]) -> list[int]:
    """Dimensions of the device mesh along which the tensor's rows are divided: none or one."""
    divided = [axis for axis, placement in enumerate(placements) if placement.kind != "Replicate"]
    if len(divided) > 1 or any(placements[axis] != Placement("Shard", 0) for axis in divided):
        raise DataError(
            f"it is placed as ({', '.join(map(str, placements))}); only Replicate and one Shard(dim=0) are read"
        )
    return divided


def _place(block: _Block, axis: int) -> int:
    """Which of the shards along that dimension of the device mesh a block is."""
    tensor = block.tensor
    assert isinstance(tensor, DistributedTensor)
    if tensor.coordinate is None and len(tensor.placements) == 1:
        return block.rank.number
    if tensor.coordinate is None or len(tensor.coordinate) != len(tensor.placements):
        raise DataError("its device mesh does not say which rank holds which shard")
    return tensor.coordinate[axis]


def _joined(name: str, blocks: Sequence[_Block]) -> StoredTensor:
    """Blocks of rows as one tensor."""
    tensor, dtype = blocks[0].tensor, blocks[0].local.storage.dtype
    shapes = [block.local.shape for block in blocks]
    rows = sum(shape[0] for shape in shapes if shape)
    whole = shapes == [tensor.shape]
    if not whole and (not tensor.shape or rows != tensor.shape[0]):
        raise DataError(f"its shards have {rows} rows together, the tensor has shape {list(tensor.shape)}")
    if not whole and any(shape[1:] != tensor.shape[1:] for shape in shapes):
        raise DataError(f"a shard's rows have another shape than {list(tensor.shape[1:])}")
    extents = tuple(extent for block in blocks if (extent := block.extent).nbytes)
    return StoredTensor(name, dtype, tensor.shape, extents)
