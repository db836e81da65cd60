"""vLLM's model runner (V1) and its `LLM` as far as prompts go, over a body that is a table or, in
`LLM`, a model of transformers.

A hidden state depends on all tokens up to its own, so that no two rows are alike by chance. Each
trap of `Traps` is something that the real engine does, or did to others.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from eaft_probe.engines.vllm_worker import ColumnsExtension

VOCAB, WIDTH, CONTEXT = 50, 8, 24
WEIGHT = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1))
WEIGHT[: VOCAB // 5] = WEIGHT[-VOCAB // 5 :]  # tokens that are always as likely as another
States = Callable[[Sequence[int]], torch.Tensor]


def states(ids: Sequence[int]) -> torch.Tensor:
    """(T, D)"""
    total = torch.zeros(WIDTH)
    rows = []
    for token in ids:
        total = torch.tanh(0.7 * total + torch.sin(torch.arange(1.0, WIDTH + 1) * (token + 1)))
        rows.append(2 * total)
    return torch.stack(rows)


@dataclass
class Traps:
    chunk: int = 1000  # tokens of a step
    early: int = 0  # tokens that are counted as read before they are
    padding: int = 0  # columns of the logits that stand for no token; below 0: that are missing
    scale: float = 1.0
    softcap: float | None = None
    preempted: bool = False  # the first request is thrown out in its middle, and read again
    cached: int = 0  # tokens at the beginning that are not computed
    last_row: bool = False  # logits of the row that predicts what comes after the prompt, too
    mixed_up: bool = False  # the account of a token is that of the one before it
    rank: int = 0  # by which the account is too high
    backwards: bool = False  # the last request runs first
    error: Exception | None = None  # that it ends with
    without_hook: bool = False  # another inside: prompt logits are made elsewhere


class Model(torch.nn.Module):
    def __init__(self, traps: Traps, weight: torch.Tensor) -> None:
        super().__init__()
        self.traps, self.weight = traps, weight
        self.logits_processor = torch.nn.Identity()
        self.logits_processor.soft_cap = traps.softcap
        self.logits_processor.scale = traps.scale

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = hidden @ self.weight.T
        if self.traps.softcap is not None:
            logits = self.traps.softcap * torch.tanh(logits / self.traps.softcap)
        missing = (0, self.traps.padding)
        return torch.nn.functional.pad(logits * self.traps.scale, missing, value=-torch.inf)


@dataclass
class Request:
    prompt_token_ids: list[int]
    sampling_params: Any
    num_computed_tokens: int = 0
    logprobs: dict[int, tuple[float, int]] = field(default_factory=dict)  # position → and rank


class Runner:
    def __init__(self, traps: Traps, states: States, weight: torch.Tensor) -> None:
        self.traps, self.states, self.model = traps, states, Model(traps, weight)
        self.requests: dict[str, Request] = {}
        self.input_batch: Any = None
        self.query_start_loc: Any = None

    def step(self, scheduled: dict[str, int]) -> None:
        """Reads so many more tokens of each request, as one batch."""
        counts = list(scheduled.values())
        self.input_batch = SimpleNamespace(req_ids=list(scheduled), num_reqs=len(counts))
        self.query_start_loc = SimpleNamespace(np=np.cumsum([0, *counts]))
        pieces = []
        for name, count in scheduled.items():
            start = self.requests[name].num_computed_tokens
            pieces.append(self.states(self.requests[name].prompt_token_ids)[start : start + count])
            self.requests[name].num_computed_tokens += self.traps.early
        hidden = torch.cat(pieces)
        if self.traps.without_hook:
            self._elsewhere(hidden, scheduled)
        else:
            self._get_prompt_logprobs_dict(hidden, scheduled)
        self.model.compute_logits(hidden[np.cumsum(counts) - 1])  # of what is sampled next
        for name, count in scheduled.items():
            self.requests[name].num_computed_tokens += count - self.traps.early

    def _get_prompt_logprobs_dict(self, hidden: torch.Tensor, scheduled: dict[str, int]) -> None:
        self._elsewhere(hidden, scheduled)

    def _elsewhere(self, hidden: torch.Tensor, scheduled: dict[str, int]) -> None:
        for name in self.requests:  # in the order in which they came, not that of the batch
            if name not in scheduled:
                continue
            request = self.requests[name]
            start = request.num_computed_tokens - self.traps.early
            rows = len(request.prompt_token_ids) - start - 1
            count = min(scheduled[name], rows)
            if count <= 0:
                continue
            row = int(self.query_start_loc.np[self.input_batch.req_ids.index(name)])
            beyond = self.traps.last_row and count == rows < scheduled[name]
            logits = self.model.compute_logits(hidden[row : row + count + beyond])
            logprobs = logits.log_softmax(1)
            for at in range(count):
                label = request.prompt_token_ids[start + 1 + at]
                rank = int((logprobs[at] >= logprobs[at, label]).sum()) + self.traps.rank
                request.logprobs[start + 1 + at] = (float(logprobs[at, label]), rank)


class Llm(ColumnsExtension):
    """`vllm.LLM`, and its worker at once."""

    def __init__(
        self, traps: Traps, states: States = states, weight: torch.Tensor = WEIGHT
    ) -> None:
        self.traps, self.model_runner = traps, Runner(traps, states, weight)
        self.longest = CONTEXT + 1

    def collective_rpc(self, method: str, args: Sequence[Any] = ()) -> list[Any]:
        return [getattr(self, method)(*args), None]  # the second rank has no logits

    def generate(self, prompts: Sequence[Any], params: Sequence[Any], use_tqdm: bool) -> list[Any]:
        if self.traps.error is not None:
            raise self.traps.error
        runner = self.model_runner
        ids = [p["prompt_token_ids"] for p in prompts]
        if max(map(len, ids)) >= self.longest:
            raise ValueError(f"a prompt and a token to sample exceed {self.longest} tokens")
        runner.requests = {
            f"{number}-{id(p)}": Request(i, p, self.traps.cached)
            for number, (i, p) in enumerate(zip(ids, params, strict=True))
        }
        for scheduled in self._schedule():
            runner.step(scheduled)
        return [self._output(request) for request in runner.requests.values()]

    def _schedule(self) -> Iterator[dict[str, int]]:
        """Steps of at most `chunk` tokens, until all prompts are read."""
        requests, thrown_out = self.model_runner.requests, not self.traps.preempted
        names = list(requests)[:: -1 if self.traps.backwards else 1]
        while True:
            room, scheduled = self.traps.chunk, {}
            for name in names:
                left = len(requests[name].prompt_token_ids) - requests[name].num_computed_tokens
                if taken := min(room, left):
                    scheduled[name], room = taken, room - taken
            if not scheduled:
                return
            yield scheduled
            if not thrown_out:
                thrown_out, requests[names[0]].num_computed_tokens = True, 0

    def _output(self, request: Request) -> Any:
        length = len(request.prompt_token_ids)
        pairs = [request.logprobs.get(p, (0.0, 1)) for p in range(1, length)]
        pairs = [pairs[-1], *pairs[:-1]] if self.traps.mixed_up else pairs
        return SimpleNamespace(
            prompt_logprobs=SimpleNamespace(
                logprobs=[pair[0] for pair in pairs], ranks=[pair[1] for pair in pairs]
            )
        )


class LLM(Llm):
    """With the arguments that it must get, over a model of transformers."""

    def __init__(
        self,
        *,
        model: str,
        dtype: str,
        max_model_len: int,
        enable_prefix_caching: bool,
        worker_extension_cls: str,
        traps: Traps | None = None,
        **given: Any,
    ) -> None:
        assert worker_extension_cls == "eaft_probe.engines.vllm_worker.ColumnsExtension"
        assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"
        assert not enable_prefix_caching
        whole = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)

        @torch.inference_mode()
        def states(ids: Sequence[int]) -> torch.Tensor:
            return whole.model(torch.tensor([ids])).last_hidden_state[0]

        super().__init__(traps or Traps(), states, whole.lm_head.weight.detach())
        self.longest, self.dtype = max_model_len, dtype
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: None))
