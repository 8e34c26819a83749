"""What is measured: the base, the last observed checkpoint, and every complete folder of RUN/candidates/."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from relex_core import layout
from relex_core.errors import CheckpointChanged, DataError, ObjectNotFound, SpecError
from relex_core.manifest import FileRecord, WindowManifest, digest_of
from relex_core.storage import join_uri, open_store, read_bytes

BASE = "base"
LAST_OBSERVED = "last_observed"
WEIGHTS = (".safetensors", ".safetensors.index.json")
"""How the names of a candidate's weight files end."""


class Provenance(BaseModel):
    """What evaluation and decision need of a candidate's relex.json."""

    model_config = ConfigDict(frozen=True)

    name: str
    method: str
    target_step: int | None = None
    """Optimizer step it stands for; None for candidates without one, such as averages."""
    scale: float | None = None
    truncation_error: float | None = None
    """What an adapter's rank and dtype lose of the displacement."""
    spatial_rank: int | str | None = None
    window_digest: str | None = None
    files: dict[str, int] = {}
    """Bytes of each, by name."""


@dataclass(frozen=True)
class Candidate:
    """One model to measure."""

    name: str
    uri: str
    """Folder with config.json and weights."""
    digest: str
    """Identifies the weights: of relex.json's bytes, or of the window and the role in it."""
    step: int | None
    """Target step, or the step at which it was observed; None where it has none."""
    method: str
    scale: float | None = None
    truncation_error: float | None = None
    spatial_rank: int | str | None = None
    files: tuple[FileRecord, ...] = ()
    """For observed checkpoints: the files as they were collected."""
    weights: bool = True
    """Whether they are there. After a decision only the winner's are; what was measured of the losers stays."""

    def refuse_if_changed(self) -> None:
        """Compare the files with those that were collected.

        Raises:
            CheckpointChanged: a file is gone or was replaced.
        """
        store = open_store(self.uri)
        for file in self.files:
            try:
                unchanged = store.stat(file.name).generation == file.generation
            except ObjectNotFound:
                unchanged = False
            if not unchanged:
                raise CheckpointChanged(
                    f"{self.name} is no longer what was collected: {file.name} is gone or was replaced",
                    where=self.uri,
                    expected=f"generation {file.generation}, as in {layout.WINDOW}",
                    next_step="restore the file, or collect again into a new run directory",
                )


def references(manifest: WindowManifest) -> list[Candidate]:
    """The base and the last observed checkpoint, which are always measured; both stay where they are."""

    def digest(role: str) -> str:
        return digest_of({"window": manifest.digest, "role": role})

    base, last = manifest.base, manifest.last_observed
    return [
        Candidate(BASE, base.uri, digest(BASE), 0, BASE, files=base.files),
        Candidate(LAST_OBSERVED, last.uri, digest(LAST_OBSERVED), last.step, LAST_OBSERVED, files=last.files),
    ]


def observed(name: str, uri: str) -> Candidate:
    """A checkpoint that is neither a candidate nor part of the window."""
    files = tuple(FileRecord.of(info) for info in open_store(uri).list() if "/" not in info.name)
    digest = digest_of([file.model_dump() for file in files])
    return Candidate(name, uri, digest, None, "observed", files=files)


def written_candidates(run: str, window_digest: str) -> list[Candidate]:
    """The candidates whose relex.json is there, by name; unfinished folders and those of another window are left out.

    Raises:
        DataError: a relex.json is not what extrapolate writes.
    """
    store = open_store(run)
    listed, found = list(store.list(layout.CANDIDATES)), []
    there = {info.name for info in listed}
    for info in listed:
        folder, _, file = info.name.rpartition("/")
        name = folder.removeprefix(f"{layout.CANDIDATES}/")
        if file != layout.PROVENANCE or "/" in name:
            continue
        data = read_bytes(store, info.name)
        try:
            provenance = Provenance.model_validate_json(data)
        except ValidationError as error:
            raise _not_ours(run, info.name, str(error)) from None
        if provenance.name != name or name in (BASE, LAST_OBSERVED):
            raise _not_ours(run, info.name, f"the name {provenance.name!r} in the folder {name!r}")
        if provenance.window_digest not in (None, window_digest):
            continue
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        uri = join_uri(run, folder)
        facts = provenance.target_step, provenance.method, provenance.scale
        lost = provenance.truncation_error, provenance.spatial_rank
        weights = _has_weights(provenance, folder, there)
        found.append(Candidate(name, uri, digest, *facts, *lost, weights=weights))
    return sorted(found, key=lambda candidate: candidate.name)


def _has_weights(provenance: Provenance, folder: str, there: Collection[str]) -> bool:
    """Whether all weight files are there; of a relex.json that lists no files, which relex did not write, they are."""
    listed = [name for name in provenance.files if name.endswith(WEIGHTS)]
    return all(f"{folder}/{name}" in there for name in listed) and (
        not provenance.files or any(name.endswith(".safetensors") for name in listed)
    )


def choose(candidates: Iterable[Candidate], names: Sequence[str]) -> list[Candidate]:
    """The candidates of these names, in that order.

    Raises:
        SpecError: there is none of that name.
    """
    known = {candidate.name: candidate for candidate in candidates}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise SpecError(
                f"there is no complete candidate {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                expected=f"one of {', '.join(known)}",
                next_step="relex extrapolate RUN writes candidates",
            )
    return [known[name] for name in dict.fromkeys(names)]


def _not_ours(run: str, key: str, what: str) -> DataError:
    return DataError(
        f"the candidate's provenance is wrong: {what}",
        where=join_uri(run, key),
        next_step="delete the folder, then run relex extrapolate again",
    )
