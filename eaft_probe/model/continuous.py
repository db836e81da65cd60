"""Answers by `transformers`' continuous batching: one that ends makes room for the next.

On a GPU it wastes no step on answers that have ended. On a CPU plain batches are faster.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from eaft_probe.errors import BadInput, ProbeError
from eaft_probe.model.loading import CausalLM, quiet
from eaft_probe.model.sampling import (
    Answer,
    Ids,
    Report,
    Sampling,
    drawing,
    number,
    own_stops,
    seeded,
)

PAGE = 256  # tokens of a page of the cache: the default, whose name differs between versions
# Without a limit the whole free memory of a CPU machine becomes cache: 40 short answers took 50 s.
CPU_STEP = 512  # tokens of a step


class Continuous:
    """A `Sampler` that keeps `batch_size` answers going at once."""

    def __init__(self, model: CausalLM, sampling: Sampling, batch_size: int) -> None:
        """Raises `BadInput` where the model has no continuous batching."""
        self.model, self.sampling, self.batch_size = model, sampling, batch_size
        self.max_length, self.vocab_size = model.max_length, model.head.vocab_size
        if not hasattr(model.whole, "generate_batch"):
            raise BadInput("--engine continuous: this model has no continuous batching; leave "
                           "--engine out")  # fmt: skip
        self.own_stops = own_stops(model.whole.generation_config)
        model.whole.generation_config = GenerationConfig()  # see `Generator`

    def sample(
        self, prompts: Sequence[Ids], stops: Iterable[int], seed: str, report: Report
    ) -> list[list[Answer]]:
        """Raises `ProbeError` where the engine gives an answer up, or has no memory."""
        ends, n = frozenset(stops) | self.own_stops, self.sampling.n
        given = [list(prompt) for prompt in prompts for _ in range(n)]
        try:
            with quiet(), seeded(seed):
                made = self.model.whole.generate_batch(
                    given, generation_config=drawing(self.sampling, ends), warmup=False,
                    continuous_batching_config=self._config(given, seed),
                )  # fmt: skip
        except torch.OutOfMemoryError as error:
            raise ProbeError(f"out of memory; lower --batch-size {self.batch_size}") from error
        answers = [Answer.of(self._whole(o), ends) for o in made.values()]
        if len(answers) != len(given):
            raise ProbeError(f"continuous batching gave {len(answers)} of {len(given)} answers; "
                             f"leave --engine out")  # fmt: skip
        report(len(prompts), sum(a.tokens for a in answers))
        return [answers[at : at + n] for at in range(0, len(answers), n)]

    def _config(self, given: Sequence[Ids], seed: str) -> ContinuousBatchingConfig:
        sized: dict[str, Any] = {}
        if self.model.device.type == "cpu":  # elsewhere it fits the cache to the free memory
            longest = max(map(len, given)) + self.sampling.max_new_tokens
            sized = {"num_blocks": self.batch_size * math.ceil(longest / PAGE),
                     "max_batch_tokens": max(CPU_STEP, self.batch_size)}  # fmt: skip
        return ContinuousBatchingConfig(
            max_requests_per_batch=self.batch_size, seed=number(seed) % 2**31,
            **sized,
        )  # fmt: skip

    def _whole(self, output: Any) -> list[int]:
        if output.error is not None:
            raise ProbeError(f"continuous batching gave up on an answer: {output.error}")
        return list(output.generated_tokens)
