"""relex watch in real processes: beside a trainer that deletes its old steps, beside other watchers, and killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from gcs import faults
from gcs.faults import faulty_front
from gcs.server import fake_gcs, new_bucket  # noqa: F401
from support import line_of_states, random_weights, write_checkpoint, write_trajectory

from relex_core import watch as watching_module
from relex_core.capture import CaptureReport, capture_step
from relex_core.checkpoints.contents import Checkpoint
from relex_core.checkpoints.observed import ObservedStep
from relex_core.collect import collect, find_window
from relex_core.errors import (
    CheckpointChanged,
    DataError,
    SpecError,
    StorageError,
    WindowError,
    WindowNotReady,
)
from relex_core.fit import fit
from relex_core.manifest import WindowManifest
from relex_core.observe import observe
from relex_core.spec import RunSpec, load_spec
from relex_core.storage import open_store, read_bytes, write_bytes
from relex_core.watch import MOST_FAILURES, WatchOptions, _Clock, watch

STEPS = [2, 4, 6, 8]
FAST = ["--interval", "0.2", "--lease", "2"]


@pytest.fixture
def trajectory(tmp_path: Path) -> Path:
    """base, checkpoint-2 ... checkpoint-8 in the layout of the HF Trainer, and a spec for steps 2 to 8."""
    base = random_weights(embed=(300, 64), norm=(64,), head=(64, 300))
    write_trajectory(tmp_path, base, line_of_states(base, STEPS), STEPS, layout="hf", shards=2)
    write_spec(tmp_path)
    return tmp_path


def write_spec(root: Path, **changes: object) -> Path:
    spec = {"base": "base", "trajectory": ".", "run_root": "run", "window": {"t_cut": 8, "every": 2, "first": 2}}
    (root / "spec.yaml").write_text(yaml.safe_dump({**spec, **changes}))
    return root / "spec.yaml"


def start(root: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "relex_core", "watch", str(root / "spec.yaml"), "--json", *FAST, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def watching(root: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = start(root, *options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> dict[str, object]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return dict(json.loads(out))


def until(condition: object, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def claims(root: Path) -> list[Path]:
    return sorted((root / "run" / "watch").glob("*/claim-*.json"))


def hide(root: Path, step: int) -> Path:
    return (root / f"checkpoint-{step}").rename(root / f"hidden-{step}")


def show(root: Path, step: int) -> None:
    (root / f"hidden-{step}").rename(root / f"checkpoint-{step}")


def test_it_says_what_it_waits_for_and_fires_when_the_window_is_complete(trajectory: Path) -> None:
    hide(trajectory, 8)
    with watching(trajectory, "--then", "print") as process:
        until(lambda: claims(trajectory))
        time.sleep(0.5)
        assert process.poll() is None
        show(trajectory, 8)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "the last complete checkpoint is step 6; waiting for a complete checkpoint at step 8 or later" in err
    fired = json.loads(out)
    assert fired["by_this_worker"] and fired["action"] == "print"
    assert fired["window_digest"] == find_window(load_spec(trajectory / "spec.yaml")).digest


def test_two_watchers_fire_once(trajectory: Path) -> None:
    hide(trajectory, 8)
    patient = ("--then", "run", "--lease", "60")  # a busy machine may delay a heartbeat by seconds
    with watching(trajectory, *patient) as one, watching(trajectory, *patient) as other:
        until(lambda: claims(trajectory))
        show(trajectory, 8)
        results = [ended(one), ended(other)]
    assert sorted(result["by_this_worker"] for result in results) == [False, True]
    assert results[0]["window_digest"] == results[1]["window_digest"]
    events = [json.loads(line)["event"] for line in (trajectory / "run/events.jsonl").read_text().splitlines()]
    assert events.count("fired") == events.count("collected") == 1
    assert (trajectory / "run/fit/fit.json").exists()
    assert ended(start(trajectory, "--then", "run"))["by_this_worker"] is False, "it is done, whoever asks again"


def test_another_window_of_the_same_run_fires_again(trajectory: Path) -> None:
    assert ended(start(trajectory, "--then", "print"))["by_this_worker"]
    write_spec(trajectory, window={"t_cut": 6})
    assert ended(start(trajectory, "--then", "print"))["by_this_worker"]


def test_a_collected_window_is_handed_on_though_the_trainer_deleted_its_steps(trajectory: Path) -> None:
    spec = load_spec(trajectory / "spec.yaml")
    window = collect(spec)
    for step in STEPS[:2]:
        shutil.rmtree(trajectory / f"checkpoint-{step}")
    seen: list[object] = []
    watch(spec, "test", lambda _, manifest: seen.append(manifest), WatchOptions(interval=0.1, timeout=1))
    assert seen == [window]


def test_a_killed_watcher_is_followed(trajectory: Path) -> None:
    hide(trajectory, 8)
    with watching(trajectory, "--then", "print") as first:
        until(lambda: claims(trajectory))
        with watching(trajectory, "--then", "print") as second:
            first.kill()
            until(lambda: len(claims(trajectory)) == 2)
            show(trajectory, 8)
            assert ended(second)["by_this_worker"]


def test_a_stalled_watcher_steps_back_when_it_wakes_up(trajectory: Path) -> None:
    hide(trajectory, 8)
    with watching(trajectory, "--then", "print") as first:
        until(lambda: claims(trajectory))
        first.send_signal(signal.SIGSTOP)
        with watching(trajectory, "--then", "print") as second:
            until(lambda: len(claims(trajectory)) == 2)
            first.send_signal(signal.SIGCONT)
            show(trajectory, 8)
            results = [ended(first), ended(second)]
    assert [result["by_this_worker"] for result in results] == [False, True]


def test_an_evicted_watcher_gives_its_claim_back(trajectory: Path) -> None:
    hide(trajectory, 8)
    with watching(trajectory, "--then", "print", "--lease", "1000") as first:
        until(lambda: claims(trajectory))
        time.sleep(0.3)
        first.terminate()
        assert first.wait(30) == 143
    show(trajectory, 8)
    assert ended(start(trajectory, "--then", "print"))["by_this_worker"], "nobody waits for a lease of 1000 s"


def test_the_time_out_is_exit_3(trajectory: Path) -> None:
    hide(trajectory, 8)
    process = start(trajectory, "--then", "print", "--timeout", "0.5")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "expected: a complete checkpoint at step 8 or later" in err


def test_a_window_that_can_never_be_complete_is_exit_4(trajectory: Path) -> None:
    (trajectory / "checkpoint-4/model-00001-of-00002.safetensors").unlink()
    process = start(trajectory, "--then", "print")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 4
    assert "step 4: shard model-00001-of-00002.safetensors is missing" in err


def test_an_action_that_fails_is_not_taken_for_done(trajectory: Path) -> None:
    spec = load_spec(trajectory / "spec.yaml")

    def fail(*_: object) -> None:
        raise CheckpointChanged("on purpose")

    with pytest.raises(CheckpointChanged):
        watch(spec, "test", fail, WatchOptions(interval=0.1))
    seen: list[object] = []
    assert watch(spec, "test", lambda *given: seen.append(given), WatchOptions(interval=0.1)).by_this_worker
    assert len(seen) == 1


def rotating_trainer(root: Path, keep: int) -> str:
    """A process that writes the hidden steps one by one and deletes old ones, like save_total_limit."""
    return f"""
import shutil, time
from pathlib import Path
root, keep = Path({str(root)!r}), {keep}
steps = {STEPS}
for number, step in enumerate(steps):
    new = root / f"hidden-{{step}}"
    while not (root / f"go-{{step}}").exists():
        time.sleep(0.02)
    new.rename(root / f"checkpoint-{{step}}")
    for old in steps[: max(0, number + 1 - keep)]:
        shutil.rmtree(root / f"checkpoint-{{old}}", ignore_errors=True)
"""


def test_captured_steps_stand_for_those_that_the_trainer_deleted(trajectory: Path, tmp_path: Path) -> None:
    whole = load_spec(trajectory / "spec.yaml", out=str(tmp_path / "whole"))
    collect(whole)
    fit(whole.run_root)
    for step in STEPS:
        hide(trajectory, step)
    trainer = subprocess.Popen([sys.executable, "-c", rotating_trainer(trajectory, keep=1)])
    with watching(trajectory, "--then", "run", "--capture") as process:
        for step in STEPS:
            (trajectory / f"go-{step}").touch()
            if step < STEPS[-1]:
                until((trajectory / f"run/captured/step-{step:012d}.relexpatch").exists)
        assert ended(process)["by_this_worker"]
    assert trainer.wait(10) == 0
    assert [path.name for path in sorted(trajectory.glob("checkpoint-*"))] == ["checkpoint-8"]
    window = json.loads((trajectory / "run/window.json").read_text())
    assert [checkpoint["step"] for checkpoint in window["checkpoints"]] == STEPS
    assert all(checkpoint["uri"].endswith(".relexpatch") for checkpoint in window["checkpoints"])
    assert direction_bytes(trajectory / "run") == direction_bytes(tmp_path / "whole")
    events = [json.loads(line) for line in (trajectory / "run/events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "captured"] == STEPS


def test_a_last_step_without_a_marker_that_comes_during_a_capture_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 8 is finished while step 6 is copied; the trainer deletes it before the fit."""
    base = random_weights()
    write_trajectory(tmp_path, base, line_of_states(base, STEPS), STEPS, layout="authors")
    spec = load_spec(write_spec(tmp_path, window={"t_cut": 8, "settle_seconds": 0.1}))
    last, hidden = tmp_path / "global_step_8", tmp_path / "hidden"
    last.rename(hidden)

    def capture_slowly(run: str, step: ObservedStep) -> CaptureReport:
        report = capture_step(run, step)
        if step.folder.step == 6:
            hidden.rename(last)
        return report

    def delete_and_fit(spec: RunSpec, _: WindowManifest) -> None:
        shutil.rmtree(last)
        collect(spec)
        fit(spec.run_root)

    monkeypatch.setattr(watching_module, "capture_step", capture_slowly)
    assert watch(spec, "test", delete_and_fit, WatchOptions(capture=True, interval=0.1, timeout=30)).by_this_worker
    window = json.loads((tmp_path / "run/window.json").read_text())
    assert [Path(checkpoint["uri"]).name for checkpoint in window["checkpoints"]] == [
        f"step-{step:012d}.relexpatch" for step in STEPS
    ]


def direction_bytes(run: Path) -> dict[str, bytes]:
    """The tensors of the stored directions; their headers differ by the digest of the window."""
    found = {}
    for path in sorted((run / "fit").glob("*.safetensors")):
        data = path.read_bytes()
        found[path.name] = data[8 + int.from_bytes(data[:8], "little") :]
    return found


def test_a_capture_that_is_killed_leaves_nothing_behind(trajectory: Path) -> None:
    """SIGKILL at a random moment of each try: the step is there whole, or not at all, and captured in the end."""
    run = trajectory / "run"
    code = f"""
from relex_core import watch as watching_module
from relex_core.capture import CaptureReport, capture_step
from relex_core.checkpoints.contents import Checkpoint
from relex_core.checkpoints.observed import ObservedStep
from relex_core.observe import observe
print("ready", flush=True)
for step in observe({str(trajectory)!r}):
    capture_step({str(run)!r}, step)
"""
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.kill()
        process.communicate()
        for path in run.glob("captured/step-*"):
            same_files(open_store(str(path)), trajectory, path)
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    assert len(list(run.glob("captured/*"))) == len(list(run.glob("captured/step-*"))) == len(STEPS)


def captured_run(root: Path) -> list[Path]:
    """Every step captured, and none left in the trajectory."""
    for step in observe(str(root)):
        capture_step(str(root / "run"), step)
        shutil.rmtree(root / f"checkpoint-{step.folder.step}")
    return sorted((root / "run/captured").iterdir())


@pytest.mark.parametrize("number", range(len(STEPS) - 1))
def test_a_captured_step_that_is_gone_is_exit_4_and_not_waited_for(trajectory: Path, number: int) -> None:
    captured = captured_run(trajectory)
    captured[number].unlink()
    process = start(trajectory, "--then", "print", "--timeout", "20")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert f"step {STEPS[number + 1]} was captured as a patch of {captured[number].name}, which is gone" in err
    assert "remove the captured steps after it" in err


def test_the_advice_for_a_damaged_captured_step_leads_out(trajectory: Path) -> None:
    """Remove it and those after it: what is left is read, and what the trainer still has is captured again."""
    shutil.copytree(trajectory / "checkpoint-8", trajectory / "hidden-8")
    captured = captured_run(trajectory)
    show(trajectory, 8)
    captured[2].write_bytes(captured[2].read_bytes()[:-1])
    spec = load_spec(write_spec(trajectory, window={"t_cut": 8}))
    with pytest.raises(DataError, match="damaged") as caught:
        find_window(spec)
    assert "remove it and the captured steps after it" in caught.value.next_step
    for path in captured[2:]:
        path.unlink()
    assert watch(spec, "test", lambda *_: None, WatchOptions(capture=True, interval=0.1)).by_this_worker
    assert [path.name for path in sorted((trajectory / "run/captured").iterdir())] == [
        path.name for path in captured if path != captured[2]
    ]


@pytest.mark.parametrize("step", [4, 8])
def test_a_captured_step_without_its_weights_is_not_waited_for(trajectory: Path, step: int) -> None:
    for observed in observe(str(trajectory)):
        torn = replace(observed, checkpoint=Checkpoint())
        capture_step(str(trajectory / "run"), torn if observed.folder.step == step else observed)
    with pytest.raises(WindowError, match=f"step {step}: weights are missing"):
        find_window(load_spec(trajectory / "spec.yaml"))


def same_files(store: object, root: Path, path: Path) -> None:
    step = int(path.name.removeprefix("step-").removesuffix(".relexpatch"))
    for info in store.list():  # type: ignore[attr-defined]
        assert read_bytes(store, info.name) == (root / f"checkpoint-{step}" / info.name).read_bytes()  # type: ignore[arg-type]


def test_a_step_that_goes_away_while_it_is_captured_is_left_out(trajectory: Path) -> None:
    step = observe(str(trajectory))[0]
    shutil.rmtree(trajectory / "checkpoint-2")
    with pytest.raises(FileNotFoundError):
        capture_step(str(trajectory / "run"), step)
    assert not list((trajectory / "run/captured").glob("*"))


def test_a_step_that_is_deleted_before_it_was_captured_is_reported(trajectory: Path) -> None:
    write_spec(trajectory, window={"t_cut": 8})
    hide(trajectory, 6)
    hide(trajectory, 8)
    (trajectory / "checkpoint-4/trainer_state.json").unlink()
    with watching(trajectory, "--then", "print", "--capture") as process:
        until((trajectory / f"run/captured/step-{2:012d}.relexpatch").exists)
        shutil.rmtree(trajectory / "checkpoint-4")
        shutil.rmtree(trajectory / "checkpoint-2")
        show(trajectory, 6)
        show(trajectory, 8)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "step 4 was deleted before it could be captured: it is lost" in err
    events = [json.loads(line) for line in (trajectory / "run/events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "lost"] == [4]
    assert [event["step"] for event in events if event["event"] == "captured"] == [2, 6, 8]


def capture_all_but_8(root: Path) -> None:
    """Steps 2, 4 and 6 are captured; then the time-out is over."""
    hide(root, 8)
    with pytest.raises(WindowNotReady):
        watch(load_spec(root / "spec.yaml"), "test", lambda *_: None, WatchOptions(True, interval=0.1, timeout=0.3))
    assert captured(root) == ["step-000000000002", "step-000000000004", "step-000000000006"]


def captured(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / "run/captured").iterdir())


def test_steps_of_two_trajectories_are_not_mixed(trajectory: Path) -> None:
    capture_all_but_8(trajectory)
    before = (trajectory / "run/spec.json").read_bytes()
    base = random_weights(embed=(300, 64), norm=(64,), head=(64, 300))
    write_trajectory(trajectory / "other", base, line_of_states(base, STEPS, seed=2), STEPS, layout="hf", shards=2)
    other = load_spec(write_spec(trajectory, trajectory="other"))
    for use in (collect, lambda spec: watch(spec, "test", lambda *_: None, WatchOptions(capture=True))):
        with pytest.raises(SpecError, match="belongs to another spec: trajectory differ"):
            use(other)
    assert (trajectory / "run/spec.json").read_bytes() == before
    (trajectory / "run/spec.json").unlink()
    with pytest.raises(SpecError, match="step 2 was captured from another trajectory"):
        collect(other)


def test_captured_steps_serve_another_window_of_their_trajectory(trajectory: Path) -> None:
    """The trainer died before T_cut, and its steps are gone."""
    capture_all_but_8(trajectory)
    for step in STEPS[:-1]:
        shutil.rmtree(trajectory / f"checkpoint-{step}")
    assert collect(load_spec(write_spec(trajectory, window={"t_cut": 6}))).steps == (2, 4, 6)


@pytest.mark.parametrize("capture", [True, False])
def test_training_that_starts_again_is_not_mixed_with_what_was_captured(trajectory: Path, capture: bool) -> None:
    capture_all_but_8(trajectory)
    show(trajectory, 8)
    base = random_weights(embed=(300, 64), norm=(64,), head=(64, 300))
    write_trajectory(trajectory, base, line_of_states(base, [6], seed=2), [6], layout="hf", shards=2)
    with pytest.raises(WindowError, match=r"step 6 was captured from another run of training: \S+ was written again"):
        watch(load_spec(trajectory / "spec.yaml"), "test", lambda *_: None, WatchOptions(capture, interval=0.1))
    assert len(captured(trajectory)) == 3, "step 8 is the new training's"


def test_small_changes_take_a_tenth_of_the_bytes(tmp_path: Path) -> None:
    """2 % of the weights change by one unit in the last place, as a bfloat16 RL step does."""
    generator = torch.Generator().manual_seed(0)
    state = random_weights(a=(1024, 1024), b=(512, 1024))
    raw = stored = 0
    for step in range(1, 25):
        for tensor in state.values():
            flip = (torch.rand(tensor.shape, generator=generator) < 0.02).to(torch.int16)
            tensor.view(torch.int16).add_(flip)
        folder = tmp_path / f"checkpoint-{step}"
        write_checkpoint(folder, state)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        report = capture_step(str(tmp_path / "run"), observe(str(tmp_path))[-1])
        raw, stored = raw + report.raw_bytes, stored + report.stored_bytes
    assert raw / stored > 10, "the first step, which stands by itself, included"
    for path in (tmp_path / "run/captured").glob("*"):
        same_files(open_store(str(path)), tmp_path, path)


def test_capture_and_watch_on_gs(
    trajectory: Path,
    fake_gcs: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake_gcs)
    uri = f"gs://{new_bucket(fake_gcs)}/rl"
    bucket = open_store(uri)
    files = {path.relative_to(trajectory).as_posix(): path for path in trajectory.rglob("*") if path.is_file()}
    for name, path in files.items():
        if not name.startswith("checkpoint-8/"):
            write_bytes(bucket, name, path.read_bytes())
    write_spec(trajectory, base=f"{uri}/base", trajectory=uri, run_root=f"{uri}/run")
    spec = load_spec(trajectory / "spec.yaml")
    with pytest.raises(WindowNotReady):
        watch(spec, "test", lambda *_: None, WatchOptions(capture=True, interval=0.1, timeout=0.3))
    for name in files:
        if name.startswith(("checkpoint-2/", "checkpoint-4/", "checkpoint-6/")):
            bucket.delete(name)
        elif name.startswith("checkpoint-8/"):
            write_bytes(bucket, name, files[name].read_bytes())
    result = watch(spec, "run", lambda spec, _: fit(collect(spec) and spec.run_root), WatchOptions(capture=True))
    assert result.by_this_worker
    window = json.loads(read_bytes(bucket, "run/window.json"))
    assert [checkpoint["uri"].rpartition("/")[2] for checkpoint in window["checkpoints"]] == [
        f"step-{step:012d}.relexpatch" for step in STEPS
    ]
    local = load_spec(write_spec(trajectory), out=str(trajectory / "local"))
    collect(local)
    fit(local.run_root)
    stored = {i.name.removeprefix("run/fit/"): read_bytes(bucket, i.name) for i in bucket.list("run/fit")}
    expected = direction_bytes(trajectory / "local")
    assert {n: stored[n][8 + int.from_bytes(stored[n][:8], "little") :] for n in expected} == expected


def test_a_permission_that_is_lacking_ends_the_watch_and_a_passing_failure_does_not(
    trajectory: Path,
    fake_gcs: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bucket = new_bucket(fake_gcs)
    spec = load_spec(write_spec(trajectory, trajectory=f"gs://{bucket}/rl"))
    with faulty_front(fake_gcs) as front:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        store = open_store(f"gs://{bucket}/rl")
        for path in trajectory.glob("checkpoint-*/*"):
            write_bytes(store, path.relative_to(trajectory).as_posix(), path.read_bytes())
        options = WatchOptions(interval=0.1, timeout=30)
        caplog.set_level("INFO", "relex")
        front.plan("list", "", faults.status(400, "a passing trouble"))
        assert watch(spec, "test", lambda *_: None, options).by_this_worker
        assert "a passing trouble" in caplog.text and "attempt 1 of" in caplog.text

        front.plan_always("list", "", faults.plain_status(403, "a@b.c does not have storage.objects.list access"))
        with pytest.raises(PermissionError, match=r"a@b.c lacks the permission storage.objects.list") as caught:
            watch(spec.model_copy(update={"run_root": str(trajectory / "other")}), "test", lambda *_: None, options)
        assert caught.value.exit_code == 5  # type: ignore[attr-defined]
        assert len(front.seen("list", "")) == 3, "a lacking permission is not asked for again"


def test_another_action_is_not_taken_for_done(trajectory: Path) -> None:
    spec = load_spec(write_spec(trajectory))
    options = WatchOptions(interval=0.1, timeout=30)
    assert watch(spec, "print", lambda *_: None, options).by_this_worker
    assert not watch(spec, "print", lambda *_: None, options).by_this_worker
    with pytest.raises(SpecError, match="by another action: print at") as caught:
        watch(spec, "run", lambda *_: None, options)
    shutil.rmtree(caught.value.where)
    assert watch(spec, "run", lambda *_: None, options).by_this_worker


def test_the_wait_grows_while_the_storage_fails_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, failures = list[float](), [StorageError("busy")] * 4 + [StorageError("slow")]

    def question() -> str:
        if failures:
            raise failures.pop(0)
        return "answer"

    monkeypatch.setattr("relex_core.watch.time.sleep", slept.append)
    assert _Clock(WatchOptions(interval=60)).ask(question) == "answer"
    assert slept == [2.0, 3.0, 4.5, 6.75, 2.0]


def test_failures_of_the_run_directory_are_waited_out(
    trajectory: Path,
    fake_gcs: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Wherever the claim and fired.json are asked for; but not for ever."""
    caplog.set_level("INFO", "relex")
    options = WatchOptions(interval=0.05, timeout=60)
    with faulty_front(fake_gcs) as front:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", front.url)
        bucket = new_bucket(fake_gcs)
        spec = load_spec(write_spec(trajectory, run_root=f"gs://{bucket}/run"))
        trouble = [faults.status(400, f"trouble {number}") for number in range(6)]
        front.plan("stat", "fired.json", trouble[0], answered, trouble[1])
        front.plan("list", "", trouble[2])
        front.plan("create", "claim-00001.json", answered, trouble[3], answered, trouble[4])
        front.plan("create", "fired.json", trouble[5])
        acted: list[object] = []
        assert watch(spec, "test", lambda *given: acted.append(given), options).by_this_worker
        assert len(acted) == 1
        for number in range(len(trouble)):
            assert f"trouble {number}" in caplog.text

        front.plan_always("list", "", faults.status(400, "for ever"))
        spec = spec.model_copy(update={"run_root": f"gs://{bucket}/other"})
        before = len(front.seen("list", ""))
        with pytest.raises(StorageError, match="for ever"):
            watch(spec, "test", lambda *_: None, options)
        assert len(front.seen("list", "")) - before == MOST_FAILURES


def answered(handler: faults.Handler, request: faults.Request) -> None:
    handler.send(handler.forward(request))


@pytest.mark.parametrize("missing", ["trainer_state.json", "model-00002-of-00002.safetensors"])
def test_a_step_that_is_still_being_written_is_not_captured(trajectory: Path, missing: str) -> None:
    (trajectory / "checkpoint-8" / missing).rename(trajectory / "later")
    spec, options = load_spec(trajectory / "spec.yaml"), WatchOptions(capture=True, interval=0.1, timeout=0.5)
    with pytest.raises(WindowNotReady):
        watch(spec, "test", lambda *_: None, options)
    captured = [path.name for path in sorted((trajectory / "run/captured").iterdir())]
    assert captured == [f"step-{step:012d}.relexpatch" for step in STEPS[:-1]]
    (trajectory / "later").rename(trajectory / "checkpoint-8" / missing)
    assert watch(spec, "test", lambda *_: None, options).by_this_worker
    assert len(list((trajectory / "run/captured").iterdir())) == len(STEPS)
