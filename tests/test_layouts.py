"""Step folders of every trainer: which folder is which step, whose layout it is, and a layout of the user's own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import CONFIG, line_of_states, make_spec, random_weights, write_checkpoint, write_trajectory

from relex_core.checkpoints.layouts import LAYOUTS, Layout, find_steps
from relex_core.collect import collect, find_window
from relex_core.errors import DataError, SpecError, WindowError, WindowNotReady
from relex_core.observe import observe
from relex_core.spec import load_spec, resolve_layout, resolve_spec
from relex_core.storage import ObjectInfo

HF = ("model.safetensors", "config.json")


def listing(*names: str) -> list[ObjectInfo]:
    return [ObjectInfo(name, 1, 1) for name in sorted(names)]


def found(*names: str) -> dict[int, str]:
    """The layout of every step among these objects."""
    return {folder.step: folder.layout.name for folder in find_steps(listing(*names)).steps}


def own_trajectory(root: Path, template: str, steps: tuple[int, ...], marker: str = "") -> None:
    """A trajectory whose weights folders are `template` with the step."""
    base = random_weights()
    write_checkpoint(root / "base", base)
    for step, state in zip(steps, line_of_states(base, steps), strict=True):
        folder = write_checkpoint(root / template.format(step), state)
        if marker:
            (folder.parent / marker).touch()


# --- the known trainers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "layout"),
    [
        ("global_step_10/actor/huggingface", "verl"),
        ("global_step_10/actor/model/huggingface", "verl (Megatron)"),
        ("global_step_10/policy", "SkyRL"),
        ("global_step_10", "RELEX authors"),
        ("global_step10_hf", "OpenRLHF"),
        ("checkpoint-10", "HF Trainer / TRL"),
        ("step_10", "prime-rl"),
        ("step_00010", "prime-rl"),
    ],
)
def test_whose_checkpoint_it_is(folder: str, layout: str) -> None:
    assert found(*(f"{folder}/{name}" for name in HF)) == {10: layout}


def test_the_layout_that_has_weights_wins_and_the_deeper_one_among_several() -> None:
    assert found("global_step_1/data.pt", "global_step_1/actor/huggingface/config.json") == {1: "verl"}
    assert found("global_step_1/actor/huggingface/config.json", "global_step_1/model.safetensors") == {
        1: "RELEX authors"
    }
    assert found("global_step_1/actor/huggingface/model.safetensors", "global_step_1/model.safetensors") == {1: "verl"}
    assert found("global_step_1/policy/model-00001-of-00002.safetensors", "global_step_1/x.json") == {1: "SkyRL"}


def test_a_step_whose_weights_are_still_to_come_has_the_layout_that_it_begins_like() -> None:
    assert found("global_step_1/actor/model_world_size_1_rank_0.pt", "global_step_1/data.pt") == {
        1: "verl, FSDP shards"
    }
    assert found("global_step_1/policy/config.json", "global_step_1/data.pt") == {1: "SkyRL"}
    assert found("global_step_1/trainer_state.pt") == {1: "RELEX authors"}
    assert found("step_7/config.json") == {7: "prime-rl"}


def test_folders_of_no_trainer_are_named_as_such() -> None:
    names = (
        "checkpoint-best",
        "checkpoint-10-tmp",
        "tmp_step_4",
        "old_step_4",
        "step_",
        "step_-1",
        "step_1.5",
        "step_٣",
        "global_step_" + "9" * 400,
        "global_step10",
        "global_step_4_hf",
        "Step_4",
        "relex",
    )
    trajectory = find_steps(listing(*(f"{name}/model.safetensors" for name in names), "step_5/STABLE"))
    assert [folder.step for folder in trajectory.steps] == [5]
    assert trajectory.other_folders == tuple(sorted(names))


@pytest.mark.parametrize("twin", ["global_step_007", "global_step_0000000000007", "checkpoint-7", "step_07"])
def test_a_step_that_is_there_twice(twin: str) -> None:
    with pytest.raises(DataError, match="step 7 is there twice") as caught:
        find_steps(listing("global_step_7/model.safetensors", f"{twin}/model.safetensors"))
    assert f"global_step_7 and {twin}" in caught.value.where or f"{twin} and global_step_7" in caught.value.where


def test_steps_come_in_order_of_their_numbers() -> None:
    names = [f"global_step_{step}/model.safetensors" for step in (9, 10, 100, 2)]
    assert [folder.step for folder in find_steps(listing(*names)).steps] == [2, 9, 10, 100]


def test_only_files_directly_in_the_weights_folder_are_weights() -> None:
    (folder,) = find_steps(
        listing("step_1/model.safetensors", "step_1/lora_adapters/adapter_model.bin", "step_1/STABLE")
    ).steps
    assert [info.name for info in folder.files] == ["STABLE", "model.safetensors"]
    assert len(folder.everything) == 3


@given(st.lists(st.text(min_size=1, max_size=30), max_size=8))
def test_any_names_are_listed_without_an_error_of_another_kind(names: list[str]) -> None:
    try:
        steps = find_steps(listing(*names)).steps
    except DataError:
        return
    assert all(0 <= folder.step < 10**15 for folder in steps)


def test_every_known_layout_matches_its_own_folders_and_is_documented() -> None:
    docs = (Path(__file__).parents[1] / "docs" / "trainers.md").read_text()
    for layout in LAYOUTS:
        for step in (0, 7, 75, 10**14):
            for digits in (f"{step}", f"{step:015d}"):
                assert layout.step_of(layout.step_folder.format(step=digits)) == step
        assert layout.step_folder.replace("{step}", "N") in docs, layout.name
        for text in (layout.name.partition(" (")[0], layout.weights, layout.step_marker, layout.last_step_file):
            assert text in docs, layout.name


# --- completion markers -----------------------------------------------------------------------------------------------


def test_prime_rl_s_marker(tmp_path: Path) -> None:
    base = random_weights()
    write_trajectory(tmp_path, base, line_of_states(base, [1, 2, 3]), [1, 2, 3], "prime-rl")
    assert find_window(make_spec(tmp_path, t_cut=3)).steps == (1, 2, 3)
    (tmp_path / "step_3" / "STABLE").unlink()
    with pytest.raises(WindowNotReady, match="step 3: STABLE, the marker of prime-rl, is not there") as caught:
        find_window(make_spec(tmp_path, t_cut=3))
    assert 'layout: {step_folder: "step_{step}"}' in str(caught.value)
    copied = make_spec(tmp_path, t_cut=3, layout={"step_folder": "step_{step}"})
    assert find_window(copied).steps == (1, 2, 3)


def test_a_save_of_skyrl_that_crashed_is_found_by_its_sizes(tmp_path: Path) -> None:
    base = random_weights()
    write_trajectory(tmp_path, base, line_of_states(base, [1, 2, 3]), [1, 2, 3], "skyrl", shards=2)
    torn = tmp_path / "global_step_2" / "policy" / "model-00002-of-00002.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    with pytest.raises(WindowError, match=r"step 2: model-00002-of-00002.safetensors is cut off"):
        find_window(make_spec(tmp_path, t_cut=3))


@pytest.mark.parametrize("said", ["4", '"3"', "3.5", "[]", "1" + "0" * 400])
def test_a_trainer_state_of_another_step_is_refused_whatever_it_holds(tmp_path: Path, said: str) -> None:
    base = random_weights()
    write_trajectory(tmp_path, base, line_of_states(base, [1, 2, 3]), [1, 2, 3], "hf")
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text(f'{{"global_step": {said}}}')
    with pytest.raises(DataError, match="name says step 3, its trainer state says step") as caught:
        find_window(make_spec(tmp_path, t_cut=3))
    assert len(str(caught.value)) < 1000


# --- NeMo-RL ----------------------------------------------------------------------------------------------------------


def write_dcp(folder: Path) -> None:
    """File names as torch.distributed.checkpoint leaves them."""
    (folder / "policy" / "weights" / "model").mkdir(parents=True)
    for name in ("policy/weights/model/.metadata", "policy/weights/model/__0_0.distcp", "training_info.json"):
        (folder / name).write_bytes(b"x")


def test_nemo_rl_is_recognised_and_refused_with_its_converter(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", random_weights())
    for name in ("step_10", "step_20", "tmp_step_30"):
        write_dcp(tmp_path / name)
    for t_cut in (20, 500):  # waiting for step 500 would not help
        with pytest.raises(WindowError, match="NeMo-RL's torch DCP checkpoints are not read") as caught:
            find_window(make_spec(tmp_path, t_cut, window={"settle_seconds": 3600}))
        assert caught.value.exit_code == 4
        assert "convert_dcp_to_hf.py" in caught.value.next_step
        assert caught.value.where.endswith("step_10/policy/weights")
    assert [step.checkpoint.wrong != [] for step in observe(str(tmp_path))] == [True, True]


def test_converted_checkpoints_of_nemo_rl_are_read_as_advised(tmp_path: Path) -> None:
    own_trajectory(tmp_path, "step_{}", (10, 20))
    layout = re.search(r"layout: (\{.*\})`", LAYOUTS[-2].advice)
    assert layout and layout[1] == '{step_folder: "step_{step}"}'
    assert find_window(make_spec(tmp_path, t_cut=20, layout={"step_folder": "step_{step}"})).steps == (10, 20)


# --- a layout of the user's own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "layout"),
    [
        ("iter_{}/hf", {"step_folder": "iter_{step}", "weights": "hf"}),
        ("iter_{:07d}", {"step_folder": "iter_{step}"}),
        ("{}", {"step_folder": "{step}"}),
        ("{}-model/a/b", {"step_folder": "{step}-model", "weights": "a/b/"}),
        ("epoch0epochstep3globalstep{}", {"step_folder": "epoch*globalstep{step}"}),
        ("run7_{}", {"step_folder": "run*{step}"}),
        ("a+b.(c)[{}]", {"step_folder": "a+b.(c)[{step}]"}),
        ("global_step_{}/actor", {"step_folder": "global_step_{step}", "weights": "actor"}),
    ],
)
def test_a_layout_of_the_user_s_own(tmp_path: Path, template: str, layout: dict[str, str]) -> None:
    steps = (5, 10, 120)
    own_trajectory(tmp_path, template, steps)
    manifest = find_window(make_spec(tmp_path, t_cut=120, layout=layout))
    assert manifest.steps == steps
    assert [c.uri for c in manifest.checkpoints] == [str(tmp_path / template.format(step)) for step in steps]


def test_with_a_layout_of_one_s_own_no_other_is_tried(tmp_path: Path) -> None:
    own_trajectory(tmp_path, "iter_{}", (1, 2))
    write_checkpoint(tmp_path / "global_step_2", random_weights(3))
    assert find_window(make_spec(tmp_path, t_cut=2, layout={"step_folder": "iter_{step}"})).steps == (1, 2)


def test_the_marker_of_one_s_own_layout(tmp_path: Path) -> None:
    own_trajectory(tmp_path, "iter_{}/hf", (1, 2, 3), marker="DONE")
    layout = {"step_folder": "iter_{step}", "weights": "hf", "marker": "DONE"}
    spec = make_spec(tmp_path, t_cut=3, layout=layout)
    assert find_window(spec).steps == (1, 2, 3)
    (tmp_path / "iter_3" / "DONE").unlink()
    with pytest.raises(WindowNotReady, match="step 3: DONE, the marker of your layout, is not there"):
        find_window(spec)
    (tmp_path / "iter_3" / "hf" / "DONE").touch()
    inside = make_spec(tmp_path, t_cut=3, layout={**layout, "marker": "hf/DONE"})
    with pytest.raises(WindowError, match="step 1: hf/DONE"):
        find_window(inside)


@pytest.mark.parametrize(
    ("layout", "fault"),
    [
        ({"step_folder": "iter"}, "layout.step_folder: write {step}, just so and once"),
        ({"step_folder": "{step}_{step}"}, "write {step}, just so and once"),
        ({"step_folder": "{step}_{}"}, "write {step}, just so and once"),
        ({"step_folder": "hf_{rollout_id}"}, "write {step}, just so and once"),
        ({"step_folder": "iter_{step:07d}"}, "write {step}, just so and once"),
        ({"step_folder": "iter_{step"}, "only {step} may stand in braces"),
        ({"step_folder": "iter_{step}}"}, "only {step} may stand in braces"),
        ({"step_folder": "exports/iter_{step}"}, "put folders above it into `trajectory`"),
        ({"step_folder": {"step": None}}, "write it in quotes"),
        ({"step_folder": "iter_{step}", "weights": "../hf"}, "layout.weights: this is a path inside the step folder"),
        ({"step_folder": "iter_{step}", "weights": "/hf"}, "a path inside the step folder"),
        ({"step_folder": "iter_{step}", "marker": "a/../../DONE"}, "layout.marker: this is a path inside"),
        ({"step_folder": "iter_{step}", "wieghts": "hf"}, "did you mean 'weights'?"),
        ({"weights": "hf"}, "layout.step_folder: required"),
        ("iter_{step}", "layout: "),
    ],
)
def test_a_wrong_layout_is_refused_by_name(tmp_path: Path, layout: Any, fault: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_spec(tmp_path, t_cut=3, layout=layout)
    assert fault in str(caught.value)


def test_yaml_without_quotes_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "relex.yaml"
    path.write_text("base: b\ntrajectory: t\nwindow: {t_cut: 3}\nlayout:\n  step_folder: {step}\n")
    with pytest.raises(SpecError, match=r"layout.step_folder: YAML reads \{step\} as a mapping: write it in quotes"):
        load_spec(path)
    path.write_text("base: b\ntrajectory: t\nwindow: {t_cut: 3}\nlayout:\n  step_folder: iter_{step}\n")
    layout = load_spec(path).layout
    assert layout and layout.step_folder == "iter_{step}"


def test_a_layout_on_the_command_line_is_checked_alike() -> None:
    assert resolve_layout("iter_{step}", "hf", "DONE").weights == "hf"
    with pytest.raises(SpecError, match=r"(?s)the layout is wrong:.*step_folder: write \{step\}") as caught:
        resolve_layout("iter_N")
    assert caught.value.exit_code == 2


def test_the_layout_belongs_to_a_run_s_identity_and_patience_does_not(tmp_path: Path) -> None:
    own_trajectory(tmp_path, "iter_{}/hf", (1, 2, 3))
    layout = {"step_folder": "iter_{step}", "weights": "hf"}
    collect(make_spec(tmp_path, t_cut=3, layout=layout))
    collect(make_spec(tmp_path, t_cut=3, layout=layout, window={"settle_seconds": 30}))
    with pytest.raises(SpecError, match="belongs to another spec: layout differ"):
        collect(make_spec(tmp_path, t_cut=3, layout={**layout, "weights": "other"}))


def test_run_directories_from_before_there_were_layouts_are_still_theirs(tmp_path: Path) -> None:
    base = random_weights()
    write_trajectory(tmp_path, base, line_of_states(base, [1, 2]), [1, 2])
    manifest = collect(make_spec(tmp_path, t_cut=2))
    path = tmp_path / "run" / "spec.json"
    data = json.loads(path.read_text())
    del data["layout"], data["window"]["settle_seconds"]
    path.write_text(json.dumps(data))
    assert collect(make_spec(tmp_path, t_cut=2)) == manifest


@given(
    name=st.text("ab{}*-_.+[](1", min_size=0, max_size=12).map(lambda text: text.replace("{}", "{step}")),
    step=st.integers(0, 10**14),
)
def test_a_template_finds_what_it_says(name: str, step: int) -> None:
    """Whatever template is accepted, a folder named by it is that step, unless digits blur where it begins."""
    data = {"base": "b", "trajectory": "t", "window": {"t_cut": 3}, "layout": {"step_folder": name}}
    try:
        resolve_spec(data, where="test", folder=Path("/"))
    except SpecError:
        return
    if "1{step}" in name or "{step}1" in name:
        return
    folder = name.replace("{step}", str(step)).replace("*", "")
    assert Layout("own", name, "").step_of(folder) == step


# --- what is said when nothing is found -------------------------------------------------------------------------------


def refusal(uri: Path) -> WindowNotReady:
    with pytest.raises(WindowNotReady, match="no step folder is there yet") as caught:
        observe(str(uri))
    return caught.value


def test_a_path_above_or_inside_the_trajectory_is_noticed(tmp_path: Path) -> None:
    own_trajectory(tmp_path / "out" / "weights", "step_{}", (1, 2))
    shutil.move(tmp_path / "out" / "weights" / "base", tmp_path / "base")
    assert refusal(tmp_path).next_step == f"step folders lie deeper: give {tmp_path}/out/weights"
    assert refusal(tmp_path / "out" / "weights" / "step_1").next_step == (
        "this is a step folder itself: give the folder above it"
    )


def test_what_is_there_instead_is_shown(tmp_path: Path) -> None:
    for name in ("iter_1", "iter_2", "logs"):
        write_checkpoint(tmp_path / name, {}, config=CONFIG)
    error = refusal(tmp_path)
    assert "other folders: iter_1, iter_2, logs" in error.what
    assert "checkpoint-{step}" in error.expected and "global_step_{step}/actor/huggingface" in error.expected
    assert "docs/trainers.md" in error.next_step
