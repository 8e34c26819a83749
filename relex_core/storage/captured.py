"""The files of captured steps, read as if the trainer had not deleted them.

    RUN/captured/step-000000000012.relexpatch      one object a step; opened as a folder of files

A block is unpacked by going back to an earlier step that holds it whole (or to a block still in memory) and applying
the patches since. The fit asks for the same blocks at every step in order, so each patch is read and applied once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Lock
from typing import NoReturn

from relex_core.errors import CheckpointChanged, DataError, ObjectNotFound, StorageError
from relex_core.storage.base import ObjectInfo, Store, Writer
from relex_core.storage.patches import BLOCK_BYTES, LATER_STEPS, CapturedFile, PatchIndex, read_index, unpack

# The last step's blocks of the stripes in work: two for each of up to 32 threads.
CACHED_BLOCKS = 64


@dataclass(frozen=True)
class CapturedStep:
    """One opened object."""

    info: ObjectInfo
    index: PatchIndex
    index_checksum: str
    files: dict[str, CapturedFile]
    offsets: dict[str, list[int]]


class CapturedSteps:
    """The captured steps of one folder, with the blocks they unpacked last. Safe to use from several threads.

    Args:
        store: rooted at RUN/captured.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._steps: dict[str, CapturedStep] = {}
        self._blocks: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()
        self._lock = Lock()

    def step(self, name: str) -> CapturedStep:
        """The index of one step.

        Raises:
            ObjectNotFound: there is no such step.
            DataError: it is damaged.
        """
        with self._lock:
            known = self._steps.get(name)
        if known is None:
            info = self.store.stat(name)
            index, checksum = read_index(self.store, info)
            files = {file.name: file for file in index.files}
            known = CapturedStep(info, index, checksum, files, index.offsets())
            with self._lock:
                self._steps[name] = known
        return known

    def whole_step(self, name: str) -> CapturedStep:
        """The same, with all that it builds upon in place.

        Raises:
            ObjectNotFound: there is no such step.
            DataError: it is damaged, or a step that it builds upon was replaced or removed.
        """
        step = link = self.step(name)
        while link.index.parent is not None:
            link = self._link(link.index.parent, link)
        return step

    def block(self, name: str, file: str, number: int) -> bytes:
        """One unpacked block of a file of step `name`.

        Raises:
            DataError: a step is damaged, or one that it builds upon was replaced or removed.
        """
        chain: list[CapturedStep] = []
        content = self._cached(name, file, number)
        while content is None:
            step = self._link(name, chain[-1] if chain else None)
            if number >= len(step.files[file].blocks if file in step.files else ()):
                raise DataError(f"a captured step has no block {number} of {file}", where=self._where(name))
            chain.append(step)
            if step.files[file].blocks[number].kind in ("raw", "zstd"):
                break
            assert step.index.parent is not None, "checked when the index was read"
            name = step.index.parent
            content = self._cached(name, file, number)
        for step in reversed(chain):
            content = self._unpacked(step, file, number, content)
        assert content is not None
        return content

    def _link(self, name: str, child: CapturedStep | None) -> CapturedStep:
        """A step of a chain of patches: the very one that its child was made against."""
        try:
            step = self.step(name)
        except ObjectNotFound:
            if child is None:
                raise
            raise self._broken(name, child, "is gone") from None
        if child is not None:
            if step.index_checksum != child.index.parent_crc32c:
                raise self._broken(name, child, "was replaced")
            if step.index.depth != child.index.depth - 1:  # also ends a ring of parents
                raise DataError("a captured step contradicts its parent", where=self._where(child.info.name))
        return step

    def _unpacked(self, step: CapturedStep, file: str, number: int, earlier: bytes | None) -> bytes:
        captured = step.files[file]
        block = captured.blocks[number]
        data = bytearray(block.stored)
        if block.stored:
            offset = step.offsets[file][number]
            self.store.read_into(step.info.name, step.info.generation, offset, memoryview(data))
        size, where = captured.block_bytes(number), f"{self._where(step.info.name)}, {file}"
        content = unpack(block, bytes(data), earlier, size, where)
        with self._lock:
            self._blocks[step.info.name, file, number] = content
            while len(self._blocks) > CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        return content

    def _cached(self, name: str, file: str, number: int) -> bytes | None:
        with self._lock:
            content = self._blocks.get((name, file, number))
            if content is not None:
                self._blocks.move_to_end((name, file, number))
            return content

    def _where(self, name: str) -> str:
        return f"{self.store.uri}/{name}"

    def _broken(self, name: str, child: CapturedStep, what: str) -> DataError:
        return DataError(
            f"step {child.index.step} was captured as a patch of {name}, which {what}",
            where=self._where(name),
            expected="every file of the folder as it was written",
            next_step=f"restore the file; if it is lost, remove {LATER_STEPS}",
        )


class CapturedStore:
    """The files of one captured step, read-only, by the names they had.

    Args:
        uri: of the object.
        steps: shared by all steps that are read together, so that each patch is unpacked once.
    """

    def __init__(self, uri: str, steps: CapturedSteps) -> None:
        self.uri = uri
        self._steps, self._name = steps, uri.rpartition("/")[2]

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        step = self._steps.whole_step(self._name)
        names = [name for name in sorted(step.files) if not prefix]
        return iter([self._info(step, name) for name in names])

    def stat(self, key: str) -> ObjectInfo:
        step = self._steps.step(self._name)
        if key not in step.files:
            raise ObjectNotFound("no such file in the captured step", where=f"{self.uri}/{key}")
        return self._info(step, key)

    def read_into(self, key: str, generation: int, offset: int, buffer: memoryview) -> None:
        buffer = buffer.cast("B")
        info = self.stat(key)
        if info.generation != generation:
            raise CheckpointChanged(
                "the captured step was replaced",
                where=self.uri,
                expected=f"generation {generation}",
                next_step="collect again into a new run directory",
            )
        if offset + len(buffer) > info.size:
            raise StorageError(f"the file ends at byte {info.size}", where=f"{self.uri}/{key}")
        done = 0
        while done < len(buffer):
            number, start = divmod(offset + done, BLOCK_BYTES)
            block = self._steps.block(self._name, key, number)
            count = min(len(block) - start, len(buffer) - done)
            buffer[done : done + count] = memoryview(block)[start : start + count]
            done += count

    def create(self, key: str, data: bytes) -> ObjectInfo:
        self._refuse(key)

    def replace(self, key: str, data: bytes, generation: int) -> ObjectInfo:
        self._refuse(key)

    def open_write(self, key: str) -> AbstractContextManager[Writer]:
        self._refuse(key)

    def delete(self, key: str) -> None:
        self._refuse(key)

    def _refuse(self, key: str) -> NoReturn:
        raise StorageError("captured steps are not written to", where=f"{self.uri}/{key}")

    def _info(self, step: CapturedStep, name: str) -> ObjectInfo:
        file = step.files[name]
        return ObjectInfo(name, file.size, step.info.generation, file.crc32c)
