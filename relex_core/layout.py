"""Every path of a run directory, as keys below its root, and which of them are completion markers.

RUN/
  spec.json                      the resolved spec
  window.json                    WindowManifest (marker of collect)
  fit/direction-*.safetensors    stored directions, one file per tensor group
  fit/direction.factors-*.safetensors   those of low-rank tensors (LoRA runs), as factors
  fit/gram-*.safetensors         a group's Gram matrices and fits (marker of its group; gone when the fit is done)
  fit/gram.safetensors           all Gram matrices
  fit/fit.json                   marker of fit
  forecast.json                  held-out skill, null model, advice
  spatial.json                   spatial rank of each matrix, by the noise edge
  candidates/<name>/             a complete Hugging Face checkpoint
  candidates/<name>/relex.json   provenance; marker of the candidate
  eval/<candidate>/<task>-<split>/samples.jsonl, summary.json    summary.json is the marker
  eval/<candidate>/<task>-confirm/looks.json                     which earlier weights of that name met the questions
  decision.json                  marker of decide
  report.html                    everything on one page; marker of report
  last_observed/                 a complete Hugging Face checkpoint, where the observed one is kept and was captured
  published.json                 the outcome: which checkpoint to use; written last, marker of the whole run
  captured/step-*.relexpatch     checkpoints copied before the trainer deleted them
  watch/<key>/claim-*.json       who waits for the window; fired.json: that it was acted upon
  events.jsonl                   what happened when
"""

from __future__ import annotations

SPEC = "spec.json"
WINDOW = "window.json"
FORECAST = "forecast.json"
SPATIAL = "spatial.json"
GRAM = "fit/gram.safetensors"
GROUP_GRAMS = "fit/gram-"
FIT = "fit/fit.json"
DECISION = "decision.json"
REPORT = "report.html"
PUBLISHED = "published.json"
EVENTS = "events.jsonl"
CANDIDATES = "candidates"
EVALUATIONS = "eval"
CAPTURED = "captured"
LAST_OBSERVED = "last_observed"

PROVENANCE = "relex.json"
SAMPLES = "samples.jsonl"
SUMMARY = "summary.json"
LOOKS = "looks.json"


def stored_column(column: str, group: int, groups: int) -> str:
    """Stored directions of one column ("direction", "trailing_average_20", ...) of tensor group `group` (from 1)."""
    return f"fit/{column}-{group:05d}-of-{groups:05d}.safetensors"


def stored_factors(column: str, group: int, groups: int) -> str:
    """The same as factors, of the low-rank tensors of a LoRA run: NAME.left "m k" and NAME.right "k n"."""
    return f"fit/{column}.factors-{group:05d}-of-{groups:05d}.safetensors"


def group_gram(group: int, groups: int) -> str:
    """Gram matrices of tensor group `group` (from 1); its existence means that the group is complete."""
    return f"{GROUP_GRAMS}{group:05d}-of-{groups:05d}.safetensors"


def candidate(name: str) -> str:
    """Folder of one candidate."""
    return f"{CANDIDATES}/{name}"


def evaluation(candidate: str, task: str, split: str) -> str:
    """Folder of one candidate's answers to one task; `split` is "select" or "confirm"."""
    return f"{EVALUATIONS}/{candidate}/{task}-{split}"


def captured_step(step: int) -> str:
    """Name of a captured checkpoint, inside RUN/captured."""
    return f"step-{step:012d}.relexpatch"


def watch(key: str) -> str:
    """Folder of one watch: `key` stands for the run, its T_cut and its spec."""
    return f"watch/{key}"
