"""RunSpec: the one file that a user writes (YAML or JSON). Imports neither torch nor a cloud client.

    spec = load_spec("relex.yaml")              # refuses unknown fields, naming the nearest known one
    spec = load_spec("relex.yaml", out="run/")  # --out overrides run_root

Relative paths in a spec file are relative to the folder of that file. Only `base`, `trajectory` and
`window.t_cut` are required. The resolved spec is written to RUN/spec.json.
"""

from relex_core.spec.evaluation import DecisionSpec, EvaluationSpec, GuardSpec, HarnessGuardSpec, SplitSpec
from relex_core.spec.loading import load_spec, load_spec_of, resolve_layout, resolve_spec, spec_from_json
from relex_core.spec.run_spec import RunSpec
from relex_core.spec.sections import CandidatesSpec, CostSpec, FitSpec, LayoutSpec, SpatialRank, WindowSpec
from relex_core.spec.tasks import FieldsSpec, GeneratedSpec, HubSpec, PromptSpec, TaskSpec

__all__ = [
    "CandidatesSpec",
    "CostSpec",
    "DecisionSpec",
    "EvaluationSpec",
    "FieldsSpec",
    "FitSpec",
    "GeneratedSpec",
    "GuardSpec",
    "HarnessGuardSpec",
    "HubSpec",
    "LayoutSpec",
    "PromptSpec",
    "RunSpec",
    "SpatialRank",
    "SplitSpec",
    "TaskSpec",
    "WindowSpec",
    "load_spec",
    "load_spec_of",
    "resolve_layout",
    "resolve_spec",
    "spec_from_json",
]
