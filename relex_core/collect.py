"""collect: RunSpec -> WindowManifest. Decides which checkpoints are the observation window, from headers alone.

    observed steps -> which are the window? complete? the same tensors? -> window.json

No weight is read and nothing here imports torch, so a sensor can ask `known_window` as often as it likes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence

from relex_core import layout
from relex_core.checkpoints.checkpoint import CONFIG, open_checkpoint
from relex_core.checkpoints.contents import Checkpoint
from relex_core.checkpoints.kinds import holds_adapter
from relex_core.checkpoints.observed import ObservedStep
from relex_core.checkpoints.safetensors_file import FLOATS
from relex_core.errors import (
    CheckpointChanged,
    DataError,
    ObjectExists,
    SpecError,
    WindowError,
    WindowNotReady,
)
from relex_core.events import record_event
from relex_core.manifest import (
    BaseRecord,
    CheckpointRecord,
    FileRecord,
    TensorRecord,
    WindowManifest,
    load_manifest,
    refuse_other_window,
)
from relex_core.observe import observe_settled, torn_below
from relex_core.plan import refuse_impossible
from relex_core.spec import RunSpec, load_spec_of
from relex_core.storage import ObjectInfo, Store, exists, open_store, refuse_file

# Files of the base folder that are copied beside a candidate's weights. Code (*.py) is left out: relex trusts none.
COMPANION_FILES = re.compile(r"[^/]+\.(json|jinja|model|tiktoken|txt)")
NOT_COMPANIONS = re.compile(r".*\.index\.json|relex\.json|trainer_state\.json|adapter_config\.json")

# Fields of config.json that make it another model although all shapes may agree.
IDENTITY_FIELDS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    "rope_theta",
)

# A tenth of a second apart.
CLAIM_ATTEMPTS = 50

MERGE_ADAPTERS = " An adapter that relex does not read has to be merged at each step (PEFT: merge_and_unload)."


def collect(spec: RunSpec) -> WindowManifest:
    """Find the observation window and write RUN/spec.json and RUN/window.json.

    A window that was collected before is kept as it is: later stages rely on the generations recorded in it.

    Raises:
        SpecError: the run directory belongs to another spec; or it, the base or the trajectory is a file.
        WindowNotReady: the window is not complete yet.
        WindowError: a checkpoint is refused; all problems are listed.
    """
    store = open_store(spec.run_root)
    claim_run_directory(spec)
    if not exists(store, layout.WINDOW):
        _write_window(store, find_window(spec))
    manifest = load_manifest(spec.run_root)
    refuse_other_run(spec)  # which may have begun meanwhile
    refuse_other_window(spec, manifest)
    return manifest


def _write_window(store: Store, manifest: WindowManifest) -> None:
    try:
        store.create(layout.WINDOW, manifest.model_dump_json(indent=1).encode())
    except ObjectExists:  # another process was faster: the first window stays
        return
    record_event(store.uri, "collected", steps=len(manifest.steps), digest=manifest.digest)


def claim_run_directory(spec: RunSpec) -> None:
    """Write RUN/spec.json, unless the directory holds another run's window or captured steps; candidates and margins
    may change."""
    for attempts_left in reversed(range(CLAIM_ATTEMPTS)):
        old = refuse_other_run(spec)
        if old == spec:
            return
        try:
            _write_spec(spec, new=old is None)
            return
        except (ObjectExists, CheckpointChanged):  # another process writes it: look again
            if not attempts_left:
                raise
            time.sleep(0.1)


def _write_spec(spec: RunSpec, *, new: bool) -> None:
    store, data = open_store(spec.run_root), spec.model_dump_json(indent=1).encode()
    if new:
        store.create(layout.SPEC, data)
    else:
        store.replace(layout.SPEC, data, store.stat(layout.SPEC).generation)


def refuse_other_run(spec: RunSpec) -> RunSpec | None:
    """The spec that the run directory holds so far, if any; writes nothing.

    Raises:
        SpecError: the run directory belongs to another spec, or is a file.
    """
    store = open_store(spec.run_root)
    try:
        old = load_spec_of(spec.run_root)
    except WindowNotReady:
        return None
    mine, theirs = spec.identity(), old.identity()
    changed = [name for name in mine if mine[name] != theirs[name]]
    captured = any(store.list(layout.CAPTURED))
    # Captured steps may serve another window or fit, but never be joined with those of another trajectory. A fit that
    # was refused, or has not begun, may be asked for otherwise.
    mixed = captured and not {"trajectory", "layout"}.isdisjoint(changed)
    window = changed and exists(store, layout.WINDOW)
    if mixed or (window and (changed != ["fit"] or any(store.list("fit")))):
        raise SpecError(
            f"the run directory belongs to another spec: {', '.join(changed)} differ",
            where=f"{spec.run_root}/{layout.SPEC}",
            expected="; ".join(f"{name}: {theirs[name]}" for name in changed),
            next_step=f"use another --out, and copy {spec.run_root}/{layout.CAPTURED} into it: the trainer may have "
            "deleted these steps"
            if captured and not mixed
            else "use another --out, or delete that directory if it is not needed any more",
        )
    return old


def known_window(spec: RunSpec) -> WindowManifest:
    """The window as it was collected; while it is not, as it stands now. Writes nothing.

    A trainer may delete steps of a collected window, and it is the same window still: what is done once for each window
    has to ask here.

    Raises:
        WindowNotReady: the window is not complete yet.
        WindowError, DataError: a checkpoint is refused, or window.json is no manifest.
    """
    collected = exists(open_store(spec.run_root), layout.WINDOW)
    return load_manifest(spec.run_root) if collected else find_window(spec)


def find_window(spec: RunSpec) -> WindowManifest:
    """The observation window as it stands now; writes nothing.

    It may pause for up to three times `window.settle_seconds` before a verdict that a live trainer could overturn.

    Raises:
        WindowNotReady: the window is not complete yet.
        SpecError: the base or the trajectory is a file.
        WindowError, DataError: a checkpoint is refused; all problems are listed by step and tensor.
        SpecError: `fit` asks for what a window of these steps cannot give.
    """
    base_files, base = _open_base(spec.base)
    steps = observe_settled(spec)
    _refuse_unreadable(steps)
    _refuse_torn(spec, steps)
    window = _window(spec, steps)
    problems = [
        f"step {step.folder.step}: {problem}"
        for step in window
        for problem in [*step.checkpoint.wrong, *_differences(step.checkpoint, base, window[0].checkpoint)]
    ]
    if problems:
        raise WindowError(
            "the observation window has problems:",
            where=spec.trajectory,
            expected=f"the tensors and shapes of the base {spec.base} at every step, dtypes as at the first step",
            next_step="repair or remove these checkpoints; is this the base that the run started from?"
            + (MERGE_ADAPTERS if any(map(_is_adapter, window)) else ""),
            problems=problems,
        )
    manifest = _manifest(spec, base_files, base, window)
    refuse_identical_files(manifest)
    refuse_impossible(spec.fit, manifest.steps)  # as long as the spec can be corrected
    return manifest


def _open_base(uri: str) -> tuple[list[ObjectInfo], Checkpoint]:
    store = open_store(uri)
    below = list(store.list())
    if not below:
        refuse_file(uri, "a base folder", "give the folder that holds it")
        raise WindowError(
            "the base does not exist: there is no such folder, or no file in it",
            where=uri,
            expected="a folder with config.json and safetensors weights, not a model's name",
            next_step="a model of the hub has to be downloaded first: hf download ORG/NAME --local-dir FOLDER",
        )
    files = [info for info in below if "/" not in info.name]
    base = open_checkpoint(store, files)
    problems = base.problems
    if CONFIG not in {info.name for info in files}:
        problems.append(f"{CONFIG} is missing")
    if any(info.name.endswith(".pt") for info in base.files):
        problems.append("its weights are FSDP shards, which only the steps of a trajectory may be")
    problems += [  # window.json could not hold it
        f"the name of {info.name!a} is not UTF-8: rename or remove the file"
        for info in companion_files(files)
        if info.name != info.name.encode(errors="replace").decode()
    ]
    if problems:
        raise WindowError(
            "the base is not a complete checkpoint:",
            where=uri,
            expected="config.json and safetensors weights",
            next_step="point `base` at the folder of the model that the RL run started from",
            problems=problems,
        )
    return files, base


def _refuse_unreadable(steps: Sequence[ObservedStep]) -> None:
    """Refuse a trajectory in a format that relex cannot read at once, whatever t_cut is."""
    for step in steps:
        if step.folder.layout.refused:
            raise WindowError(step.folder.layout.refused, where=step.uri, next_step=step.folder.layout.advice)


def _refuse_torn(spec: RunSpec, steps: Sequence[ObservedStep]) -> None:
    torn = torn_below(spec.window, steps)
    problems = [f"step {step.folder.step}: {why}" for step in torn for why in step.incomplete]
    if problems and not spec.window.skip_incomplete:
        raise WindowError(
            "incomplete checkpoints below a later one:",
            problems=problems,
            where=spec.trajectory,
            expected="every checkpoint of the window complete",
            next_step="save or copy them again, or leave them out with window.skip_incomplete: true",
        )


def _window(spec: RunSpec, steps: Sequence[ObservedStep]) -> list[ObservedStep]:
    """The complete checkpoints with first <= step <= t_cut."""
    wanted = spec.window
    complete = {step.folder.step: step for step in steps if not step.incomplete}
    if not any(step >= wanted.t_cut for step in complete):
        newest = steps[-1]
        reasons = "; ".join(f"step {newest.folder.step}: {reason}" for reason in newest.incomplete)
        raise WindowNotReady(
            f"the window is not complete: the last complete checkpoint is "
            f"{f'step {max(complete)}' if complete else 'none'}" + (f" ({reasons})" if reasons else ""),
            where=spec.trajectory,
            expected=f"a complete checkpoint at step {wanted.t_cut} or later",
            next_step="wait for the run (relex watch), or lower window.t_cut",
        )
    if wanted.every:
        missing = [s for s in range(wanted.first, wanted.t_cut + 1, wanted.every) if s not in complete]
        if missing:
            raise WindowNotReady(
                f"steps are missing: {', '.join(map(str, missing[:20]))}{' ...' if len(missing) > 20 else ''}",
                where=spec.trajectory,
                expected=f"every step {wanted.first}, {wanted.first + wanted.every}, ..., {wanted.t_cut}",
                next_step="wait for them, or change window.every",
            )
    window = [step for number, step in complete.items() if wanted.first <= number <= wanted.t_cut]
    if len(window) < wanted.min_checkpoints:
        held = ", ".join(f"step {step.folder.step}" for step in window) or "none"
        raise WindowError(
            f"t_cut={wanted.t_cut} keeps {len(window)} checkpoint{'' if len(window) == 1 else 's'} ({held})",
            where=spec.trajectory,
            expected=f"at least {wanted.min_checkpoints}; a line needs 2",
            next_step="collect earlier steps, or raise window.t_cut",
        )
    return window


def _differences(checkpoint: Checkpoint, base: Checkpoint, first: Checkpoint) -> list[str]:
    """What keeps `checkpoint` from being a step of a run that started from `base` and whose first step is `first`."""
    if checkpoint.adapter or first.adapter:
        from relex_core.checkpoints.adapter import adapter_differences

        return adapter_differences(checkpoint, base, first)
    absent = [f"tensor {name} is missing" for name in base.tensors if name not in checkpoint.tensors]
    problems = [] if checkpoint.wrong else absent  # of a file that cannot be read nobody knows what it holds
    problems += [
        f"tensor {name} is extra: the base has none"
        for name in checkpoint.tensors
        if name not in base.tensors and not _tied(name, checkpoint, base)
    ]
    for name, stored in checkpoint.tensors.items():
        of_base, of_first = base.tensors.get(name), first.tensors.get(name)
        if of_base is None:
            continue
        if stored.shape != of_base.shape:
            problems.append(f"tensor {name} has shape {list(stored.shape)}, the base {list(of_base.shape)}")
        elif stored.dtype != of_base.dtype and not {stored.dtype, of_base.dtype} <= FLOATS:
            problems.append(f"tensor {name} is {stored.dtype}, in the base {of_base.dtype}")
        elif of_first is not None and stored.dtype != of_first.dtype:
            problems.append(f"tensor {name} is {stored.dtype}, at the first step {of_first.dtype}")
    return problems + _config_differences(checkpoint.config, base.config)


def _tied(name: str, checkpoint: Checkpoint, base: Checkpoint) -> bool:
    """Hugging Face saves tied weights once, FSDP shards hold them under both names."""
    tie = (checkpoint.config or base.config).get("tie_word_embeddings") is True
    return tie and checkpoint.tied.get(name) in base.tensors


def _is_adapter(step: ObservedStep) -> bool:
    return holds_adapter([info.name for info in step.checkpoint.files])


def _config_differences(config: Mapping[str, object], base: Mapping[str, object]) -> list[str]:
    return [
        f"config.json has {name} = {config[name]}, the base {base[name]}: another base"
        for name in IDENTITY_FIELDS
        if None not in (config.get(name), base.get(name)) and config[name] != base[name]
    ]


def companion_files(files: Iterable[ObjectInfo]) -> list[ObjectInfo]:
    """Of a checkpoint's files: config, tokenizer and the like, which belong beside any weights of the model."""
    return [info for info in files if COMPANION_FILES.fullmatch(info.name) and not NOT_COMPANIONS.fullmatch(info.name)]


def _manifest(
    spec: RunSpec, base_files: Sequence[ObjectInfo], base: Checkpoint, window: Sequence[ObservedStep]
) -> WindowManifest:
    first = window[0].checkpoint
    trained = first.adapter.trained if first.adapter else base.tensors
    dtypes = (base if first.adapter else first).tensors
    return WindowManifest(
        base=BaseRecord(uri=spec.base, files=_records([*base.files, *companion_files(base_files)])),
        checkpoints=tuple(
            CheckpointRecord(step=step.folder.step, uri=step.uri, files=_records(step.checkpoint.files))
            for step in window
        ),
        tensors=tuple(
            TensorRecord(name=name, shape=stored.shape, dtype=dtypes[name].dtype)
            for name, stored in base.tensors.items()
            if name in trained
        ),
        t_cut=spec.window.t_cut,
    ).with_digest()


def _records(files: Sequence[ObjectInfo]) -> tuple[FileRecord, ...]:
    return tuple(FileRecord.of(info) for info in sorted(files, key=lambda info: info.name))


def refuse_identical_files(manifest: WindowManifest) -> None:
    """Refuse two steps whose files carry equal checksums, where the store keeps checksums.

    Raises:
        WindowError: two steps hold identical weights.
    """
    seen: dict[tuple[tuple[str, str], ...], int] = {}
    for checkpoint in manifest.checkpoints:
        sums = tuple((file.name, file.crc32c) for file in checkpoint.files if file.crc32c is not None)
        if len(sums) < len(checkpoint.files):
            continue
        if sums in seen:
            raise identical_steps(seen[sums], checkpoint.step, checkpoint.uri)
        seen[sums] = checkpoint.step


def identical_steps(first: int, second: int, where: str) -> DataError:
    """The error for two steps with the same weights."""
    return WindowError(
        f"steps {first} and {second} hold identical weights",
        where=where,
        expected="every step another state of the run",
        next_step=f"if the run had not begun to move, set window.first to {second}; if it stopped, window.t_cut to "
        f"{first}; if a checkpoint was copied, remove the copy from the trajectory",
    )
