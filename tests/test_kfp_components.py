"""Every component, called as a function in the pipeline's order on a real run; and the stages that it added."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from kfp import dsl
from kfp_support import make_spec, named, result_files, scripted_run, spec_data

from relex_core import cli, layout
from relex_core.collect import collect
from relex_core.errors import DataError, SpecError, StorageError, WindowNotReady, exit_on_error
from relex_core.evaluate import evaluate, evaluate_first_round
from relex_core.evaluate.scripted_backend import ScriptedGenerator
from relex_core.extrapolate import extrapolate
from relex_core.fit import fit
from relex_core.gate import gate
from relex_core.publish import NOTHING_YET, publish, published
from relex_core.run import run as run_all
from relex_core.spec import RunSpec, spec_from_json
from relex_core.stages import BY_NAME, STAGES, markers, plan_work
from relex_core.storage import exists, open_store, write_bytes

NAMES = sorted(path.parent.name for path in (Path(__file__).parents[1] / "components").glob("*/component.py"))


def component(name: str) -> Callable[..., Any]:
    """The function behind a component."""
    function: Callable[..., Any] = getattr(import_module(f"relex_kfp.components.{name}.component"), name).python_func
    return function


class Artifacts:
    """Output artifacts below a folder, as the launcher would make them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, Any] = {}

    def __call__(self, kind: type[dsl.Artifact], name: str) -> Any:
        self.made[name] = kind(name=name, uri=str(self.folder / name))
        return self.made[name]

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    (tmp_path / "artifacts").mkdir()
    return Artifacts(tmp_path / "artifacts")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return scripted_run(tmp_path, candidates=0.9, last_observed=0.3)


def test_the_components_in_order_make_what_relex_run_makes(folder: Path, artifacts: Artifacts) -> None:
    spec = make_spec(folder)
    out, markdown, metrics = artifacts, dsl.Markdown, dsl.Metrics
    seen = component("gate")(spec=spec.model_dump_json(), summary=out(markdown, "gate"))
    assert (seen.ready, seen.state, seen.run, seen.spec) == (True, "ready", spec.run_root, spec.model_dump_json())
    window = component("collect")(
        spec=seen.spec, shards=2, summary=out(markdown, "steps"), window=out(dsl.Artifact, "window")
    )
    assert (window.shards, window.references) == (["1/2", "2/2"], ["base", "last_observed"])
    assert window.candidates == ["relex-step00020-scale1.00", "relex-step00040-scale1.00"]
    of_run = {"run": window.run, "key": window.key}
    for shard in window.shards:
        assert component("fit")(shard=shard, **of_run) == shard
    key = component("merge_fit")(
        shards=window.shards, metrics=out(metrics, "fit"), summary=out(markdown, "fit-table"), **of_run
    )
    component("forecast")(fit_key=key, summary=out(markdown, "advice"), **of_run)
    evaluate_one = component("evaluate")
    for reference in window.references:
        evaluate_one(candidate=reference, metrics=out(metrics, "m"), summary=out(markdown, "s"), **of_run)
    for name in window.candidates:
        component("extrapolate")(candidate=name, fit_key=key, manifest=out(dsl.Artifact, name), **of_run)
        evaluate_one(candidate=name, metrics=out(metrics, "m"), summary=out(markdown, "s"), **of_run)
    evaluate_one(metrics=out(metrics, "accuracy"), summary=out(markdown, "results"), **of_run)
    decision = component("decide")(
        evaluated="", metrics=out(metrics, "gain"), summary=out(markdown, "decision"), **of_run
    )
    outcome = component("publish")(decision=decision, page="", outcome=out(dsl.Artifact, "outcome"), **of_run)

    best = f"{window.run}/candidates/relex-step00020-scale1.00"
    assert tuple(outcome) == ("promote", best, 12)
    assert json.loads(out.text("outcome"))["checkpoint_uri"] == best
    assert json.loads(out.text("window"))["digest"] == out.made["window"].metadata["digest"]
    assert "promote" in out.text("decision") and "0.90" in out.text("results")
    assert out.made["gain"].metadata["gain over last observed"] == pytest.approx(0.6)
    again = component("gate")(spec=spec.model_dump_json(), summary=out(markdown, "gate"))
    assert (again.ready, again.state) == (False, "done")
    assert tuple(component("outcome")(run=again.run, state=again.state)) == tuple(outcome)

    run_all(make_spec(folder, "other"))
    assert result_files(folder / "run") == result_files(folder / "other")


def test_visible_parameters_override_the_spec(folder: Path, artifacts: Artifacts) -> None:
    rest = json.dumps({"evaluation": make_spec(folder).model_dump(mode="json")["evaluation"]})
    seen = component("gate")(
        spec=rest,
        base=str(folder / "trajectory/base"),
        trajectory=str(folder / "trajectory"),
        t_cut=4,
        summary=artifacts(dsl.Markdown, "gate"),
    )
    resolved = RunSpec.model_validate_json(seen.spec)
    assert (resolved.window.t_cut, resolved.run_root) == (4, str(folder / "trajectory/relex"))
    assert seen.ready


@pytest.mark.parametrize("text, message", [("{", "not JSON"), ("[]", "not a mapping"), ("{}", "window"), ("", "base")])
def test_a_spec_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec_from_json(text)


@pytest.mark.parametrize("name", NAMES)
def test_a_components_errors_end_it_with_message_and_status(
    name: str, tmp_path: Path, artifacts: Artifacts, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each, on a run directory that is empty or a spec that is wrong."""
    if name == "report" and find_spec("relex_core.report") is None:
        pytest.skip("there is no report yet")
    function = component(name)
    given: dict[str, Any] = {"run": str(tmp_path / "none"), "spec": "{}", "shard": "1/1", "state": "done"}
    kinds = {parameter: kind for parameter, kind in function.__annotations__.items() if parameter != "return"}
    values = {
        parameter: given.get(parameter, [] if kind is list else 0 if kind is int else "")
        if kind in (str, int, list)
        else artifacts(dsl.Metrics if parameter == "metrics" else dsl.Artifact, parameter)
        for parameter, kind in kinds.items()
    }
    if name == "outcome":
        write_bytes(open_store(given["run"]), layout.PUBLISHED, b"{}")
    with pytest.raises(SystemExit) as ended:
        function(**values)
    expected = {
        "notify": (2, "SpecError"),
        "gate": (2, "SpecError"),
        "collect": (2, "SpecError"),
        "outcome": (4, "DataError"),
    }
    code, error = expected.get(name, (3, "WindowNotReady"))
    assert ended.value.code == code
    assert capfd.readouterr().err.startswith(f"{error}: ")


def test_only_our_errors_are_turned_into_a_status(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_error():
        raise StorageError("the bucket is down", where="gs://b")
    assert ended.value.code == 5
    assert "the bucket is down" in capfd.readouterr().err
    with pytest.raises(ZeroDivisionError), exit_on_error():
        _ = 1 / 0


@pytest.mark.parametrize("name", NAMES)
def test_every_component_has_its_page(name: str) -> None:
    folder = Path(__file__).parents[1] / "components" / name
    page = (folder / "README.md").read_text()
    definition = getattr(import_module(f"relex_kfp.components.{name}.component"), name)
    for given in [*(definition.component_spec.inputs or {}), *(definition.component_spec.outputs or {})]:
        assert f"`{given}`" in page or given == "Output", f"{name}/README.md does not explain {given}"
    found = re.search(r"stage `(\w+)` of .*: (\d+) CPU, (\d+) GiB.*; ends after (\d+) minutes; (\d+|no) retries", page)
    assert found
    stage = BY_NAME[found[1]]
    resources, retries = stage.resources, int(found[5].replace("no", "0"))
    said = (int(found[2]), int(found[3]), int(found[4]), retries)
    assert said == (resources.cpu, resources.memory, stage.minutes, stage.retries), "README.md and stages.py differ"
    own = BY_NAME.get(name)  # notify and outcome have a stage's pod, and only look at what publish wrote
    reads, writes = (own.reads, own.writes) if own else ((layout.PUBLISHED,), ())
    assert f"\nPermissions: reads {named(reads)}; writes {named(writes)} (" in page, "README.md and stages.py differ"


# The stages that the pipeline added to relex_core.


def test_the_gate_is_cheap_and_says_why(folder: Path) -> None:
    spec = make_spec(folder, window={"t_cut": 40})
    seen = gate(spec)
    assert (seen.state, Path(spec.run_root).exists()) == ("not_ready", False)
    assert "last complete checkpoint is step 16" in seen.message
    assert gate(make_spec(folder)).state == "ready"
    with pytest.raises(SpecError, match="no evaluation section"):
        gate(make_spec(folder, evaluation=None))


def test_the_gate_does_not_need_the_checkpoints_of_a_collected_window(folder: Path) -> None:
    spec = make_spec(folder)
    collect(spec)
    (folder / "trajectory/global_step_8/actor/huggingface/model.safetensors").unlink()
    assert gate(spec).state == "ready"


def test_the_gate_refuses_what_the_run_directory_refuses(folder: Path) -> None:
    collect(make_spec(folder))
    for t_cut in (4, 40):
        other = make_spec(folder, window={"t_cut": t_cut})
        for asked in (gate, collect):
            with pytest.raises(SpecError, match="belongs to another spec: window differ"):
                asked(other)
    assert gate(make_spec(folder)).state == "ready", "a refused spec leaves no trace"


def test_another_spec_is_not_done_by_an_old_outcome(folder: Path) -> None:
    run_all(make_spec(folder))
    assert gate(make_spec(folder)).state == "done"
    assert gate(make_spec(folder, decision={"min_gain": 0.1})).state == "ready"


NOTHING_TO_DECIDE = {"scales": [], "baselines": ["last_observed"]}


@pytest.mark.parametrize("collected", [False, True])
def test_what_can_never_be_decided_is_refused_before_hours_of_reading(folder: Path, collected: bool) -> None:
    spec, without = make_spec(folder), make_spec(folder, candidates=NOTHING_TO_DECIDE)
    if collected:
        collect(spec)
    with pytest.raises(SpecError, match="asks for no candidate"):
        gate(without)
    (folder / "confirm.jsonl").unlink()
    with pytest.raises(DataError, match="the file of task confirm is not there"):
        gate(spec)
    other = {**spec_data()["evaluation"], "select": {"task": {"name": "a", "file": "select.jsonl", "sha256": "0" * 64}}}
    with pytest.raises(DataError, match="the file of task a is another one"):
        gate(make_spec(folder, evaluation=other))


def test_work_that_leads_nowhere_is_not_planned(folder: Path) -> None:
    spec = make_spec(folder)
    manifest = collect(spec)
    for shards in (0, -2):
        with pytest.raises(SpecError, match=f"cannot be split into {shards} parts"):
            plan_work(spec, manifest, shards)
    with pytest.raises(SpecError, match="asks for no candidate"):
        plan_work(make_spec(folder, candidates=NOTHING_TO_DECIDE), manifest, 1)
    (folder / "select.jsonl").unlink()
    with pytest.raises(DataError, match="the file of task select is not there"):
        plan_work(spec, manifest, 1)


def test_gate_on_the_command_line(folder: Path) -> None:
    (folder / "spec.json").write_text(json.dumps(spec_data()))
    (folder / "later.json").write_text(json.dumps(spec_data(window={"t_cut": 40})))
    for name, status, shown in (("spec", 0, "ready: "), ("later", 3, "not_ready: ")):
        result = CliRunner().invoke(cli.main, ["gate", str(folder / f"{name}.json")])
        assert (result.exit_code, result.output.startswith(shown)) == (status, True)


def test_a_run_is_published_last_and_once(folder: Path) -> None:
    spec = make_spec(folder)
    with pytest.raises(WindowNotReady):
        publish(spec.run_root)
    assert published(spec.run_root) == NOTHING_YET
    run_all(spec)
    outcome = published(spec.run_root)
    assert (outcome.decision, outcome.candidate) == ("promote", "relex-step00020-scale1.00")
    path = folder / "run" / layout.PUBLISHED
    before = path.stat().st_mtime_ns
    assert publish(spec.run_root) == outcome
    assert path.stat().st_mtime_ns == before
    path.write_text("{}")
    with pytest.raises(DataError, match="the file is not what this version of relex writes"):
        published(spec.run_root)


def test_what_is_kept_is_published_where_it_lies(tmp_path: Path) -> None:
    spec = make_spec(scripted_run(tmp_path, candidates=0.1, last_observed=0.5))
    run_all(spec)
    outcome = published(spec.run_root)
    assert (outcome.decision, outcome.candidate, outcome.training_steps_saved) == ("keep_observed", "last_observed", 0)
    assert outcome.checkpoint_uri == str(tmp_path / "trajectory/global_step_8/actor/huggingface")
    assert not list((tmp_path / "run/candidates").glob("*/*.safetensors"))


def test_while_nothing_is_decided_no_folder_is_named(folder: Path) -> None:
    spec = make_spec(folder)
    run_all(spec)
    path = folder / "run" / layout.DECISION
    undecided = {**json.loads(path.read_text()), "decision": "not_ready", "candidate": "last_observed"}
    path.write_text(json.dumps(undecided))
    assert publish(spec.run_root).checkpoint_uri == ""


def test_candidates_one_by_one_are_the_same_bytes(folder: Path) -> None:
    one, all_at_once = make_spec(folder, "one"), make_spec(folder, "all")
    for spec in (one, all_at_once):
        collect(spec)
        fit(spec.run_root)
    names = [candidate.name for candidate in extrapolate(all_at_once.run_root)]
    for name in reversed(names):
        assert [written.name for written in extrapolate(one.run_root, names=[name])] == [name]

    def written(run: str) -> dict[str, bytes]:
        root = folder / run / "candidates"
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.glob("*/*")}

    assert written("one") == written("all")
    with pytest.raises(SpecError, match="no candidate 'relex-step00021"):
        extrapolate(one.run_root, names=["relex-step00021-scale1.00"])


@pytest.mark.parametrize("search", ["full", "halving"])
def test_first_rounds_in_any_order_leave_evaluate_less_to_do(
    folder: Path, search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the bytes that it leaves alone."""
    targets = [20, 40, 60, 80, 100]
    evaluation = {**spec_data()["evaluation"], "search": search}
    specs = [make_spec(folder, run, candidates={"target_steps": targets}, evaluation=evaluation) for run in "ab"]
    for spec in specs:
        collect(spec)
        fit(spec.run_root)
        extrapolate(spec.run_root)
    asked: list[str] = []
    real = ScriptedGenerator.generate

    def counting(self: ScriptedGenerator, prompts: Any, sampling: Any) -> Any:
        asked.extend(prompts)
        return real(self, prompts, sampling)

    monkeypatch.setattr(ScriptedGenerator, "generate", counting)
    alone = evaluate(specs[0].run_root)
    whole, asked[:] = len(asked), []
    names = [path.name for path in (folder / "a/candidates").iterdir()]
    for name in (*reversed(names), "last_observed", "base"):
        [result] = evaluate_first_round(specs[1].run_root, [name])
        assert result.n == (16 if search == "halving" and name in names else 64)
    in_parallel, asked[:] = len(asked), []
    assert evaluate(specs[1].run_root) == alone
    assert in_parallel + len(asked) == whole, "nothing is generated twice"
    assert len(asked) == 3 * 80 + (4 * 48 if search == "halving" else 0)

    def bytes_of(run: str) -> dict[str, bytes]:
        root = folder / run / "eval"
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.json*")}

    assert bytes_of("a") == bytes_of("b")


def test_every_stage_of_the_table_is_a_command() -> None:
    for stage in STAGES:
        arguments = stage.arguments(spec=__file__, run="/run", shard="1/2", candidate="a")
        command = cli.main.commands.get(arguments[0])
        if command is None:
            assert arguments[0] == "report", f"there is no relex {arguments[0]}"
            continue
        command.make_context(arguments[0], arguments[1:], parent=click.Context(cli.main))


def test_markers_show_what_is_done(folder: Path) -> None:
    spec = make_spec(folder)
    store = open_store(spec.run_root)
    name = "relex-step00020-scale1.00"
    expected = {stage.name: markers(stage, spec, name) for stage in STAGES if stage.name != "report"}
    assert not any(exists(store, key) for keys in expected.values() for key in keys)
    run_all(spec)
    assert all(exists(store, key) for keys in expected.values() for key in keys)
    assert expected["measure"] == ["eval/relex-step00020-scale1.00/select-select/summary.json"]
    assert [name for name, keys in expected.items() if not keys] == ["gate", "fit"]
    assert BY_NAME["evaluate"].retries and not BY_NAME["decide"].retries


def test_the_key_changes_with_all_that_later_stages_read(folder: Path) -> None:
    spec = make_spec(folder)
    manifest = collect(spec)
    work = plan_work(spec, manifest, 3)
    assert work == plan_work(spec, manifest, 3)
    assert work.shards == ("1/3", "2/3", "3/3")
    assert work.candidates == ("relex-step00020-scale1.00", "relex-step00040-scale1.00")
    other = make_spec(folder, decision={"min_gain": 0.1})
    assert plan_work(other, manifest, 3).key != work.key
    questions = folder / "confirm.jsonl"
    before = questions.read_text()
    questions.write_text(before.replace('"answer": "0"', '"answer": "zero"'))
    assert plan_work(spec, manifest, 3).key != work.key
    questions.write_text(before)
    assert plan_work(spec, manifest, 3).key == work.key
    (folder / "run/window.json").unlink()
    assert plan_work(spec, collect(spec), 3).key != work.key, "of a directory that was deleted nothing is there"
