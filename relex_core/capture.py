"""Capture: copy the weights of a complete checkpoint into the run directory before the trainer deletes it.

    trajectory/global_step_12/... ──► RUN/captured/step-000000000012.relexpatch

Trainers keep the last few checkpoints only (`save_total_limit`, `max_actor_ckpt_to_keep`), and a window needs them all.
Each file is copied byte by byte, in blocks, as a lossless patch against the step captured before it where that is
smaller (storage/patches.py). `collect` reads captured steps as if they were still in the trajectory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from relex_core import layout
from relex_core.checkpoints import fsdp
from relex_core.checkpoints.checkpoint import CONFIG
from relex_core.checkpoints.kinds import holds_shards
from relex_core.checkpoints.observed import CAPTURED, ObservedStep, refuse_rewritten
from relex_core.errors import DataError
from relex_core.events import record_event
from relex_core.parallel import cores, ordered_map
from relex_core.storage import ObjectInfo, Store, exists, join_uri, open_store
from relex_core.storage.captured import CapturedStep, CapturedSteps
from relex_core.storage.crc32c import combine, encode
from relex_core.storage.patches import BLOCK_BYTES, Block, CapturedFile, PatchIndex, encode_index, pack

# A read of 8 MiB, the size at which a distant store is fastest.
BLOCKS_PER_READ = 8

# A block read out of order needs all patches since the last step that stands by itself. Such a step costs about 70 %
# of its bytes, so 1 in 32 keeps the whole far below a tenth.
STEPS_PER_WHOLE = 32


@dataclass(frozen=True)
class CaptureReport:
    """What one captured step takes."""

    step: int
    raw_bytes: int
    """Bytes of the files."""
    stored_bytes: int
    """Bytes of the object that holds them."""


def capture_step(run: str, observed: ObservedStep) -> CaptureReport:
    """Copy one complete checkpoint into RUN/captured; nothing is there before all of it is.

    Memory: about 20 MiB for each core.

    Raises:
        CheckpointChanged, ObjectNotFound: the trainer replaced or deleted a file meanwhile.
        DataError: a file is not what the store says that it is.
    """
    folder = CapturedSteps(open_store(join_uri(run, layout.CAPTURED)))
    step = observed.folder.step
    source = open_store(observed.uri)
    parent = _parent(folder, step)
    with ThreadPoolExecutor(cores()) as pool, folder.store.open_write(layout.captured_step(step)) as stream:
        files = []
        for info in _files(observed):
            blocks = []
            for block, data in _packed(pool, source, info, folder, parent):
                stream.write(data)
                blocks.append(block)
            files.append(_captured_file(info, blocks, source))
        index = PatchIndex(
            step=step,
            source=observed.uri,
            layout=observed.folder.layout.name,
            parent=parent.info.name if parent else None,
            parent_crc32c=parent.index_checksum if parent else None,
            depth=parent.index.depth + 1 if parent else 0,
            files=tuple(files),
        )
        trailer = encode_index(index)
        stream.write(trailer)
    report = CaptureReport(step, sum(file.size for file in files), index.stored_bytes + len(trailer))
    record_event(run, "captured", step=step, raw_bytes=report.raw_bytes, stored_bytes=report.stored_bytes)
    return report


def is_captured(run: str, step: int) -> bool:
    """Whether RUN holds this step."""
    return exists(open_store(join_uri(run, layout.CAPTURED)), layout.captured_step(step))


def refuse_other_training(run: str, steps: Iterable[ObservedStep]) -> None:
    """Hold the captured steps against the originals that are still there.

    Raises:
        WindowError: a step is not the one that was captured: nothing may be captured beside it.
    """
    folder = CapturedSteps(open_store(join_uri(run, layout.CAPTURED)))
    there = {info.name for info in folder.store.list()}
    for step in steps:
        name = layout.captured_step(step.folder.step)
        if name in there:
            refuse_rewritten(step.folder, folder.step(name).index)


def _parent(folder: CapturedSteps, step: int) -> CapturedStep | None:
    """The captured step just below, unless its chain of patches is long enough; a damaged one is no parent, nor is a
    patch of one."""
    numbers = [(CAPTURED.step_of(info.name), info.name) for info in folder.store.list()]
    below = [(number, name) for number, name in numbers if number is not None and number < step]
    if not below:
        return None
    try:
        parent = folder.whole_step(max(below)[1])
    except DataError:
        return None
    return parent if parent.index.depth + 1 < STEPS_PER_WHOLE else None


def _files(observed: ObservedStep) -> list[ObjectInfo]:
    """The weights, and the config that says which model they are."""
    weights = observed.checkpoint.files
    places = (CONFIG, fsdp.CONFIG) if holds_shards(info.name for info in weights) else (CONFIG,)
    configs = [info for info in map(observed.folder.file, places) if info is not None]
    return sorted([*weights, *configs[:1]], key=_name)


def _name(info: ObjectInfo) -> str:
    """What a file is called in the captured step, which is one folder: FSDP's config lies in one of its own."""
    return info.name.rpartition("/")[2]


def _packed(
    pool: ThreadPoolExecutor, source: Store, info: ObjectInfo, folder: CapturedSteps, parent: CapturedStep | None
) -> Iterator[tuple[Block, bytes]]:
    """The file's blocks in order, each as it is stored."""
    before = parent.files.get(_name(info)) if parent else None

    def earlier(number: int) -> bytes | None:
        if parent is None or before is None or number >= len(before.blocks):
            return None
        return folder.block(parent.info.name, _name(info), number)

    def packed(first: int) -> list[tuple[Block, bytes]]:
        start = first * BLOCK_BYTES
        piece = bytearray(min(BLOCKS_PER_READ * BLOCK_BYTES, info.size - start))
        source.read_into(info.name, info.generation, start, memoryview(piece))
        blocks = range(0, len(piece), BLOCK_BYTES)
        view = memoryview(piece)
        return [pack(view[at : at + BLOCK_BYTES], earlier(first + at // BLOCK_BYTES)) for at in blocks]

    firsts = range(0, -(-info.size // BLOCK_BYTES), BLOCKS_PER_READ)
    for piece in ordered_map(pool, packed, firsts, ahead=cores()):
        yield from piece


def _captured_file(info: ObjectInfo, blocks: Sequence[Block], source: Store) -> CapturedFile:
    """The file's record, its checksum joined from those of the blocks and held against the store's."""
    crc = 0
    for block in blocks[:-1]:
        crc = combine(crc, block.crc32c, BLOCK_BYTES)
    if blocks:
        crc = combine(crc, blocks[-1].crc32c, info.size - (len(blocks) - 1) * BLOCK_BYTES)
    if info.crc32c not in (None, encode(crc)):
        raise DataError(
            "the bytes that were read do not have the checksum that the store keeps of them",
            where=f"{source.uri}/{info.name}",
            expected=str(info.crc32c),
            next_step="run the same command again",
        )
    return CapturedFile(
        name=_name(info), size=info.size, crc32c=encode(crc), generation=info.generation, blocks=tuple(blocks)
    )
