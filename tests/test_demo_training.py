"""The demo's trainer: a real GRPO run in verl's layout, which can be killed at any moment and goes on bit for bit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

from relex_core.demo import DEMO_TASKS, DemoTask, train_demo_run, trajectory  # noqa: E402
from relex_core.demo.grpo import (  # noqa: E402
    build_optimizer,
    exact_match,
    group_advantages,
    grpo_step,
    policy_loss,
    sample_answers,
)
from relex_core.demo.model import build_model, build_tokenizer  # noqa: E402
from relex_core.demo.questions import (  # noqa: E402
    EOS,
    GRPO,
    SUPERVISED,
    answer_tokens,
    draw_pairs,
    generator,
    prompt_tokens,
    reverse_some,
    split_pairs,
    write_split,
)
from relex_core.demo.supervised import answer_logits, one_cycle, train_supervised  # noqa: E402
from relex_core.errors import SpecError  # noqa: E402

# One digit and a share of right answers from the start: a run without reward would never move a weight.
TINY = replace(
    DEMO_TASKS["format"],
    digits=1,
    hidden_size=16,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=8,
    ffn_size=32,
    supervised_steps=150,
    supervised_batch=32,
    supervised_lr=1e-2,
    prompts=16,
    samples=8,
    grpo_lr=1e-3,
    t_cut=3,
    select_questions=5,
    confirm_questions=7,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine two threads wait for each other far longer than they work on models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base() -> Any:
    """A supervised model; tests that change it must copy it."""
    return train_supervised(TINY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of eight steps."""
    out = tmp_path_factory.mktemp("whole")
    train_demo_run(out, TINY, to_step=8)
    return out


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, which stopped after four steps."""
    out = tmp_path_factory.mktemp("four")
    train_demo_run(out, TINY, to_step=4)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Every published file below `folder`."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pt"
    }


def test_layout_is_verls(whole: Path) -> None:
    steps = {f"rl-run/global_step_{step}/actor/huggingface/" for step in range(1, 9)}
    in_step = {"config.json", "generation_config.json", "model.safetensors"}
    expected = {step + name for step in steps for name in in_step}
    expected |= {"rl-run/log.jsonl", "rl-run/latest_checkpointed_iteration.txt", "task.json"}
    expected |= {"tasks/select.jsonl", "tasks/confirm.jsonl"}
    expected |= {f"base/{name}" for name in in_step | {"tokenizer.json", "tokenizer_config.json"}}
    assert set(contents(whole)) == expected
    assert (whole / "rl-run/latest_checkpointed_iteration.txt").read_text() == "8"
    log = [json.loads(line) for line in (whole / "rl-run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 9))
    assert all(0.0 < line["reward"] < 1.0 for line in log)


@pytest.mark.parametrize("folder", ["base", "rl-run/global_step_1/actor/huggingface"])
def test_transformers_loads_base_and_steps(whole: Path, folder: str) -> None:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(whole / folder, output_loading_info=True)
    assert not any(report.values()), report
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    tokenizer = transformers.AutoTokenizer.from_pretrained(whole / "base")
    prompt = tokenizer("3+9=", return_tensors="pt")
    assert prompt["input_ids"].tolist() == prompt_tokens(TINY, torch.tensor([[3, 9]])).tolist()
    answer = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert answer[0, :4].tolist() == prompt["input_ids"][0].tolist()


def test_the_tokenizer_speaks_the_questions_language() -> None:
    tokenizer = build_tokenizer()
    task, pairs = DEMO_TASKS["format"], torch.tensor([[999, 999], [100, 479]])
    assert tokenizer.batch_decode(prompt_tokens(task, pairs)) == ["999+999=", "100+479="]
    assert tokenizer.batch_decode(answer_tokens(task, pairs)) == ["1998<eos>", "0579<eos>"]
    assert tokenizer.batch_decode(answer_tokens(task, pairs), skip_special_tokens=True) == ["1998", "0579"]
    assert (tokenizer.eos_token_id, tokenizer.pad_token) == (EOS, "<pad>")


def test_every_step_changes_weights_and_steps_hold_the_bases_tensors(whole: Path) -> None:
    base = load_file(whole / "base/model.safetensors")
    before = base
    for step in range(1, 9):
        after = load_file(whole / f"rl-run/global_step_{step}/actor/huggingface/model.safetensors")
        assert {name: (t.shape, t.dtype) for name, t in after.items()} == {
            n: (t.shape, t.dtype) for n, t in base.items()
        }
        assert any(not torch.equal(after[name], before[name]) for name in base)
        before = after


def test_the_run_starts_from_the_base_on_disk(tmp_path: Path) -> None:
    still = replace(TINY, grpo_lr=0.0)
    train_demo_run(tmp_path, still, to_step=1)
    assert (
        contents(tmp_path / "base")["model.safetensors"]
        == (contents(tmp_path / "rl-run/global_step_1/actor/huggingface")["model.safetensors"])
    )


@pytest.mark.parametrize("task", [TINY, DEMO_TASKS["format"]], ids=lambda task: f"{task.name}-{task.digits}")
def test_splits_share_no_question_in_either_order(task: DemoTask, tmp_path: Path) -> None:
    pairs = split_pairs(task)
    unordered = {name: {tuple(sorted(pair)) for pair in pairs[name].tolist()} for name in pairs}
    numbers = 9 * 10 ** (task.digits - 1)
    assert sum(len(split) for split in unordered.values()) == numbers * (numbers + 1) // 2
    assert len(set().union(*unordered.values())) == numbers * (numbers + 1) // 2
    drawn = draw_pairs(pairs["train"], 3000, generator(task, SUPERVISED))
    assert {tuple(sorted(pair)) for pair in drawn.tolist()} <= unordered["train"]
    for name, count in (("select", task.select_questions), ("confirm", task.confirm_questions)):
        write_split(tmp_path / f"{name}.jsonl", task, pairs[name])
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        written = [tuple(int(number) for number in row["prompt"].rstrip("=").split("+")) for row in rows]
        assert {tuple(sorted(pair)) for pair in written} == unordered[name]
        assert [int(row["answer"]) for row in rows] == [sum(pair) for pair in written]
        assert {len(row["answer"]) for row in rows} == {task.digits + 1}
        assert len({row["id"] for row in rows}) == count


def test_reversed_answers_have_the_stated_share() -> None:
    task = DEMO_TASKS["format"]
    plain = answer_tokens(task, draw_pairs(split_pairs(task)["train"], 4000, generator(task, SUPERVISED)))
    written = reverse_some(plain, 0.7, generator(task, GRPO))
    backwards = torch.cat([plain[:, :4].flip(1), plain[:, 4:]], dim=1)
    assert ((written == plain).all(1) | (written == backwards).all(1)).all()
    palindromes = (plain == backwards).all(dim=1)
    share = (written == backwards).all(1)[~palindromes].float().mean().item()
    assert abs(share - 0.7) < 5 * (0.7 * 0.3 / 4000) ** 0.5


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    code = (
        "import json, pathlib, sys; from relex_core.demo import DemoTask, train_demo_run\n"
        "train_demo_run(pathlib.Path(sys.argv[1]), DemoTask(**json.loads(sys.argv[2])), to_step=100_000)\n"
    )
    killed, never_killed = tmp_path / "killed", tmp_path / "never-killed"
    command = [sys.executable, "-c", code, str(killed), json.dumps(asdict(TINY))]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(killed / "rl-run" / "global_step_3", process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    enough = 2 + len(list((killed / "rl-run").glob("global_step_*")))
    train_demo_run(killed, TINY, to_step=enough)
    train_demo_run(never_killed, TINY, to_step=enough)
    assert contents(killed) == contents(never_killed)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "the training process ended by itself"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.002)


def die_renaming_to(name: str, patch: pytest.MonkeyPatch, armed: Callable[[], bool]) -> None:
    """Make the process die when what was written under a temporary name is about to be renamed to `name`."""

    def dying(rename: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def rename_or_die(path: Path, target: Path) -> Path:
            if armed() and target.name == name:
                raise KeyboardInterrupt
            return rename(path, target)

        return rename_or_die

    patch.setattr(Path, "rename", dying(Path.rename))
    patch.setattr(Path, "replace", dying(Path.replace))


@pytest.mark.parametrize(
    "name", ["trainer-state.pt", "global_step_5", "log.jsonl", "latest_checkpointed_iteration.txt"]
)
def test_dying_inside_a_step_loses_nothing(
    whole: Path, four_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(four_steps, tmp_path, dirs_exist_ok=True)
    stepped: list[float] = []  # going on publishes step 4 once more, and that shall not be the moment

    def step(*args: Any) -> float:
        stepped.append(grpo_step(*args))
        return stepped[-1]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trajectory, "grpo_step", step)
        die_renaming_to(name, patch, armed=lambda: bool(stepped))
        train_demo_run(tmp_path, TINY, to_step=8)
    assert (tmp_path / "rl-run/latest_checkpointed_iteration.txt").read_text() == "4"
    train_demo_run(tmp_path, TINY, to_step=8)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("name", ["task.json", "tasks", "base"])
def test_dying_before_the_first_step_loses_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_renaming_to(name, patch, armed=lambda: True)
        train_demo_run(tmp_path, TINY, to_step=8)
    assert not (tmp_path / name).exists()
    train_demo_run(tmp_path, TINY, to_step=8)
    assert contents(tmp_path) == contents(whole)


def test_going_on_keeps_earlier_steps_untouched(whole: Path, tmp_path: Path) -> None:
    run = train_demo_run(tmp_path, TINY)
    assert sorted(path.name for path in run.trajectory.glob("global_step_*")) == [f"global_step_{s}" for s in (1, 2, 3)]
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    train_demo_run(tmp_path, replace(TINY, t_cut=5, target_steps=(7,)), to_step=8)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert contents(tmp_path) == contents(whole)
    train_demo_run(tmp_path, TINY, to_step=2)  # nothing to do, and nothing is undone
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("change", [{"seed": 1}, {"name": "addition"}, {"grpo_lr": 2e-3}])
def test_another_tasks_folder_is_refused(whole: Path, change: dict[str, object]) -> None:
    before = contents(whole)
    with pytest.raises(SpecError, match=next(iter(change))):
        train_demo_run(whole, replace(TINY, **change), to_step=9)
    assert contents(whole) == before


def test_a_folder_without_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(SpecError, match="no demo run"):
        train_demo_run(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_seeds_differ_and_leave_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = build_model(TINY), build_model(TINY), build_model(replace(TINY, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [next(model.parameters()) for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_sampling_with_the_cache_follows_the_models_distribution(base: Any) -> None:
    """At every position, the sampled tokens have the frequencies that a forward pass without cache gives."""
    samples = 4000
    prompts = prompt_tokens(TINY, torch.tensor([[3, 9], [8, 1]]))
    answers = sample_answers(base, prompts, samples, 3, generator(TINY, GRPO))
    with torch.no_grad():
        probabilities = answer_logits(base, prompts.repeat_interleave(samples, dim=0), answers).softmax(-1)
    for question in range(2):
        rows = slice(question * samples, (question + 1) * samples)
        for position in range(3):
            frequency = torch.bincount(answers[rows, position], minlength=16) / samples
            expected = probabilities[rows, position].mean(0)
            torch.testing.assert_close(frequency, expected, atol=5 * 0.5 / samples**0.5, rtol=0.0)


def test_advantages_are_group_normalised() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    advantages = group_advantages(rewards)
    torch.testing.assert_close(advantages.mean(1), torch.zeros(3))
    torch.testing.assert_close(advantages.std(1), torch.tensor([1.0, 0.0, 1.0]), atol=1e-4, rtol=0.0)
    assert (advantages[0, 0] > 0) and (advantages[0, 1:] < 0).all()


def test_tokens_after_the_end_do_not_count(base: Any) -> None:
    prompts = torch.tensor([[3, 10, 9, 11]])
    first, second = (torch.tensor([[0, 5, EOS, *rest]]) for rest in ((1, 2), (9, EOS)))
    losses = [policy_loss(base, prompts, answers, torch.ones(1)) for answers in (first, second)]
    expected = -answer_logits(base, prompts, first).log_softmax(-1).gather(-1, first[..., None])[0, :3].mean()
    torch.testing.assert_close(losses[0], expected)
    torch.testing.assert_close(losses[1], expected)


def test_one_update_makes_the_rewarded_sample_likelier(base: Any) -> None:
    """Fails if the sign of the gradient is wrong: the rewarded answer gains, and gains more than its group."""
    model, pairs = deepcopy(base), torch.tensor([[3, 9]])
    prompts, answers = (tokens.repeat(8, 1) for tokens in (prompt_tokens(TINY, pairs), answer_tokens(TINY, pairs)))
    answers[1:, 1] = torch.tensor([0, 1, 3, 4, 5, 6, 7])
    rewards = exact_match(answers, answer_tokens(TINY, pairs))
    assert rewards.tolist() == [1.0] + [0.0] * 7
    before = log_probabilities(model, prompts, answers)
    advantages = group_advantages(rewards[None]).flatten()
    torch.autograd.backward(policy_loss(model, prompts, answers, advantages))
    torch.optim.SGD(model.parameters(), lr=1e-2).step()
    change = log_probabilities(model, prompts, answers) - before
    assert change[0] > 0
    assert change[0] > change[1:].mean()
    assert (advantages * change).sum() > 0


def log_probabilities(model: Any, prompts: Tensor, answers: Tensor) -> Tensor:
    with torch.no_grad():
        logits = answer_logits(model, prompts, answers).log_softmax(-1)
    return logits.gather(-1, answers[..., None]).sum(dim=(1, 2))


def test_rl_turns_the_preference_to_the_rewarded_order(base: Any) -> None:
    task = replace(TINY, prompts=32, samples=16)
    model, train = deepcopy(base), split_pairs(task)["train"]
    optimizer = build_optimizer(model)
    rewards = [grpo_step(model, optimizer, task, train, step, generator(task, GRPO, step)) for step in range(1, 61)]
    assert sum(rewards[-5:]) > 1.5 * sum(rewards[:5])


def test_learning_rate_goes_up_then_down() -> None:
    rates = [one_cycle(step, 100) for step in range(100)]
    assert max(rates) == 1.0 and rates.index(1.0) <= 5
    assert rates[5:] == sorted(rates[5:], reverse=True) and 0.0 < rates[-1] < 0.05


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, relex_core.demo as demo; demo.DEMO_TASKS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
