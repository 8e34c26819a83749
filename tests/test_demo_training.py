"""The demo's trainer: a real GRPO run in verl's layout, which can be killed at any moment and goes on bit for bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from relex_core.demo import DEMO_TASKS, DemoTask, train_demo_run  # noqa: E402
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
    answer_tokens,
    draw_pairs,
    generator,
    prompt_tokens,
    reverse_some,
    split_pairs,
)
from relex_core.demo.supervised import answer_logits, one_cycle, train_supervised  # noqa: E402
from relex_core.errors import SpecError  # noqa: E402

TINY = replace(
    DEMO_TASKS["format"],
    hidden_size=16,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=8,
    ffn_size=32,
    supervised_steps=20,
    supervised_batch=32,
    prompts=8,
    samples=4,
    grpo_lr=1e-3,
    t_cut=3,
    select_questions=30,
    confirm_questions=50,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of eight steps."""
    out = tmp_path_factory.mktemp("whole")
    train_demo_run(out, TINY, to_step=8)
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
    assert all(0.0 <= line["reward"] <= 1.0 for line in log)


@pytest.mark.parametrize("folder", ["base", "rl-run/global_step_1/actor/huggingface"])
def test_transformers_loads_base_and_steps(whole: Path, folder: str) -> None:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(whole / folder, output_loading_info=True)
    assert not any(report.values()), report
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    tokenizer = transformers.AutoTokenizer.from_pretrained(whole / "base")
    prompt = tokenizer("123+456=", return_tensors="pt")
    assert prompt["input_ids"].tolist() == prompt_tokens(torch.tensor([[123, 456]])).tolist()
    answer = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert answer.shape[1] <= 8 + 5


def test_the_tokenizer_speaks_the_questions_language() -> None:
    tokenizer = build_tokenizer()
    pairs = torch.tensor([[999, 999], [100, 479]])
    assert [tokenizer.decode(row) for row in answer_tokens(pairs)] == ["1998<eos>", "0579<eos>"]
    assert tokenizer.batch_decode(answer_tokens(pairs), skip_special_tokens=True) == ["1998", "0579"]
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


def test_splits_share_no_question_in_either_order(whole: Path) -> None:
    splits = split_pairs(TINY)
    as_sets = {name: {tuple(sorted(pair)) for pair in pairs.tolist()} for name, pairs in splits.items()}
    assert sum(len(pairs) for pairs in as_sets.values()) == 900 * 901 // 2
    assert len(set().union(*as_sets.values())) == 900 * 901 // 2
    drawn = draw_pairs(splits["train"], 5000, generator(TINY, 2))
    assert {tuple(sorted(pair)) for pair in drawn.tolist()} <= as_sets["train"]
    for name, count in (("select", 30), ("confirm", 50)):
        rows = [json.loads(line) for line in (whole / f"tasks/{name}.jsonl").read_text().splitlines()]
        written = [tuple(int(number) for number in row["prompt"].rstrip("=").split("+")) for row in rows]
        assert {tuple(sorted(pair)) for pair in written} == as_sets[name]
        assert [row["answer"] for row in rows] == [f"{first + second:04d}" for first, second in written]
        assert len({row["id"] for row in rows}) == count


def test_reversed_answers_have_the_stated_share() -> None:
    pairs = draw_pairs(split_pairs(TINY)["train"], 4000, generator(TINY, 2))
    plain = answer_tokens(pairs)
    written = reverse_some(plain, 0.7, generator(TINY, 3))
    backwards = torch.cat([plain[:, :4].flip(1), plain[:, 4:]], dim=1)
    asymmetric = (plain != backwards).any(dim=1)
    assert ((written == plain).all(1) | (written == backwards).all(1)).all()
    share = (written == backwards).all(1)[asymmetric].float().mean().item()
    assert abs(share - 0.7) < 5 * (0.7 * 0.3 / 4000) ** 0.5


def test_a_killed_run_goes_on_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    code = (
        "from dataclasses import fields; from pathlib import Path; import json, sys\n"
        "from relex_core.demo import DemoTask, train_demo_run\n"
        "task = json.loads(sys.argv[2]); task['target_steps'] = tuple(task['target_steps'])\n"
        "train_demo_run(Path(sys.argv[1]), DemoTask(**task), to_step=100_000)\n"
    )
    task = json.dumps({name: getattr(TINY, name) for name in DemoTask.__dataclass_fields__})
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), task], stderr=subprocess.DEVNULL)
    try:
        wait_for(tmp_path / "rl-run/global_step_3", process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    reached = int((tmp_path / "rl-run/latest_checkpointed_iteration.txt").read_text())
    train_demo_run(tmp_path, TINY, to_step=max(8, reached + 2))
    uninterrupted, resumed = contents(whole), contents(tmp_path)
    if reached + 2 > 8:
        train_demo_run(whole_copy := tmp_path / "again", TINY, to_step=reached + 2)
        uninterrupted = contents(whole_copy)
        resumed = {name: data for name, data in resumed.items() if not name.startswith("again/")}
    assert resumed == uninterrupted


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "the training process ended by itself"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.002)


@pytest.mark.parametrize("fails_at", ["state", "weights", "log", "latest"])
def test_dying_inside_a_step_loses_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    """The four moments between two files of one step: before the state, the weights, the log, the marker."""
    from relex_core.demo import publish, trajectory

    train_demo_run(tmp_path, TINY, to_step=4)
    names = {"state": "trainer-state.pt", "weights": "global_step_5", "log": "log.jsonl", "latest": "latest_"}

    def dying(path: Path) -> Path:
        if path.name.startswith(names[fails_at]):
            raise KeyboardInterrupt
        return path.with_name(f".unfinished-{path.name}")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(publish, "_unfinished", dying)
        train_demo_run(tmp_path, TINY, to_step=8)
    assert trajectory is not None
    assert (tmp_path / "rl-run/latest_checkpointed_iteration.txt").read_text() == "4"
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


def test_sampling_with_the_cache_follows_the_models_distribution() -> None:
    """First and last sampled tokens have the frequencies that a forward pass without cache gives."""
    model = train_supervised(TINY)
    prompts = prompt_tokens(torch.tensor([[123, 456], [900, 100]]))
    answers = sample_answers(model, prompts, 4000, generator(TINY, 3))
    with torch.no_grad():
        probabilities = answer_logits(model, prompts.repeat_interleave(4000, dim=0), answers).softmax(-1)
    for position in (0, 4):
        for rows in (slice(0, 4000), slice(4000, 8000)):
            frequency = torch.bincount(answers[rows, position], minlength=16) / 4000
            torch.testing.assert_close(frequency, probabilities[rows, position].mean(0), atol=0.04, rtol=0.0)


def test_advantages_are_group_normalised() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    advantages = group_advantages(rewards)
    torch.testing.assert_close(advantages.mean(1), torch.zeros(3))
    torch.testing.assert_close(advantages.std(1), torch.tensor([1.0, 0.0, 1.0]), atol=1e-4, rtol=0.0)
    assert (advantages[0, 0] > 0) and (advantages[0, 1:] < 0).all()


def test_tokens_after_the_end_do_not_count() -> None:
    model = build_model(TINY)
    prompts = prompt_tokens(torch.tensor([[123, 456]]))
    first, second = (torch.tensor([[0, 5, EOS, *rest]]) for rest in ((1, 2), (9, EOS)))
    losses = [policy_loss(model, prompts, answers, torch.ones(1)) for answers in (first, second)]
    expected = -answer_logits(model, prompts, first).log_softmax(-1).gather(-1, first[..., None])[0, :3].mean()
    torch.testing.assert_close(losses[0], expected)
    torch.testing.assert_close(losses[1], expected)


def test_one_update_raises_the_probability_of_rewarded_samples() -> None:
    """Fails if the sign of the gradient is wrong: rewarded answers become likelier, the others of their group less."""
    model = train_supervised(TINY)
    prompts = prompt_tokens(torch.tensor([[123, 456]])).repeat(8, 1)
    answers = answer_tokens(torch.tensor([[123, 456]])).repeat(8, 1)
    answers[1:, 3] = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    rewards = exact_match(answers, answer_tokens(torch.tensor([[123, 456]])))
    assert rewards.tolist() == [1.0] + [0.0] * 7
    before = log_probability(model, prompts, answers)
    policy_loss(model, prompts, answers, group_advantages(rewards[None]).flatten()).backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    optimizer.step()
    change = log_probability(model, prompts, answers) - before
    assert change[0] > 0
    assert change[0] > change[1:].max()


def log_probability(model: torch.nn.Module, prompts: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits = answer_logits(model, prompts, answers).log_softmax(-1)
    return logits.gather(-1, answers[..., None]).sum(dim=(1, 2))


def test_reward_rises() -> None:
    """RL teaches this model, which begins almost blind, at least the first digit's and the end's place."""
    task = replace(TINY, prompts=32, samples=16, grpo_lr=3e-3, supervised_steps=150, reversed_share=0.5)
    model = train_supervised(task)
    optimizer = build_optimizer(model)
    few = torch.tensor([[100, 100], [500, 500], [200, 100], [300, 300]])
    rewards = [grpo_step(model, optimizer, task, few, step, generator(task, 3, step)) for step in range(1, 41)]
    assert sum(rewards[-5:]) / 5 > 3 * sum(rewards[:5]) / 5 + 0.1


def test_learning_rate_goes_up_then_down() -> None:
    rates = [one_cycle(step, 100) for step in range(100)]
    assert max(rates) == 1.0 and rates.index(1.0) <= 5
    assert rates[5:] == sorted(rates[5:], reverse=True) and 0.0 < rates[-1] < 0.05


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, relex_core.demo as demo; demo.DEMO_TASKS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
