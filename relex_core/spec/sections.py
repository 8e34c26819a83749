"""The parts of a spec about the run itself: window, layout, fit, candidates, cost."""

from __future__ import annotations

import re
from string import Formatter
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from relex_core.storage.uri import absolute_uri

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
FloatDType = Literal["float32", "bfloat16", "float16"]
Step = Annotated[int, Field(ge=0, lt=2**53)]
MAX_FACTOR = 1000
"""Farther out there is no checkpoint worth writing, and numbers stand in the names of folders."""
Factor = Annotated[float, Field(ge=-MAX_FACTOR, le=MAX_FACTOR, allow_inf_nan=False)]


def _rank_or_word(value: object, validate: ValidatorFunctionWrapHandler) -> object:
    """One fault for a value that is neither, instead of one for each of the two."""
    try:
        return validate(value)
    except ValidationError:
        raise ValueError("expected a number from 1 to 2147483647, 'full' or 'auto'") from None


SpatialRank = Annotated[Annotated[int, Field(ge=1, lt=2**31)] | Literal["full", "auto"], WrapValidator(_rank_or_word)]


def _located(uri: str, info: ValidationInfo) -> str:
    """The URI made absolute; a resolved spec is read without a context and holds absolute ones already."""
    return absolute_uri(uri, info.context["folder"]) if info.context else uri


Location = Annotated[str, AfterValidator(_located)]


class Section(BaseModel):
    """A part of the spec: immutable, and closed to unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: object, info: ValidationInfo) -> object:
        """Where text may stand for a number, pydantic also takes true for 1."""
        given = value if isinstance(value, list) else [value]
        assert info.field_name
        if cls.model_fields[info.field_name].annotation is not bool and any(isinstance(part, bool) for part in given):
            raise ValueError("true and false stand for no number and for no text")
        return value


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

    @field_validator("device")
    @classmethod
    def _known(cls, device: str) -> str:
        if not re.fullmatch("auto|cpu|cuda(:[0-9]{1,3})?", device):
            raise ValueError("expected auto, cpu, cuda or cuda:N")
        return device

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
    scales: tuple[Factor, ...] = (1.0,)
    """Factors on the whole displacement, from -1000 to 1000; 1.0 is the paper."""
    baselines: tuple[Baseline, ...] = ("last_observed",)
    """What RELEX is compared with."""
    spatial_ranks: Annotated[tuple[SpatialRank, ...], Field(min_length=1)] = ("full",)
    """Singular vectors kept of each matrix of the direction, in relex, pinned and calibrated: `full` keeps all of them,
    `auto` as many as stand out of the noise."""
    reconstruction_steps: tuple[Step, ...] = ()
    """Observed steps to rebuild from the direction alone (rank-1 denoising, no horizon)."""
    expo_alphas: tuple[Factor, ...] = (0.5,)
    """Factors of ExPO, from -1000 to 1000: W_T + alpha (W_T - W_0)."""
    dtype: Literal["checkpoint", "base", FloatDType] = "checkpoint"
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


class CostSpec(Section):
    """What a training step costs, and what the pipeline itself holds while it works."""

    gpu_hours_per_step: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    fit_gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """GPUs held during fit and extrapolate; 0 on CPUs."""
    evaluation_gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """GPUs held during evaluate; 0 on CPUs."""
