"""Answers of tiny random models, against loops that read one prompt a token at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import GenerationConfig

from eaft_probe.errors import ProbeError
from eaft_probe.model.loading import CausalLM, load_model
from eaft_probe.model.sampling import Answer, Generator, Sampling

EOS = 2
Loads = Callable[..., CausalLM]


@pytest.fixture
def loaded(tmp_path: Path) -> Loads:
    def load(architecture: str = "llama", **generation: Any) -> CausalLM:
        model = tiny.build(architecture, max_position_embeddings=512, n_positions=512)
        model.save_pretrained(tmp_path)
        GenerationConfig(**{"eos_token_id": EOS, **generation}).save_pretrained(tmp_path)
        tiny.tokenizer().save_pretrained(tmp_path)
        return load_model(str(tmp_path))

    return load


def ignore(rows: int, tokens: int) -> None: ...


def prompts(common: int, lengths: list[int]) -> list[list[int]]:
    shared = tiny.token_ids(1, common, seed=7)[0].tolist()
    own = [tiny.token_ids(1, n, seed=n)[0].tolist() for n in lengths]
    return [shared + ids for ids in own]


def likeliest(model: CausalLM, prompt: list[int], most: int) -> list[int]:
    """The greedy answer without a cache, padding or `generate`."""
    ids = list(prompt)
    for _ in range(most):
        with torch.no_grad():
            ids.append(int(model.whole(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "mistral", "gemma3", "phi"])
@pytest.mark.parametrize("common", [0, 40])
def test_answers_do_not_depend_on_who_is_beside_them(
    loaded: Loads, architecture: str, common: int
) -> None:
    model, asked = loaded(architecture), prompts(common, [3, 17, 1, 9, 30])
    sampler = Generator(model, Sampling(1, 0, 1.0, 12), batch_size=4)
    made = sampler.sample(asked, [], "0", ignore)
    for prompt, (answer,) in zip(asked, made, strict=True):
        ids = [*answer.ids, *([] if answer.stop is None else [answer.stop])]
        assert ids == likeliest(model, prompt, 12)


def test_a_prompt_is_read_once_for_all_its_answers(loaded: Loads) -> None:
    model, asked, read = loaded(), prompts(40, [5, 8, 8]), list[int]()
    model.whole.register_forward_pre_hook(
        lambda _, args, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    drawn = Generator(model, Sampling(4, 1.0, 1.0, 3), 12).sample(asked, [], "0", ignore)
    assert [len(answers) for answers in drawn] == [4, 4, 4]
    # The common beginning; what is left of each, padded; the last token of each copy; the answers.
    assert read[:3] == [40, 3 * 8, 12]
    assert sum(read[3:]) <= 2 * 12


@pytest.mark.parametrize(("n", "batch_size"), [(5, 2), (3, 4), (1, 1), (2, 100)])
def test_every_prompt_gets_its_answers_in_any_batch(loaded: Loads, n: int, batch_size: int) -> None:
    rows = tokens = 0

    def count(more_rows: int, more_tokens: int) -> None:
        nonlocal rows, tokens
        rows, tokens = rows + more_rows, tokens + more_tokens

    asked = prompts(0, [4, 9, 6])
    made = Generator(loaded(), Sampling(n, 1.0, 1.0, 6), batch_size).sample(asked, [], "0", count)
    assert [len(answers) for answers in made] == [n] * 3
    assert len({a.ids for answers in made for a in answers}) > 1
    assert (rows, tokens) == (3, sum(a.tokens for answers in made for a in answers))


DRAWS = 4000
FOREIGN = {
    "do_sample": True,
    "top_k": 1,
    "temperature": 0.1,
    "repetition_penalty": 9.0,
    "typical_p": 0.2,
    "min_p": 0.9,
    "suppress_tokens": list(range(100)),
    "no_repeat_ngram_size": 1,
}


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.6)])
def test_temperature_and_top_p_are_all_that_is_used(
    loaded: Loads, temperature: float, top_p: float
) -> None:
    model, prompt = loaded(**FOREIGN), prompts(0, [6])[0]
    sampler = Generator(model, Sampling(DRAWS, temperature, top_p, 1), batch_size=DRAWS)
    drawn = sampler.sample([prompt], [], "0", ignore)[0]
    first = torch.tensor([(*a.ids, a.stop)[0] for a in drawn])
    logits = model.whole(input_ids=torch.tensor([prompt])).logits[0, -1].detach().double()
    probs = (logits / temperature).softmax(-1)
    order = probs.argsort(descending=True)
    kept = order[(probs[order].cumsum(0) - probs[order]) < top_p]
    expected = torch.zeros_like(probs)
    expected[kept] = probs[kept] / probs[kept].sum()
    found = first.bincount(minlength=len(probs)) / DRAWS
    assert (found[expected == 0] == 0).all()
    spread = (expected * (1 - expected) / DRAWS).sqrt()
    assert ((found - expected).abs() <= 5 * spread + 1e-9).all()


def test_the_seed_decides_and_the_callers_numbers_go_on(loaded: Loads) -> None:
    sampler, asked = Generator(loaded(), Sampling(1, 1.0, 1.0, 8), 4), prompts(0, [4, 5])
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second, other = (
        sampler.sample(asked, [], seed, ignore) for seed in ("0/1", "0/1", "1/0")
    )
    assert first == second != other
    assert torch.equal(torch.rand(2), expected)


def test_an_answer_ends_at_the_first_of_its_stops(loaded: Loads) -> None:
    assert Answer.of([5, 6, 2, 2, 2], frozenset({2, 7})) == Answer((5, 6), 2)
    assert (Answer((5, 6), 2).finish, Answer((5, 6), 2).tokens) == ("stop", 3)
    assert Answer.of([5, 6], frozenset()) == Answer((5, 6), None)
    assert (Answer((5, 6), None).finish, Answer((5, 6), None).tokens) == ("length", 2)
    sampling, prompt = Sampling(1, 0, 1.0, 9), prompts(0, [4])[0]
    plain = Generator(loaded(eos_token_id=None), sampling, 1)
    ((whole,),) = plain.sample([prompt], [], "0", ignore)
    assert (whole.stop, len(whole.ids)) == (None, 9)
    stop = whole.ids[4]
    ended = Answer(whole.ids[: whole.ids.index(stop)], stop)
    assert plain.sample([prompt], [stop], "0", ignore) == [[ended]]
    own = Generator(loaded(eos_token_id=[EOS, stop]), sampling, 1)
    assert own.sample([prompt], [], "0", ignore) == [[ended]]


def test_too_large_a_batch_says_what_helps(loaded: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = loaded()
    monkeypatch.setattr(model.whole, "generate", full)
    with pytest.raises(ProbeError, match="--batch-size 8"):
        Generator(model, Sampling(1, 1.0, 1.0, 8), 8).sample([[5, 6]], [], "0", ignore)
