"""WindowManifest: the observation window, frozen: which files, of which generation, hold which step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from relex_core import layout
from relex_core.errors import DataError, SpecError
from relex_core.spec import RunSpec
from relex_core.storage import ObjectInfo, join_uri
from relex_core.stored_json import load_stored

ADAPTER_WEIGHTS = "adapter_model.safetensors"


class Record(BaseModel):
    """A part of the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(Record):
    """One file as it was when the window was collected."""

    name: str
    size: int
    generation: int
    crc32c: str | None = None

    @classmethod
    def of(cls, info: ObjectInfo) -> FileRecord:
        return cls(name=info.name, size=info.size, generation=info.generation, crc32c=info.crc32c)

    def info(self) -> ObjectInfo:
        return ObjectInfo(self.name, self.size, self.generation, self.crc32c)


class BaseRecord(Record):
    """The model the RL run started from: its weight files and the files that are copied beside candidates."""

    uri: str
    files: tuple[FileRecord, ...]


class CheckpointRecord(Record):
    """One observed checkpoint: its weight files."""

    step: int
    uri: str
    files: tuple[FileRecord, ...]


class TensorRecord(Record):
    """One weight tensor, as the observed checkpoints store it; in the order of the base's files."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class WindowManifest(Record):
    """The observation window. `digest` covers everything else and is recorded by every later artifact."""

    base: BaseRecord
    checkpoints: tuple[CheckpointRecord, ...]
    tensors: tuple[TensorRecord, ...]
    t_cut: int
    digest: str = ""

    @model_validator(mode="after")
    def _ordered(self) -> WindowManifest:
        if any(later <= earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError(f"steps are out of order: {list(self.steps)}")
        return self

    @property
    def steps(self) -> tuple[int, ...]:
        """True optimizer steps, ascending."""
        return tuple(checkpoint.step for checkpoint in self.checkpoints)

    @property
    def adapters(self) -> bool:
        """Whether the checkpoints are LoRA adapters; `tensors` are then those of the base that they change."""
        return any(file.name == ADAPTER_WEIGHTS for file in self.checkpoints[0].files)

    @property
    def last_observed(self) -> CheckpointRecord:
        return self.checkpoints[-1]

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """Neighbouring steps that lie farther apart than most of them do; none where no distance is usual."""
        pairs = list(zip(self.steps, self.steps[1:], strict=False))
        distances = [after - before for before, after in pairs]
        usual = max(set(distances), key=distances.count, default=0)
        if 2 * distances.count(usual) <= len(distances):
            return []
        return [(before, after) for before, after in pairs if after - before > usual]

    def with_digest(self) -> WindowManifest:
        return self.model_copy(update={"digest": self._content_digest()})

    def _content_digest(self) -> str:
        return digest_of(self.model_dump(mode="json", exclude={"digest"}))


def gaps_text(gaps: Sequence[tuple[int, int]]) -> str:
    """[(6, 8), (11, 14)] -> "6 to 8, 11 to 14"."""
    shown = ", ".join(f"{before} to {after}" for before, after in gaps[:10])
    return shown + (f" ... ({len(gaps)})" if len(gaps) > 10 else "")


def digest_of(data: Any) -> str:
    """SHA-256 of the canonical JSON of plain data."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def short_digest(data: Any) -> str:
    """The first 16 hexadecimal digits of `digest_of`: enough to name things by."""
    return digest_of(data).removeprefix("sha256:")[:16]


def spec_digest(spec: RunSpec) -> str:
    """Tells one spec of a run directory from the next."""
    return digest_of(spec.model_dump(mode="json"))


def load_manifest(run: str) -> WindowManifest:
    """Read RUN/window.json.

    Raises:
        WindowNotReady: nothing was collected yet.
        DataError: the file was changed by hand, or an incompatible version of relex wrote it.
    """
    repair = "collect again into a new run directory; do not edit window.json"
    manifest = load_stored(
        *(WindowManifest, run, layout.WINDOW),
        absent="nothing is collected yet",
        make=f"relex collect SPEC --out {run}",
        repair=repair,
    )
    if manifest.digest != manifest._content_digest():
        raise DataError(
            "the window manifest does not match its own digest",
            where=join_uri(run, layout.WINDOW),
            expected=manifest.digest,
            next_step=repair,
        )
    return manifest


def refuse_other_window(spec: RunSpec, manifest: WindowManifest) -> None:
    """Refuse a run directory whose window was not collected for its spec: two specs were started in it at once.

    Raises:
        SpecError: it was not.
    """
    wanted, found = (spec.window.t_cut, spec.base), (manifest.t_cut, manifest.base.uri)
    if wanted != found:
        raise SpecError(
            f"{layout.WINDOW} is the window of another spec: t_cut {found[0]} of the base {found[1]}",
            where=spec.run_root,
            expected=f"t_cut {wanted[0]} of the base {wanted[1]}, as {layout.SPEC} says",
            next_step="use another --out for one of the two specs; here, delete both files and collect again",
        )
