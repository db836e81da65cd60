"""Prompts as token ids → a model's answers as token ids, sampled by `transformers`.

This file batches prompts of similar length, and reads only once a beginning that they share, and
a prompt that gets several answers.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from os.path import commonprefix  # of any sequences, not only paths

import torch
from transformers import Cache, GenerationConfig
from transformers.utils import ModelOutput

from eaft_probe.errors import ProbeError
from eaft_probe.model.foreign import quiet
from eaft_probe.model.lengths import regimes
from eaft_probe.model.loading import CausalLM

# A pass of its own for the beginning that prompts share reads all weights once more: below this
# many tokens saved it does not pay.
WORTH_SHARING = 64
Ids = Sequence[int]
Report = Callable[[int, int], None]  # prompts answered, tokens sampled


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn. `temperature` 0 takes the likeliest token every time."""

    n: int
    temperature: float
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Sampled tokens, without the one that ended them: `stop`, None where the length did."""

    ids: tuple[int, ...]
    stop: int | None

    @classmethod
    def of(cls, ids: Ids, stops: frozenset[int]) -> "Answer":
        """What was sampled up to the first of `stops`; padding follows that one."""
        end = next((i for i, token in enumerate(ids) if token in stops), None)
        return cls(tuple(ids[:end]), None if end is None else ids[end])

    @property
    def finish(self) -> str:
        return "length" if self.stop is None else "stop"

    @property
    def tokens(self) -> int:
        """How many were sampled."""
        return len(self.ids) + (self.stop is not None)


class Generator:
    """Answers prompts by `transformers`' `generate`, in batches of at most `batch_size` answers.
    The same seed and prompts, in the same order, give the same answers."""

    def __init__(self, model: CausalLM, sampling: Sampling, batch_size: int) -> None:
        self.model, self.sampling, self.batch_size = model, sampling, batch_size
        ids = model.whole.generation_config.eos_token_id
        self.own_stops = frozenset([] if ids is None else [ids] if isinstance(ids, int) else ids)
        # `generate` would take every other option from here: a model's own top_k or
        # repetition_penalty would silently change the answers.
        model.whole.generation_config = GenerationConfig()
        self.shares = model.cost is not None and not model.borders
        self.regime = regimes(model.borders)

    def sample(
        self, prompts: Sequence[Ids], stops: Iterable[int], seed: str, report: Report
    ) -> list[list[Answer]]:
        """Raises `ProbeError` where the memory does not hold a batch."""
        all_stops = frozenset(stops) | self.own_stops
        answers: list[list[Answer]] = [[] for _ in prompts]
        with quiet(), seeded(seed):
            for rows, copies in self._batches([len(p) for p in prompts]):
                asked = [prompts[row] for row in rows]
                for index, ids in enumerate(self._samples(asked, copies, all_stops, report)):
                    answers[rows[index // copies]].append(Answer.of(ids, all_stops))
                report(sum(len(answers[row]) == self.sampling.n for row in rows), 0)
        return answers

    def _batches(self, lengths: Sequence[int]) -> Iterator[tuple[list[int], int]]:
        """Which prompts are answered together, the longest first, and how often each."""
        n, order = self.sampling.n, sorted(range(len(lengths)), key=lambda row: -lengths[row])
        prompts_at_once = max(1, self.batch_size // n)
        for _, group in groupby(order, lambda row: self._padding_group(lengths[row])):
            rows = list(group)
            for first in range(0, len(rows), prompts_at_once):
                for copy in range(0, n, self.batch_size):
                    yield rows[first : first + prompts_at_once], min(n - copy, self.batch_size)

    def _padding_group(self, length: int) -> tuple[int, ...]:
        """The same for prompts whose answers may be padded to one length: a side of the border of
        the model's rope, or the length itself where the answer may cross it."""
        before, after = self.regime(length), self.regime(length + self.sampling.max_new_tokens)
        return before if before == after else (length,)

    def _samples(
        self, prompts: Sequence[Ids], copies: int, stops: frozenset[int], report: Report
    ) -> list[list[int]]:
        """`copies` answers of the first prompt, then those of the next; padding at the right."""
        try:
            ids, mask, cache = self._read(prompts, copies)
            ids, mask = (t.repeat_interleave(copies, 0) for t in (ids, mask))
            config = generation_config(self.sampling, stops)
            reports = [_StepReport(stops, report)]
            output = self._generate(ids, mask, cache, config, stopping_criteria=reports)
        except torch.OutOfMemoryError as error:
            raise ProbeError(
                f"out of memory for {len(prompts) * copies} answers at once; "
                f"lower --batch-size {self.batch_size} or --max-new-tokens"
            ) from error
        return output.sequences[:, ids.shape[1] :].tolist()  # type: ignore[no-any-return]

    def _read(
        self, prompts: Sequence[Ids], copies: int
    ) -> tuple[torch.Tensor, torch.Tensor, Cache | None]:
        """(B, T) padded ids, their mask, and a cache of what is read beforehand, for all copies:
        the common beginning, and all but the last token where there are several copies."""
        common = self._common(prompts)
        ids, mask = (t.to(self.model.device) for t in _padded(prompts, common))
        cache = None
        if common:
            cache = self._cached(ids[:1, :common], mask[:1, :common], None)
            cache.batch_repeat_interleave(len(prompts))
        if copies > 1 and self.shares:
            cache = self._cached(ids, mask, cache)
            cache.crop(-1)  # the last token's state is what the first of the answer comes from
            cache.batch_repeat_interleave(copies)
        return ids, mask, cache

    def _common(self, prompts: Sequence[Ids]) -> int:
        """Tokens that all prompts begin with, where it pays to read them once."""
        common = min(len(commonprefix([list(p) for p in prompts])), min(map(len, prompts)) - 1)
        return common if self.shares and common * (len(prompts) - 1) >= WORTH_SHARING else 0

    def _cached(self, ids: torch.Tensor, mask: torch.Tensor, cache: Cache | None) -> Cache:
        """The keys and values of `ids`, of which `cache` already has a beginning."""
        one_token = GenerationConfig(max_new_tokens=1, do_sample=False, pad_token_id=0)
        return self._generate(ids, mask, cache, one_token).past_key_values

    def _generate(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        cache: Cache | None,
        config: GenerationConfig,
        **options: object,
    ) -> ModelOutput:
        cached = {} if cache is None else {self.model.cache_name: cache}
        return self.model.whole.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            return_dict_in_generate=True,
            **cached,
            **options,
        )


def generation_config(sampling: Sampling, stops: frozenset[int]) -> GenerationConfig:
    """Temperature and top-p and nothing else; the default of `top_k` is 50."""
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampling.temperature != 0,
        eos_token_id=sorted(stops) or None,
        pad_token_id=min(stops, default=0),  # so that no token of an answer is taken for it
    )
    if config.do_sample:
        config.update(temperature=sampling.temperature, top_p=sampling.top_p, top_k=0)
    return config


class _StepReport:
    """A stopping criterion that never stops anything: it reports the tokens of each step."""

    def __init__(self, stops: frozenset[int], report: Report) -> None:
        self.stops, self.report = torch.tensor(sorted(stops), dtype=torch.long), report
        self.left: torch.Tensor | None = None  # (B,) rows that are not finished

    def __call__(self, ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        never = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        left = ~never if self.left is None else self.left
        self.report(0, int(left.sum()))
        self.left = left & ~torch.isin(ids[:, -1], self.stops.to(ids.device))
        return never


@contextmanager
def seeded(seed: str) -> Iterator[None]:
    """The random numbers of a seed; the caller's own continue afterwards as if none had been drawn.

    By eight bytes of the seed's hash: seeds that differ in a digit have nothing in common."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big"))
        yield


def _padded(prompts: Sequence[Ids], common: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids and mask. Padding is at the left of what is not common to all."""
    longest = max(map(len, prompts))
    ids = torch.zeros((len(prompts), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        start = longest - (len(prompt) - common)
        ids[row, :common] = torch.tensor(prompt[:common], dtype=torch.long)
        ids[row, start:] = torch.tensor(prompt[common:], dtype=torch.long)
        mask[row, :common] = mask[row, start:] = 1
    return ids, mask
