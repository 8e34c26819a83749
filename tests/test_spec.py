"""The spec file: what is understood, what is refused and how it is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relex_core.errors import SpecError
from relex_core.spec import RunSpec, load_spec, resolve_spec, spec_from_json
from relex_core.yaml_text import parse_yaml

# design.md, section 3, as it stands.
EXAMPLE = """
    base: gs://models/qwen2.5-math-1.5b          # or a path
    trajectory: gs://rl-runs/math-17             # the folder that holds the step folders
    run_root: gs://rl-runs/math-17/relex
    window: {t_cut: 75}                           # optional: first, every, min_checkpoints, skip_incomplete
    fit: {basis: rank, rank: 1, temporal: linear, trailing_averages: [20], device: auto, memory_budget: 4GiB, direction_dtype: float32}
    candidates: {target_steps: [75, 100, 200, 500], scales: [1.0, 0.5, 0.25],
                 baselines: [last_observed, trailing_average, weight_extrapolation, first_update],
                 keep: winner}                # or all; without evaluation all are kept
    evaluation:                                   # absent: evaluate and decide are skipped, the checkpoints are still written
      backend: transformers                       # or vllm
      select:  {task: {name: addition, file: select.jsonl, grader: exact}, samples: 1, temperature: 0.0, max_tokens: 8}
      confirm: {task: {name: addition, file: confirm.jsonl, grader: exact}, samples: 1, temperature: 0.0, max_tokens: 8}
    decision: {confidence: 0.95, min_gain: 0.0}
    cost: {gpu_hours_per_step: 0.6}
"""  # noqa: E501

SPLIT = {"task": {"name": "addition", "file": "questions.jsonl"}}
EVALUATION = {"select": SPLIT, "confirm": SPLIT}


def resolve(folder: Path = Path("/specs"), **sections: Any) -> RunSpec:
    data = {"base": "base", "trajectory": "trajectory", "window": {"t_cut": 75}, **sections}
    return resolve_spec(data, where="test", folder=folder)


def refusal(**sections: Any) -> str:
    with pytest.raises(SpecError) as caught:
        resolve(**sections)
    return str(caught.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_three_fields_are_enough(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path / "relex.yaml", "base: b\ntrajectory: t\nwindow: {t_cut: 8}\n"))
    assert (spec.base, spec.trajectory) == (str(tmp_path / "b"), str(tmp_path / "t"))
    assert spec.run_root == str(tmp_path / "t" / "relex")
    assert (spec.window.t_cut, spec.window.first, spec.window.every) == (8, 1, None)
    assert (spec.window.min_checkpoints, spec.window.skip_incomplete) == (2, False)
    assert (spec.fit.basis, spec.fit.rank, spec.fit.temporal) == ("rank", 1, "linear")
    assert spec.fit.memory_budget == 4 * 2**30
    assert spec.evaluation is None


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    data = {"base": "b", "trajectory": "t", "window": {"t_cut": 8}, "candidates": {"scales": [1, 0.5]}}
    as_json = load_spec(write(tmp_path / "spec.json", json.dumps(data, indent="\t")))
    as_yaml = load_spec(
        write(tmp_path / "spec.yaml", "base: b\ntrajectory: t\nwindow:\n  t_cut: 8\ncandidates: {scales: [1, 0.5]}")
    )
    assert as_json == as_yaml
    assert as_yaml.candidates.scales == (1.0, 0.5)


def test_the_design_s_example_parses_as_it_stands(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path / "relex.yaml", EXAMPLE))
    assert spec.base == "gs://models/qwen2.5-math-1.5b"
    assert spec.run_root == "gs://rl-runs/math-17/relex"
    assert spec.fit.memory_budget == 4 * 2**30
    assert spec.fit.trailing_averages == (20,)
    assert spec.candidates.target_steps == (75, 100, 200, 500)
    assert spec.evaluation is not None
    assert spec.evaluation.confirm.task.file == str(tmp_path / "confirm.jsonl")
    assert spec.cost.gpu_hours_per_step == 0.6


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = (
        f"base: models/b\ntrajectory: /abs/t\nrun_root: run\nwindow: {{t_cut: 8}}\nevaluation: {json.dumps(EVALUATION)}"
    )
    write(tmp_path / "specs" / "relex.yaml", text)
    spec = load_spec("../specs/relex.yaml")
    folder = tmp_path / "specs"
    assert (spec.base, spec.trajectory, spec.run_root) == (str(folder / "models/b"), "/abs/t", str(folder / "run"))
    assert spec.evaluation is not None
    assert spec.evaluation.select.task.file == str(folder / "questions.jsonl")


def test_out_overrides_run_root_and_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "specs").mkdir()
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "specs" / "s.yaml", "base: b\ntrajectory: t\nrun_root: r\nwindow: {t_cut: 8}")
    assert load_spec(path, out="mine").run_root == str(tmp_path / "mine")
    assert load_spec(path, out="gs://bucket/run/").run_root == "gs://bucket/run"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("gs://bucket/a/", "gs://bucket/a"),
        ("file:///data/my%20runs", "/data/my runs"),
        ("/data/runs", "/data/runs"),
        ("runs", "/specs/runs"),
        ("../runs/./a/../b", "/runs/b"),
        ("gs://bucket/a/../b", "gs://bucket/b"),
        ("./gs:/bucket", "/specs/gs:/bucket"),
        ("gs", "/specs/gs"),
    ],
)
def test_locations_become_absolute(given: str, meant: str) -> None:
    assert resolve(base=given).base == meant


def test_yaml_s_spelling_of_small_numbers_is_understood(tmp_path: Path) -> None:
    text = "base: b\ntrajectory: t\nwindow: {t_cut: 8}\ndecision: {min_gain: 1e-2}"  # YAML 1.1 reads 1e-2 as text
    assert load_spec(write(tmp_path / "s.yaml", text)).decision.min_gain == 0.01


@pytest.mark.parametrize(
    ("written", "meant"),
    [("010", 10), ("08", 8), ("10", 10), ("+10", 10), ("1_000", 1000), ("0001", 1), ("'12'", 12), ("12.0", 12)],
)
def test_yaml_s_integers_are_decimal(tmp_path: Path, written: str, meant: int) -> None:
    path = write(tmp_path / "s.yaml", f"base: b\ntrajectory: t\nwindow: {{t_cut: {written}}}")
    assert load_spec(path).window.t_cut == meant


@pytest.mark.parametrize("written", ["1:10", "0x10", "0b11", "0o17", "190:20:30", "1:10.5"])
def test_other_notations_of_yaml_1_1_are_no_numbers(tmp_path: Path, written: str) -> None:
    text = f"base: b\ntrajectory: t\nwindow: {{t_cut: {written}}}\ndecision: {{min_gain: {written}}}"
    with pytest.raises(SpecError) as caught:
        load_spec(write(tmp_path / "s.yaml", text))
    assert all(field in caught.value.what for field in ("window.t_cut", "decision.min_gain", f"(got '{written}')"))


@given(st.one_of(st.integers(-(10**9), 10**9), st.floats(allow_nan=False)))
def test_yaml_reads_numbers_as_json_does_or_leaves_them_text(number: float) -> None:
    read = parse_yaml(json.dumps({"x": number}))["x"]
    assert read == number or (isinstance(read, str) and float(read) == number)


@pytest.mark.parametrize(
    ("sections", "fault"),
    [
        ({"windw": {}}, "windw: unknown field; did you mean 'window'?"),
        ({"window": {"t_cut": 8, "tcut": 9}}, "window.tcut: unknown field; did you mean 't_cut'?"),
        ({"fit": {"memory": "1GiB"}}, "fit.memory: unknown field; did you mean 'memory_budget'?"),
        (
            {"evaluation": {**EVALUATION, "confirm": {**SPLIT, "max_token": 3}}},
            "evaluation.confirm.max_token: unknown field; did you mean 'max_tokens'?",
        ),
        (
            {"evaluation": {**EVALUATION, "select": {"task": {**SPLIT["task"], "greder": "exact"}}}},
            "evaluation.select.task.greder: unknown field; did you mean 'grader'?",
        ),
        ({"cost": {"zzzz": 1}}, "cost.zzzz: unknown field; known here: gpu_hours_per_step"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_known_name(sections: dict[str, Any], fault: str) -> None:
    assert fault in refusal(**sections)


def test_all_faults_are_listed_at_once() -> None:
    message = refusal(
        base="s3://bucket/base",
        windw=1,
        window={"t_cut": 0, "evry": 2},
        fit={"rank": 0, "memory_budget": "plenty"},
        candidates={"target_steps": [-1], "scales": [float("nan")]},
        evaluation={"select": SPLIT},
    )
    lines = [line for line in message.splitlines() if line.startswith("  - ")]
    named = {line.removeprefix("  - ").partition(":")[0] for line in lines}
    assert named == {
        "base",
        "windw",
        "window.t_cut",
        "window.evry",
        "fit.rank",
        "fit.memory_budget",
        "candidates.target_steps.0",
        "candidates.scales.0",
        "evaluation.confirm",
    }
    assert "test" in message  # where


@pytest.mark.parametrize(
    ("candidates", "fault"),
    [
        (
            {"spatial_ranks": [0]},
            "spatial_ranks.0: expected a number from 1 to 2147483647, 'full' or 'auto' (got 0)",
        ),
        (
            {"spatial_ranks": ["most"]},
            "spatial_ranks.0: expected a number from 1 to 2147483647, 'full' or 'auto'",
        ),
        ({"spatial_ranks": [10**300]}, "spatial_ranks.0: expected a number from 1 to 2147483647"),
        ({"spatial_ranks": []}, "spatial_ranks: an empty list; give at least 1"),
        ({"dtype": "float8"}, "dtype: Input should be 'checkpoint', 'base', 'float32', 'bfloat16' or 'float16' (got"),
    ],
)
def test_a_field_of_several_kinds_has_one_fault(candidates: dict[str, Any], fault: str) -> None:
    lines = [line for line in refusal(candidates=candidates).splitlines() if line.startswith("  - ")]
    assert len(lines) == 1 and lines[0].startswith(f"  - candidates.{fault}")
    for inner in ("constrained", "literal[", "Tuple", "validation"):
        assert inner not in lines[0]


def test_spatial_ranks_are_numbers_or_words() -> None:
    spec = resolve(candidates={"spatial_ranks": [4, "8", "full", "auto"]})
    assert spec.candidates.spatial_ranks == (4, 8, "full", "auto")
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec


def test_an_empty_spec_lacks_the_three_required_fields_and_no_other() -> None:
    with pytest.raises(SpecError) as caught:
        resolve_spec({}, where="test", folder=Path("/"))
    lacking = re.findall(r"- (\S+): required, but not given", str(caught.value))
    assert lacking == ["base", "trajectory", "window"]


@pytest.mark.parametrize(
    ("sections", "fault"),
    [
        ({"window": {"t_cut": 4, "first": 5}}, "first=5 lies after t_cut=4"),
        ({"window": {"t_cut": 10, "first": 1, "every": 2}}, "10 - 1 is not divisible by 2"),
        ({"window": {"t_cut": 10, "min_checkpoints": 1}}, "window.min_checkpoints"),
        ({"window": {"t_cut": 2**53}}, "window.t_cut"),
        ({"window": {"t_cut": 5, "settle_seconds": -1}}, "window.settle_seconds"),
        ({"window": {"t_cut": 5, "settle_seconds": float("nan")}}, "window.settle_seconds"),
        ({"fit": {"temporal": "linear", "degree": 2}}, "degree=2 needs temporal: polynomial"),
        ({"fit": {"basis": "per_parameter", "rank": 2}}, "basis: per_parameter has none"),
        ({"fit": {"trailing_averages": [5, 5]}}, "names the same length twice"),
        ({"fit": {"trailing_averages": [1]}}, "fit.trailing_averages.0"),
        ({"fit": {"group_size": 0}}, "fit.group_size"),
        ({"fit": {"device": "gpu"}}, "fit.device: expected auto, cpu, cuda or cuda:N (got 'gpu')"),
        ({"fit": {"device": "cuda:"}}, "fit.device: expected auto"),
        ({"fit": {"memory_budget": -1}}, "fit.memory_budget"),
        ({"candidates": {"baselines": ["trailing_average"]}}, "set fit.trailing_averages, for example [20]"),
        ({"candidates": {"baselines": ["best_of_all"]}}, "candidates.baselines.0"),
        ({"candidates": {"scales": [1e308]}}, "candidates.scales.0: Input should be less than or equal to 1000"),
        ({"candidates": {"expo_alphas": [0.5, -1001]}}, "candidates.expo_alphas.1: Input should be greater than or"),
        ({"candidates": {"dtype": "int8"}}, "candidates.dtype"),
        (
            {"evaluation": {**EVALUATION, "select": {**SPLIT, "samples": 8}}},
            "samples=8 at temperature 0 would repeat one answer 8 times",
        ),
        ({"evaluation": {**EVALUATION, "select": {"task": {"name": "../x", "file": "f"}}}}, "select.task.name"),
        ({"decision": {"confidence": 1}}, "decision.confidence"),
        ({"decision": {"confidence": float("nan")}}, "decision.confidence"),
        ({"decision": {"min_gain": float("nan")}}, "decision.min_gain"),
        ({"cost": {"gpu_hours_per_step": float("inf")}}, "cost.gpu_hours_per_step"),
        ({"base": "gs://"}, "a gs:// URI without a bucket"),
        ({"base": ""}, "an empty location"),
        ({"base": "file://host/data"}, "another host"),
        ({"base": "gs:/bucket/x"}, "a URI without its two slashes where: gs:/bucket/x expected: gs://BUCKET/FOLDER"),
        ({"trajectory": "gs:bucket/x"}, "a URI without its two slashes"),
        ({"run_root": "file:/data"}, "a URI without its two slashes"),
        ({"window": {"t_cut": True}}, "window.t_cut: true and false stand for no number and for no text (got True)"),
        ({"candidates": {"target_steps": [100, True]}}, "candidates.target_steps: true and false stand for no number"),
        ({"evaluation": {**EVALUATION, "select": {**SPLIT, "samples": True}}}, "select.samples: true and false"),
        ({"base": 7}, "base: Input should be a valid string (got 7)"),
    ],
)
def test_wrong_values_are_refused_by_name(sections: dict[str, Any], fault: str) -> None:
    assert fault in refusal(**sections)


@pytest.mark.parametrize(
    ("base", "trajectory", "run_root", "fault"),
    [
        ("base", "trajectory", "base", "run_root: this lies in the folder of the base"),
        ("base", "trajectory", "trajectory/../base/relex", "run_root: this lies in the folder of the base"),
        ("gs://b/base", "gs://b/t", "gs://b/base/relex/", "run_root: this lies in the folder of the base"),
        ("trajectory/base", "trajectory", "trajectory/base/relex", "run_root: this lies in the folder of the base"),
        ("base", "trajectory", "./trajectory/", "run_root: this is the trajectory"),
        ("/", "/t", "/r", "run_root: this lies in the folder of the base"),
    ],
)
def test_a_run_directory_is_a_folder_of_its_own(base: str, trajectory: str, run_root: str, fault: str) -> None:
    assert fault in refusal(base=base, trajectory=trajectory, run_root=run_root)


@pytest.mark.parametrize(
    ("base", "trajectory", "run_root"),
    [
        ("base", "trajectory", "trajectory/relex"),
        ("base", "trajectory", "trajectory-2"),
        ("base", "trajectory", "base-relex"),
        ("gs://b/base", "gs://b/t", "gs://b/based"),
        ("model", "model/steps", "model/steps/relex"),  # the default, where the base's folder holds the whole run
        ("model", "model", "model/relex"),
        ("runs/base", "runs/steps", "runs"),
    ],
)
def test_other_run_directories_are_taken(base: str, trajectory: str, run_root: str) -> None:
    assert resolve(base=base, trajectory=trajectory, run_root=run_root).run_root.endswith(run_root)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[1, 2]", "not a mapping"),
        ("", "not a mapping"),
        ("a: [", "not YAML"),
        ("[" * 1000, "not YAML"),
        ("!!python/object/apply:os.system [exit]", "not YAML"),
        ("base: 2024-01-01\ntrajectory: t\nwindow: {t_cut: 1}", "not plain data"),
        ("base: &a [*a]\ntrajectory: t\nwindow: {t_cut: 1}", "not plain data"),
    ],
)
def test_a_file_that_is_no_spec_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(SpecError, match=fault):
        load_spec(write(tmp_path / "s.yaml", text))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("base: b\ntrajectory: t\nwindow: {t_cut: 8}\nbase: c\n", "line 4: 'base' stands twice, first in line 1"),
        ("base: b\nwindow:\n  t_cut: 8\n  first: 2\n  t_cut: 9\n", "line 5: 't_cut' stands twice, first in line 3"),
        ("base: b\nwindow: {t_cut: 8, t_cut: 9}\n", "line 2: 't_cut' stands twice, first in line 2"),
        ("base: b\nfit: &f {rank: 1}\nwindow: {<<: *f, t_cut: 8}\n\nfit: *f", "line 5: 'fit' stands twice"),
        ("base: b\nevaluation:\n  guards:\n  - {a: 1}\n  - {b: 1, c: [{d: 1, d: 2}]}\n", "line 5: 'd' stands twice"),
    ],
)
def test_a_field_that_stands_twice_is_refused_with_its_line(tmp_path: Path, text: str, fault: str) -> None:
    path = write(tmp_path / "s.yaml", text)
    with pytest.raises(SpecError, match="the spec gives a field twice") as caught:
        load_spec(path)
    assert fault in caught.value.what and caught.value.where == str(path)


def test_a_field_that_stands_twice_in_json_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.json", '{"base": "b", "window": {"t_cut": 1, "t_cut": 2}}')
    with pytest.raises(SpecError, match="gives a field twice: 't_cut' stands twice in one object"):
        load_spec(path)


def test_a_field_that_stands_twice_is_refused_where_an_orchestrator_passes_the_spec() -> None:
    with pytest.raises(SpecError) as caught:
        spec_from_json('{"base": "b", "trajectory": "t", "window": {"t_cut": 1, "t_cut": 2}}', where="the parameter")
    assert caught.value.what == "the spec gives a field twice: 't_cut' stands twice in one object"
    assert (caught.value.where, caught.value.next_step) == ("the parameter", "keep one of the two")


def test_a_key_that_a_merge_overrules_does_not_stand_twice(tmp_path: Path) -> None:
    text = "base: b\ntrajectory: t\nfit: &f {rank: 2}\nwindow: {t_cut: 8}\nx-unused: {<<: *f, rank: 3}\n"
    with pytest.raises(SpecError, match="x-unused: unknown field"):  # and nothing else is wrong
        load_spec(write(tmp_path / "s.yaml", text))


def test_a_broken_json_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="not JSON"):
        load_spec(write(tmp_path / "s.json", '{"base": "b",'))


def test_files_that_cannot_be_read_are_refused_with_their_path(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "absent.yaml", tmp_path, tmp_path / "binary"):
        with pytest.raises(SpecError) as caught:
            load_spec(path)
        assert caught.value.where == str(path)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "text", ["base: b\nwindow:\n\tt_cut: 8\n", "base: b\nwindow:\n \tt_cut: 8\n", "base: b\nfit: {\n\trank: 1}\n"]
)
def test_a_tab_is_refused_with_its_line_and_what_to_do(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match="the spec is not YAML") as caught:
        load_spec(write(tmp_path / "s.yaml", text))
    assert (caught.value.expected, caught.value.next_step) == (
        "no tab before a field; there is one in line 3",
        "indent with spaces",
    )


def test_another_fault_of_yaml_says_what_a_spec_is(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="line 2, column 1") as caught:
        load_spec(write(tmp_path / "s.yaml", "base: [\n"))
    assert caught.value.expected.startswith("base, trajectory, window") and "docs/spec.md" in caught.value.next_step


@pytest.mark.parametrize("data", ["base: müller\n".encode("latin-1"), "base: b\n".encode("utf-16")])
def test_a_spec_in_another_encoding_is_refused_with_what_to_do(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "s.yaml").write_bytes(data)
    with pytest.raises(SpecError, match="no text in UTF-8") as caught:
        load_spec(tmp_path / "s.yaml")
    assert caught.value.expected == "UTF-8" and caught.value.next_step.startswith("save it as UTF-8")


def grader_of(name: object) -> dict[str, Any]:
    return {"evaluation": {**EVALUATION, "select": {"task": {**SPLIT["task"], "grader": name}}}}


@pytest.mark.parametrize(
    ("grader", "fault"),
    [
        ("maths", "expected exact, choice, math, paper or module:function; did you mean 'math'? (got 'maths')"),
        ("Exact", "expected exact, choice, math, paper or module:function; did you mean 'exact'? (got 'Exact')"),
        ("zzz", "expected exact, choice, math, paper or module:function (got 'zzz')"),
        ("a b:c", "expected exact, choice, math, paper or module:function (got 'a b:c')"),
        ("math\n", "expected exact, choice, math, paper or module:function; did you mean 'math'?"),
        (3, "Input should be a valid string (got 3)"),
    ],
)
def test_an_unknown_grader_is_refused_with_the_nearest_known_one(grader: object, fault: str) -> None:
    assert f"evaluation.select.task.grader: {fault}" in refusal(**grader_of(grader))


@pytest.mark.parametrize("grader", ["exact", "choice", "math", "paper", "grade:grade", "my.graders:_same"])
def test_graders_are_named_or_functions(grader: str) -> None:
    evaluation = resolve(**grader_of(grader)).evaluation
    assert evaluation and evaluation.select_splits[0].task.grader == grader


@pytest.mark.parametrize(
    "sections",
    [
        {"candidates": {"baselines": ["trailing_average"]}},
        {"window": {"t_cut": 4, "first": 5}},
        {"evaluation": {**EVALUATION, "select": {"task": {"name": "a"}}}},
    ],
)
def test_a_fault_of_a_whole_section_shows_no_dump_of_it(sections: dict[str, Any]) -> None:
    assert "(got" not in refusal(**sections)


def test_specs_are_read_as_relex_reads_yaml_and_never_otherwise() -> None:
    """YAML 1.1 reads 0100 as 64 and 1:10 as 70, and PyYAML keeps the last of two equal keys."""
    root = Path(__file__).parents[1]
    folders = ("relex_core", "relex_kfp", "components", "pipelines", "examples")
    files = [path for folder in folders for path in (root / folder).rglob("*.py")]
    reads = {path for path in files if re.search(r"\byaml\.(\w+_)?load\(|\bsafe_load\b", path.read_text())}
    assert reads == {root / "relex_core/yaml_text.py"}


def test_a_resolved_spec_reads_back_as_itself(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path / "relex.yaml", EXAMPLE))
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
    # Written to a file of another folder it still means the same: every location is absolute.
    (tmp_path / "other").mkdir()
    assert load_spec(write(tmp_path / "other" / "spec.json", spec.model_dump_json())) == spec


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_devices_are_those_that_the_fit_knows(device: str) -> None:
    assert resolve(fit={"device": device}).fit.device == device


def test_a_spec_is_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        resolve().window.t_cut = 3  # type: ignore[misc]


def test_identity_is_what_decides_the_bytes_of_window_and_fit() -> None:
    identity = resolve().identity()
    for same in (
        {"fit": {"device": "cpu", "memory_budget": "1GiB"}},
        {"candidates": {"target_steps": [9], "scales": [0.5]}},
        {"decision": {"min_gain": 0.1}},
        {"evaluation": EVALUATION},
        {"run_root": "elsewhere"},
        {"window": {"t_cut": 75, "settle_seconds": 0}},
    ):
        assert resolve(**same).identity() == identity, same
    for other in (
        {"base": "another"},
        {"trajectory": "another"},
        {"window": {"t_cut": 74}},
        {"layout": {"step_folder": "iter_{step}"}},
        {"window": {"t_cut": 75, "skip_incomplete": True}},
        {"fit": {"rank": 2}},
        {"fit": {"trailing_averages": [5]}},
        {"fit": {"direction_dtype": "bfloat16"}},
    ):
        assert resolve(**other).identity() != identity, other
    assert json.loads(json.dumps(identity)) == identity  # plain data, as the fit's key needs it
