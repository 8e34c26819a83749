"""RunSpec: the one file that a user writes (YAML or JSON). Imports neither torch nor a cloud client.

    spec = load_spec("relex.yaml")              # refuses unknown fields, naming the nearest known one
    spec = load_spec("relex.yaml", out="run/")  # --out overrides run_root

Relative paths in a spec file are relative to the folder of that file. Only `base`, `trajectory` and
`window.t_cut` are required. The resolved spec is written to RUN/spec.json.
"""

from __future__ import annotations

import difflib
import json
import typing
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from relex_core.errors import SpecError
from relex_core.storage import open_store, read_bytes
from relex_core.storage.uri import absolute_uri, join_uri
from relex_core.yaml_text import DuplicateKey, parse_json, parse_yaml

Baseline = Literal[
    "last_observed",
    "trailing_average",
    "weight_extrapolation",
    "first_update",
    "expo",
    "pinned",
    "calibrated",
    "drift",
    "auto",
]
SpatialRank = Annotated[int, Field(ge=1)] | Literal["full", "auto"]
FloatDType = Literal["float32", "bfloat16", "float16"]
Step = Annotated[int, Field(ge=0, lt=2**53)]


def _located(uri: str, info: ValidationInfo) -> str:
    """The URI made absolute; a resolved spec is read without a context and holds absolute ones already."""
    return absolute_uri(uri, info.context["folder"]) if info.context else uri


Location = Annotated[str, AfterValidator(_located)]


class Section(BaseModel):
    """A part of the spec: immutable, and closed to unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class WindowSpec(Section):
    """Which checkpoints are observed."""

    t_cut: Annotated[int, Field(ge=1, lt=2**53)]
    """Last optimizer step of the observation window."""
    first: Annotated[int, Field(ge=1, lt=2**53)] = 1
    """First optimizer step of the window; earlier checkpoints are ignored."""
    every: Annotated[int, Field(ge=1, lt=2**53)] | None = None
    """If given, every step first, first + every, ..., t_cut must be there."""
    min_checkpoints: Annotated[int, Field(ge=2)] = 2
    """A window with fewer checkpoints is refused; a line needs two."""
    skip_incomplete: bool = False
    """Leave out an incomplete checkpoint that lies below a complete one, instead of refusing the window."""
    settle_seconds: Annotated[float, Field(ge=0, le=3600)] = 5.0
    """Where the trainer leaves no completion marker, a newest checkpoint that the window needs must stay the same over
    two listings this far apart, unless it is plainly old. 0: one listing is enough (the trainer has ended)."""

    @model_validator(mode="after")
    def _ordered(self) -> WindowSpec:
        if self.first > self.t_cut:
            raise ValueError(f"first={self.first} lies after t_cut={self.t_cut}")
        if self.every and (self.t_cut - self.first) % self.every:
            raise ValueError(
                f"t_cut={self.t_cut} is not first + a multiple of every: "
                f"{self.t_cut} - {self.first} is not divisible by {self.every}"
            )
        return self


class LayoutSpec(Section):
    """How a trainer that relex does not know lays out its steps; the known layouts are not tried then."""

    step_folder: Annotated[str, Field(max_length=200)]
    """Name of a step folder, with `{step}` for the step's digits and `*` for anything: "iter_{step}"."""
    weights: Annotated[str, Field(max_length=500)] = ""
    """Folder of the weights inside the step folder; "" is the step folder itself."""
    marker: Annotated[str, Field(max_length=500)] = ""
    """File inside the step folder that the trainer writes last; "" if there is none."""

    @field_validator("step_folder", mode="before")
    @classmethod
    def _quoted(cls, name: object) -> object:
        if isinstance(name, dict):
            raise ValueError('YAML reads {step} as a mapping: write it in quotes, "{step}"')
        return name

    @field_validator("step_folder")
    @classmethod
    def _template(cls, name: str) -> str:
        if "/" in name or "\\" in name:
            raise ValueError(
                "this is the name of one folder: put folders above it into `trajectory`, those below it into `weights`"
            )
        named = [field for _, field, _, _ in _fields(name) if field is not None]
        if named != ["step"] or "{step}" not in name:
            raise ValueError('write {step}, just so and once, where the step stands, for example "iter_{step}"')
        return name

    @field_validator("weights", "marker")
    @classmethod
    def _below_the_step(cls, path: str) -> str:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if path.startswith("/") or "\\" in path or ".." in parts:
            raise ValueError("this is a path inside the step folder, without ..")
        return "/".join(parts)


def _fields(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(Formatter().parse(template))
    except ValueError as error:  # a lone brace
        raise ValueError(f"{error}; only {{step}} may stand in braces") from None


class FitSpec(Section):
    """How the direction and its line are fitted."""

    basis: Literal["rank", "per_parameter"] = "rank"
    """`rank`: the top singular directions. `per_parameter`: a line per weight (the paper's raw-delta ablation)."""
    rank: Annotated[int, Field(ge=1, le=64)] = 1
    """How many singular directions (basis `rank`)."""
    temporal: Literal["linear", "polynomial"] = "linear"
    """What is fitted to each coefficient over the true steps."""
    degree: Annotated[int, Field(ge=1, le=5)] = 1
    """Degree of the polynomial (temporal `polynomial`)."""
    trailing_averages: tuple[Annotated[int, Field(ge=2)], ...] = ()
    """Averages of the last k checkpoints to store beside the direction."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, or `auto`: CUDA where there is one."""
    memory_budget: ByteSize = ByteSize(4 * 2**30)
    """Bytes the fit may hold resident, interpreter included."""
    direction_dtype: Literal["float32", "bfloat16"] = "float32"
    """How the directions are stored."""
    group_size: Annotated[ByteSize, Field(ge=1)] = ByteSize(64 * 2**20)
    """Bytes of stored direction per file of fit/; a killed fit loses at most one such group."""

    @model_validator(mode="after")
    def _consistent(self) -> FitSpec:
        if self.temporal == "linear" and self.degree != 1:
            raise ValueError(f"degree={self.degree} needs temporal: polynomial")
        if self.basis == "per_parameter" and self.rank != 1:
            raise ValueError("rank belongs to basis: rank; basis: per_parameter has none")
        if len(set(self.trailing_averages)) != len(self.trailing_averages):
            raise ValueError("trailing_averages names the same length twice")
        return self


DEFAULT_HORIZONS = (2, 4, 6)
"""Target steps in multiples of T_cut, where the spec names none."""


class CandidatesSpec(Section):
    """Which checkpoints are written."""

    target_steps: tuple[Step, ...] = ()
    """Optimizer steps to extrapolate to. Empty: 2, 4 and 6 windows (2, 4, 6 x t_cut)."""
    scales: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = (1.0,)
    """Factors on the whole displacement; 1.0 is the paper."""
    baselines: tuple[Baseline, ...] = ("last_observed",)
    """What RELEX is compared with."""
    spatial_ranks: Annotated[tuple[SpatialRank, ...], Field(min_length=1)] = ("full",)
    """Singular vectors kept of each matrix of the direction, in relex, pinned and calibrated: `full` keeps all of them,
    `auto` as many as stand out of the noise."""
    reconstruction_steps: tuple[Step, ...] = ()
    """Observed steps to rebuild from the direction alone (rank-1 denoising, no horizon)."""
    expo_alphas: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = (0.5,)
    """Factors of ExPO: W_T + alpha (W_T - W_0)."""
    dtype: Literal["checkpoint", "base"] | FloatDType = "checkpoint"
    """Dtype of the written weights: that of the observed checkpoints, that of the base, or one by name."""
    write: Literal["observed", "merged"] = "observed"
    """Of a LoRA run: adapters, as its own checkpoints are, or complete checkpoints with the adapter merged into the
    base. Of full weights both are the same."""
    adapter_rank: Annotated[int, Field(ge=1)] | None = None
    """Rank of the written adapters (write `observed`); None: that of the observed ones."""
    keep: Literal["winner", "all"] = "winner"
    """After the decision, delete the losers, or keep all. Without evaluation all are kept."""

    def targets(self, t_cut: int) -> tuple[int, ...]:
        """Target steps, the default ones included."""
        return self.target_steps or tuple(factor * t_cut for factor in DEFAULT_HORIZONS)


class HubSpec(Section):
    """A data set on the Hugging Face hub, read by the `datasets` library where a hub can be reached."""

    id: str
    """For example `TianHongZXY/MATH`."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """The commit to read. Give one: without it the newest is taken, and two evaluations may see other questions."""
    split: str = "test"
    """In the syntax of `datasets`, for example `test` or `train[:500]`."""
    config: str | None = None


class GeneratedSpec(Section):
    """Questions that reasoning-gym makes: no download, any number. What an earlier split holds is left out."""

    dataset: str
    """Name in reasoning-gym, for example `chain_sum`."""
    size: Annotated[int, Field(ge=2, le=1_000_000)]
    """Different questions."""
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    config: dict[str, JsonValue] = {}
    """Parameters of the data set."""


class PromptSpec(Section):
    """How a question becomes what the model reads. Absent: the question as it is."""

    template: str | None = None
    """Literal text around `{question}`, special tokens included."""
    chat: bool = False
    """Use the chat template of the base's tokenizer, with the (templated) question as the user's message."""
    system: str | None = None
    """System message of the chat."""

    @model_validator(mode="after")
    def _complete(self) -> PromptSpec:
        if self.template is not None and "{question}" not in self.template:
            raise ValueError("template lacks {question}")
        if self.template is None and not self.chat:
            raise ValueError("give a template, or chat: true, or leave prompt out")
        if self.system is not None and not self.chat:
            raise ValueError("system needs chat: true; with a template alone, write it into the template")
        return self


class FieldsSpec(Section):
    """Where a line or row has what is needed."""

    question: str = "prompt"
    answer: str = "answer"
    id: str = "id"
    """Optional in the data: else the line number."""


Grader = Annotated[str, Field(pattern=r"^(exact|choice|math|paper|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")]


class TaskSpec(Section):
    """Questions with verifiable answers, from one of: a JSONL file, the hub, reasoning-gym."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    file: Location | None = None
    """JSONL, one object a line with `prompt` and `answer` (and `id` if you like): a path or gs:// URI."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the file; another file is refused."""
    hub: HubSpec | None = None
    generated: GeneratedSpec | None = None
    fields: FieldsSpec = FieldsSpec()
    prompt: PromptSpec | None = None
    grader: Grader = "exact"
    """`exact`: the stripped completion equals the answer. `math`: the last boxed answer is equal in meaning.
    `choice`: a letter. `paper`: the laxer conventions of the RELEX authors' script. `package.module:function`: your
    own, (completion, answer) -> bool or a status."""

    @model_validator(mode="after")
    def _one_source(self) -> TaskSpec:
        sources = [name for name in ("file", "hub", "generated") if getattr(self, name) is not None]
        if len(sources) != 1:
            raise ValueError(f"a task needs one of file, hub, generated; it has {', '.join(sources) or 'none'}")
        if self.sha256 and not self.file:
            raise ValueError("sha256 belongs to a file")
        return self


class SplitSpec(Section):
    """One set of questions and how they are sampled."""

    task: TaskSpec
    samples: Annotated[int, Field(ge=1)] = 1
    """Completions a question."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """Longest completion, in tokens."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Prompts a batch; part of the result, because decoding is not exactly batch-invariant."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="before")
    @classmethod
    def _from_definition(cls, data: Any, info: ValidationInfo) -> Any:
        """`tasks/math.yaml`, or `{definition: tasks/math.yaml, batch_size: 64}`: the file's fields, then these."""
        data = {"definition": data} if isinstance(data, str) else data
        if not isinstance(data, dict) or "definition" not in data:
            return data
        own = dict(data)
        return {**_definition(own.pop("definition"), info), **own}

    @model_validator(mode="after")
    def _greedy_once(self) -> SplitSpec:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"samples={self.samples} at temperature 0 would repeat one answer {self.samples} times")
        return self

    def sampling(self) -> dict[str, Any]:
        """What completions depend on, besides the questions."""
        return self.model_dump(mode="json", include=set(SplitSpec.model_fields) - {"task"})


def _definition(name: object, info: ValidationInfo) -> dict[str, Any]:
    folder = info.context["folder"] if info.context else Path.cwd()
    path = Path(folder, str(name))
    try:
        loaded = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, DuplicateKey) as error:
        raise ValueError(f"the task definition {path} cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"the task definition {path} is not a mapping")
    task = loaded.get("task")
    if isinstance(task, dict) and isinstance(task.get("file"), str):  # relative to the definition, not to the spec
        loaded = {**loaded, "task": {**task, "file": absolute_uri(task["file"], path.resolve().parent)}}
    return loaded


class GuardSpec(SplitSpec):
    """A task that must not get worse."""

    margin: Annotated[float, Field(ge=0, le=1)] = 0.02
    """By more than this it must not fall (0.02 = two points)."""
    require: Literal["shown", "not_refuted"] = "shown"
    """`shown`: the whole interval lies above -margin, so few questions block a promotion. `not_refuted`: the interval
    does not lie wholly below it."""


class HarnessGuardSpec(Section):
    """A task of lm-eval's harness that must not get worse; measured by `relex evaluate RUN --lm-eval TASK`."""

    task: str
    """The harness's name for it."""
    metric: str
    """One with a score from 0 to 1 for every document, for example `acc` or `exact_match,strict-match`."""
    margin: Annotated[float, Field(ge=0, le=1)] = 0.02
    require: Literal["shown", "not_refuted"] = "shown"


def _one_or_several(data: Any) -> str:
    return SEVERAL if isinstance(data, (list, tuple)) else ONE


ONE, SEVERAL = "one task", "several tasks"
Splits = Annotated[
    Annotated[SplitSpec, Tag(ONE)] | Annotated[tuple[SplitSpec, ...], Tag(SEVERAL), Field(min_length=1)],
    Discriminator(_one_or_several),
]


class EvaluationSpec(Section):
    """How candidates are measured. The same questions never select and confirm."""

    backend: Literal["transformers", "vllm", "scripted"] = "transformers"
    """`vllm`: an offline engine in a process of its own for each candidate. `scripted`: answers from script.json in
    the candidate's folder, for tests."""
    device: str = "auto"
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """GPUs that one model is spread over (vllm)."""
    gpu_memory: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of each GPU's memory that the engine may take (vllm)."""
    select: Splits
    """Chooses the finalist among all candidates. Of several tasks the mean of their accuracies counts."""
    confirm: Splits
    """Untouched until then: finalist against the last observed checkpoint."""
    guards: tuple[GuardSpec, ...] = ()
    """Tasks that must not fall by more than their margins; measured like `confirm`, decide nothing else."""
    harness_guards: tuple[HarnessGuardSpec, ...] = ()
    """Like `guards`, by lm-eval's harness."""
    search: Literal["auto", "halving", "full"] = "auto"
    """`full`: every candidate on all selection questions. `halving`: all on a part, the better quarter on four times as
    many, and so on. `auto`: halving for more than 8 candidates, if there are at least 4 batches of questions."""
    grading_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """Processor time that grading one answer may take (graders math, paper and your own); then it is a time-out."""

    @property
    def select_splits(self) -> tuple[SplitSpec, ...]:
        return self.select if isinstance(self.select, tuple) else (self.select,)

    @property
    def confirm_splits(self) -> tuple[SplitSpec, ...]:
        return self.confirm if isinstance(self.confirm, tuple) else (self.confirm,)

    @model_validator(mode="after")
    def _names_differ(self) -> EvaluationSpec:
        for what, splits in (("select", self.select_splits), ("confirm", self.confirm_splits), ("guards", self.guards)):
            names = [split.task.name for split in splits]
            if len(set(names)) != len(names):
                raise ValueError(f"{what} names a task twice: {', '.join(names)}")
        return self


class DecisionSpec(Section):
    """When a candidate is promoted. All of it can be changed and decided anew without generating anything."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of the interval on the confirmed gain."""
    rule: Literal["superior", "non_inferior"] = "superior"
    """`superior`: on a confirmation task the whole interval lies above min_gain (of several tasks: one, after Holm's
    correction, and none lies wholly below 0). `non_inferior`: on every task it lies above -margin."""
    min_gain: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """The whole interval must lie above this difference in accuracy (0.01 = one point)."""
    margin: Annotated[float, Field(ge=0, le=1)] = 0.01
    """How much worse than the last observed checkpoint is still as good (rule non_inferior)."""
    beat_base: bool = True
    """Promote only what is also shown to be better than the base: where RL made the model worse, undoing that is no
    progress."""


class CostSpec(Section):
    """What a training step costs, and what the pipeline itself holds while it works."""

    gpu_hours_per_step: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    fit_gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """GPUs held during fit and extrapolate; 0 on CPUs."""
    evaluation_gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """GPUs held during evaluate; 0 on CPUs."""


class RunSpec(Section):
    """Everything relex needs to know about one run."""

    base: Location
    """Folder of the model the RL run started from: a path or gs:// URI."""
    trajectory: Location
    """The folder that holds the step folders."""
    run_root: Location
    """Where relex writes; `--out` overrides it. Default: TRAJECTORY/relex."""
    window: WindowSpec
    layout: LayoutSpec | None = None
    """Absent: one of the layouts of docs/trainers.md, recognised by its folders."""
    fit: FitSpec = FitSpec()
    candidates: CandidatesSpec = CandidatesSpec()
    evaluation: EvaluationSpec | None = None
    decision: DecisionSpec = DecisionSpec()
    cost: CostSpec = CostSpec()

    @model_validator(mode="after")
    def _averages_are_fitted(self) -> RunSpec:
        if "trailing_average" in self.candidates.baselines and not self.fit.trailing_averages:
            raise ValueError(
                "candidates.baselines names trailing_average, which the fit must store: "
                "set fit.trailing_averages, for example [20]"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The fields that a run directory belongs to: a spec that differs here needs another directory.

        Where and how fast the fit runs, and how carefully was looked, does not change the result: those fields are
        left out.
        """
        fit = self.fit.model_dump(mode="json", exclude={"device", "memory_budget"})
        window = self.window.model_dump(exclude={"settle_seconds"})
        layout = self.layout and self.layout.model_dump()
        return {"base": self.base, "trajectory": self.trajectory, "window": window, "layout": layout, "fit": fit}


def load_spec(path: str | Path, *, out: str | None = None) -> RunSpec:
    """Read a RunSpec from a YAML or JSON file.

    Args:
        path: the file; or the URI of a resolved spec as collect wrote it, gs://.../spec.json.
        out: overrides `run_root`; relative to the working directory.

    Raises:
        SpecError: the file cannot be read, has a wrong field, or lacks one; all faults are listed at once.
        StorageError: a stored spec cannot be read.
    """
    if isinstance(path, str) and path.startswith("gs://"):
        return _load_stored(path, out)
    path = Path(path)
    # Not all JSON is YAML: a tab indents the one and breaks the other.
    kind, parse = ("JSON", parse_json) if path.suffix == ".json" else ("YAML", parse_yaml)
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(
            f"cannot read the spec: {error.strerror}", where=str(path), next_step="give the path of a YAML file"
        ) from error
    except DuplicateKey as error:
        raise SpecError(
            f"the spec gives a field twice: {error}", where=str(path), next_step="keep one of the two"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError(f"the spec is not {kind}: {error}", where=str(path)) from error
    return resolve_spec(data, where=str(path), folder=path.resolve().parent, out=out)


def _load_stored(uri: str, out: str | None) -> RunSpec:
    """Nothing is relative to a folder of a bucket: what collect wrote holds absolute locations."""
    folder, _, name = uri.rpartition("/")
    return spec_from_json(read_bytes(open_store(folder), name).decode(errors="replace"), run_root=out or "", where=uri)


def spec_from_json(
    text: str, *, base: str = "", trajectory: str = "", run_root: str = "", t_cut: int = 0, where: str = "spec"
) -> RunSpec:
    """Read a RunSpec from JSON text, as orchestrators pass it; whatever else is given overrides the text's fields.

    Raises:
        SpecError: as for `load_spec`.
    """
    try:
        data = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise SpecError(f"the spec is not JSON: {error}", where=where, expected="one JSON object") from None
    if isinstance(data, dict):
        given = {"base": base, "trajectory": trajectory, "run_root": run_root}
        data |= {name: value for name, value in given.items() if value}
        window = data.get("window") or {}
        data |= {"window": {**window, "t_cut": t_cut}} if t_cut and isinstance(window, dict) else {}
    return resolve_spec(data, where=where, folder=Path.cwd())


def resolve_spec(data: object, *, where: str, folder: Path, out: str | None = None) -> RunSpec:
    """Check a spec's data and make every URI in it absolute.

    Args:
        data: what the file holds.
        where: named in errors.
        folder: what relative paths are relative to.
        out: overrides `run_root`.

    Raises:
        SpecError: as for `load_spec`.
    """
    if not isinstance(data, dict):
        raise SpecError("the spec is not a mapping", where=where, expected="base, trajectory, window: {t_cut: N}")
    data = dict(data)
    if out is not None:
        data["run_root"] = absolute_uri(out, Path.cwd())
    elif "run_root" not in data:
        trajectory = data.get("trajectory")
        data["run_root"] = join_uri(trajectory, "relex") if isinstance(trajectory, str) else "relex"
    try:
        # JSON mode: lists become tuples, and text becomes a number where one is due (YAML reads 1e-2 as text).
        return RunSpec.model_validate_json(json.dumps(data), context={"folder": folder})
    except ValidationError as error:
        raise SpecError(_all_faults(error), where=where, next_step="see docs/spec.md for every field") from None
    except (TypeError, ValueError) as error:
        raise SpecError(f"the spec holds something that is not plain data: {error}", where=where) from None


def resolve_layout(step_folder: str, weights: str = "", marker: str = "") -> LayoutSpec:
    """A layout given outside of a spec, on the command line.

    Raises:
        SpecError: it is no layout.
    """
    try:
        return LayoutSpec(step_folder=step_folder, weights=weights, marker=marker)
    except ValidationError as error:
        raise SpecError(
            _all_faults(error, "the layout is wrong:"), next_step="see `layout` in docs/trainers.md"
        ) from None


def _all_faults(error: ValidationError, heading: str = "the spec is wrong:") -> str:
    lines = [heading]
    for fault in error.errors(include_url=False):
        location = tuple(str(part) for part in fault["loc"] if part not in (ONE, SEVERAL))
        name = ".".join(location) or "spec"
        if fault["type"] == "extra_forbidden":
            lines.append(f"  - {name}: unknown field{_nearest(location)}")
        elif fault["type"] == "missing":
            lines.append(f"  - {name}: required, but not given")
        else:
            message = " ".join(fault["msg"].removeprefix("Value error, ").split())
            lines.append(f"  - {name}: {message} (got {fault['input']!r:.80})")
    return "\n".join(lines)


def _nearest(location: tuple[str, ...]) -> str:
    """ "; did you mean 't_cut'?" for an unknown field at `location`."""
    section: type[BaseModel] | None = RunSpec
    for part in location[:-1]:
        if part.isdigit():  # one of several
            continue
        field = section.model_fields.get(part) if section else None
        section = _section_of(field.annotation) if field else None
    known = list(section.model_fields) if section else []
    match = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else f"; known here: {', '.join(known)}"


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The Section in an annotation such as `EvaluationSpec | None` or `tuple[GuardSpec, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for option in typing.get_args(annotation) if (found := _section_of(option))), None)
