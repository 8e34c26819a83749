"""The transformers backend on real models on disk, against transformers' own unbatched answers."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from relex_core.errors import DataError
from relex_core.evaluate.generate import Sampling, batch_seed, conditions, open_generator
from relex_core.evaluate.transformers_backend import TransformersGenerator, _choose
from relex_core.spec import EvaluationSpec

BASE = str(Path(__file__).parent / "data" / "small" / "run" / "base")
STEP = str(Path(__file__).parent / "data" / "small" / "run" / "global_step_16" / "actor" / "huggingface")
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=6, seed=0)


def prompts(count, seed=0):
    """Sums of 1 to 3 digits: 4 to 8 tokens."""
    rng = random.Random(seed)
    return [f"{rng.randrange(10 ** rng.randint(1, 3))}+{rng.randrange(10 ** rng.randint(1, 3))}=" for _ in range(count)]


def alone(folder, prompt, max_tokens):
    """What transformers itself writes after one prompt, unpadded."""
    tokenizer, model = AutoTokenizer.from_pretrained(BASE), AutoModelForCausalLM.from_pretrained(folder).float()
    answers = []
    for text in prompt:
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        new = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )[0, ids.shape[1] :].tolist()
        ended = new[-1] == tokenizer.eos_token_id
        answers.append((tokenizer.decode(new[: -1 if ended else None]), len(new), "stop" if ended else "length"))
    return answers


@pytest.fixture(scope="module")
def trained():
    return TransformersGenerator(STEP, BASE, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def absolute(tmp_path_factory):
    """A random GPT-2 with room for 12 positions: unlike rotary models, it notices where a prompt starts."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    shape = {"vocab_size": 16, "n_positions": 12, "n_embd": 32, "n_layer": 2, "n_head": 2}
    tokens = {"bos_token_id": None, "eos_token_id": 12, "tie_word_embeddings": False}
    model = GPT2LMHeadModel(GPT2Config(**shape, **tokens, initializer_range=0.3))
    model.save_pretrained(folder)
    return str(folder)


def test_padded_batches_answer_like_single_prompts(trained):
    questions = prompts(24)
    assert len({len(question) for question in questions}) >= 4
    got = [(c.text, c.tokens, c.finish_reason) for c in trained.generate(questions, GREEDY)]
    assert got == alone(STEP, questions, GREEDY.max_tokens)
    assert len({text for text, _, _ in got}) > 12


def test_absolute_positions_start_at_the_prompt(absolute):
    questions = prompts(24, seed=1)
    generator = TransformersGenerator(absolute, BASE, device="cpu", dtype="float32")
    room = 12 - max(map(len, questions))
    got = [(c.text, c.tokens, c.finish_reason) for c in generator.generate(questions, GREEDY)]
    assert got == alone(absolute, questions, room)
    assert len({text for text, _, _ in got}) > 6


def test_a_prompt_beyond_the_models_positions_is_refused(absolute):
    generator = TransformersGenerator(absolute, BASE, device="cpu", dtype="float32")
    with pytest.raises(DataError, match="a prompt has 13 tokens"):
        generator.generate(["1=", "1234567890+1="], GREEDY)


def test_finish_reasons_and_token_counts(trained):
    """Trained on four digits and a stop token: five tokens; cut at three there is no stop."""
    [whole] = trained.generate(["123+456="], GREEDY)
    [cut] = trained.generate(["123+456="], Sampling(0.0, 1.0, 3, 0))
    assert (whole.tokens, whole.finish_reason, len(whole.text)) == (5, "stop", 4)
    assert (cut.tokens, cut.finish_reason, cut.text) == (3, "length", whole.text[:3])


def test_sampling_repeats_with_its_seed_and_differs_without(trained):
    questions = prompts(16)

    def texts(seed):
        return [c.text for c in trained.generate(questions, Sampling(1.5, 1.0, 6, seed))]

    torch.manual_seed(1)
    first = texts(7)
    torch.manual_seed(2)
    assert texts(7) == first != texts(8)


def test_tokens_are_drawn_with_the_models_probabilities():
    """Temperature 2 on logits, then the smallest set whose probability reaches top_p."""
    logits = 2 * torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(20000, 1)

    def shares(top_p):
        drawn = _choose(logits, Sampling(2.0, top_p, 1, 0), torch.Generator().manual_seed(0))
        return torch.bincount(drawn[:, 0], minlength=4) / len(logits)

    assert torch.allclose(shares(1.0), torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.015)
    assert torch.allclose(shares(0.75), torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.015)
    assert torch.allclose(shares(0.81), torch.tensor([0.526, 0.316, 0.158, 0.0]), atol=0.015)
    assert shares(0.01).tolist() == [1, 0, 0, 0]


def test_seeds_do_not_collide():
    seeds = {batch_seed(seed, batch, sample) for seed in range(3) for batch in range(50) for sample in range(50)}
    assert len(seeds) == 3 * 50 * 50
    assert batch_seed(0, 1, 2) == batch_seed(0, 1, 2)


def test_missing_weights_are_named_not_made_up(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(STEP, folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=name):
        TransformersGenerator(str(folder), BASE, device="cpu", dtype="float32")


def test_other_shapes_torn_files_and_missing_tokenizers_are_refused(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(STEP, folder)
    weights = folder / "model.safetensors"
    whole, tensors = weights.read_bytes(), load_file(weights)
    tensors["model.norm.weight"] = torch.zeros(5, dtype=torch.bfloat16)
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"model\.norm\.weight"):
        TransformersGenerator(str(folder), BASE, device="cpu", dtype="float32")
    weights.write_bytes(whole[:-10])
    with pytest.raises(DataError, match="cannot be loaded"):
        TransformersGenerator(str(folder), BASE, device="cpu", dtype="float32")
    with pytest.raises(DataError, match="tokenizer"):
        TransformersGenerator(STEP, str(folder), device="cpu", dtype="float32")


def test_not_finite_logits_are_an_error_not_an_answer(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(STEP, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("inf"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    generator = TransformersGenerator(str(folder), BASE, device="cpu", dtype="float32")
    with pytest.raises(DataError, match="not finite"):
        generator.generate(["1+1="], GREEDY)


def test_cpu_generation_is_float32_and_says_so():
    task = {"task": {"name": "a", "file": "a.jsonl"}}
    spec = EvaluationSpec.model_validate({"device": "cpu", "select": task, "confirm": task})
    facts = conditions(spec)
    assert (facts["backend"], facts["device"], facts["dtype"]) == ("transformers", "cpu", "float32")
    assert facts["versions"]["torch"] == torch.__version__
    with open_generator(spec, STEP, BASE) as generator:
        assert next(generator._model.parameters()).dtype == torch.float32
