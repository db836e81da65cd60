"""Prompts as token ids → a model's answers as token ids, sampled by vLLM."""

import hashlib
from collections.abc import Iterable, Sequence

from eaft_probe.engines.vllm_model import VllmModel, generate
from eaft_probe.model.sampling import Answer, Ids, Report, Sampling


class VllmGenerator:
    """As `Generator`, by vLLM, which decides what is sampled together.

    Each prompt draws from random numbers of its own; what shares a batch changes last digits, and
    so may change an answer.
    """

    def __init__(self, model: VllmModel, sampling: Sampling) -> None:
        self.model, self.sampling = model, sampling

    def sample(
        self, prompts: Sequence[Ids], stops: Iterable[int], seed: str, report: Report
    ) -> list[list[Answer]]:
        """`n` answers to each prompt; those to one are all drawn before they are reported."""
        from vllm import SamplingParams

        own, s = frozenset(stops), self.sampling
        asked = [
            SamplingParams(
                n=s.n,
                temperature=s.temperature,
                top_p=s.top_p,
                max_tokens=s.max_new_tokens,
                stop_token_ids=sorted(own),
                ignore_eos=True,  # `stops` has those of the tokenizer and of the generation config
                seed=_number(f"{seed}/{row}"),
                detokenize=False,
            )
            for row in range(len(prompts))
        ]
        outputs = generate(self.model.llm, prompts, asked)
        answers = [[Answer.of(a.token_ids, own) for a in output.outputs] for output in outputs]
        report(len(answers), sum(a.tokens for of_prompt in answers for a in of_prompt))
        return answers


def _number(seed: str) -> int:
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4])
