"""Inside vLLM's workers: the statistics of prompt rows, taken where their logits are made.

vLLM makes the logits of a prompt for `prompt_logprobs` alone: `_get_prompt_logprobs_dict` of its
model runner (V1) gives slices of the step's hidden states to the model's `compute_logits`. Where a
slice lies in memory tells whose rows it holds, however many there are at once, in any order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from eaft_probe.columns.measure import TokenColumns, measure_slices, slices
from eaft_probe.columns.statistics import Statistic, chosen_statistics
from eaft_probe.errors import ProbeError
from eaft_probe.model.head import Head

REQUEST, POSITIONS = "eaft_probe_request", "eaft_probe_positions"  # extra arguments of a request
TIE = 1e-4  # nats, relative: what the rounding of a log-softmax makes equal


TIES = Statistic(
    "ties", "tokens", "tokens that are as likely as the label", lambda d: d.ties(TIE), "int32"
)


class ColumnsExtension:
    """Mixed into vLLM's worker by `worker_extension_cls`, called by `collective_rpc`.

    An error while vLLM computes would end it without a word: it is kept until it is asked for.
    """

    model_runner: Any

    def eaft_probe_begin(self, statistics: Sequence[str], vocab: int) -> dict[str, Any]:
        """Measures from now on. What the head does to its product, for the chain factors."""
        self.eaft_probe = Measuring.begun(self.model_runner, statistics, vocab)
        processor = self.eaft_probe.processor
        return {"scale": processor.scale, "softcap": processor.soft_cap}

    def eaft_probe_take(self) -> bytes | None:
        """The columns measured since the last call, as an Arrow stream; None on a rank without.
        Raises what went wrong."""
        return self.eaft_probe.take()


@dataclass
class Measuring:
    """What a runner's rows are measured by, and what has been measured."""

    runner: Any
    processor: Any  # vLLM's logits processor
    vocab: int
    statistics: Sequence[Statistic]
    states: torch.Tensor | None = None  # (rows of the step, D), while prompt rows are made
    copy: torch.Tensor | None = None  # (n, V) of rows that are measured at once
    tables: list[pa.RecordBatch] = field(default_factory=list)
    error: Exception | None = None

    @classmethod
    def begun(cls, runner: Any, names: Sequence[str], vocab: int) -> "Measuring":
        processor = next((m for m in runner.model.modules() if hasattr(m, "soft_cap")), None)
        if processor is None or (processor.soft_cap and processor.scale != 1):
            raise ProbeError("it is not known what its head does to its product")
        if not hasattr(runner, "_get_prompt_logprobs_dict"):
            raise ProbeError("its model runner is not V1, by which rows are told apart")
        self = cls(runner, processor, vocab, (*chosen_statistics(names, reference=False), TIES))
        runner.model.compute_logits = self.watching(runner.model.compute_logits)
        runner._get_prompt_logprobs_dict = self.within(runner._get_prompt_logprobs_dict)
        return self

    def within(self, prompt_logprobs: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.states = hidden_states
            try:
                return prompt_logprobs(hidden_states, *args, **kwargs)
            finally:
                self.states = None

        return wrapped

    def watching(self, compute_logits: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            logits = compute_logits(hidden_states, *args, **kwargs)
            if self.states is not None and logits is not None:
                try:
                    self.measure(hidden_states, logits)
                except Exception as error:
                    self.error = self.error or error
            return logits

        return wrapped

    @torch.inference_mode()
    def measure(self, states: torch.Tensor, logits: torch.Tensor) -> None:
        """Of a slice of the step's states and its (n, V) logits: the trained rows."""
        request, first = self.place(states)
        own = request.sampling_params.extra_args or {}
        if POSITIONS not in own:  # somebody else's request
            return
        positions = np.frombuffer(own[POSITIONS], np.int32)  # of labels, rising
        positions = positions[(positions > first) & (positions <= first + len(states))]
        rows = torch.from_numpy(positions - first - 1).long().to(logits.device)
        labels = torch.tensor([request.prompt_token_ids[p] for p in positions])
        if logits.shape[1] < self.vocab:
            raise ProbeError(f"its logits are {logits.shape[1]:,} of {self.vocab:,} tokens")
        logits = logits[:, : self.vocab]  # without the columns that fill up the shards
        parts = ((part, self.copied(logits, rows[part])) for part in slices(rows, self.vocab))
        head = self.head(states)
        columns = measure_slices(parts, head, states[rows], labels, self.statistics)
        self.tables.append(_table(own[REQUEST], positions, columns))

    def copied(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(n, V) float32, the same memory each time: vLLM still needs its logits."""
        if self.copy is None or len(self.copy) < len(rows):
            self.copy = logits.new_empty((len(rows), self.vocab), dtype=torch.float32)
        if logits.dtype != torch.float32:
            return self.copy[: len(rows)].copy_(logits[rows])
        return torch.index_select(logits, 0, rows, out=self.copy[: len(rows)])

    def place(self, states: torch.Tensor) -> tuple[Any, int]:
        """The request whose rows these are, and the position of the first of them."""
        step = self.states
        assert step is not None
        row = (states.data_ptr() - step.data_ptr()) // (step.stride(0) * step.element_size())
        starts: NDArray[np.int64] = self.runner.query_start_loc.np
        batch = self.runner.input_batch
        index = int(np.searchsorted(starts[: batch.num_reqs + 1], row, side="right")) - 1
        request = self.runner.requests[batch.req_ids[index]]
        return request, request.num_computed_tokens + int(row - starts[index])

    def head(self, states: torch.Tensor) -> Head:
        """Without its weights, which vLLM has in shards."""
        weight = torch.empty(0, states.shape[1], device="meta")
        return Head(weight, None, float(self.processor.scale), self.processor.soft_cap)

    def take(self) -> bytes | None:
        if self.error is not None:
            raise self.error
        tables, self.tables = self.tables, []
        if not tables:
            return None
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, tables[0].schema) as stream:
            for table in tables:
                stream.write_batch(table)
        return bytes(sink.getvalue())


def _table(request: int, positions: NDArray[np.int32], columns: TokenColumns) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "request": np.full(len(positions), request, np.int32),
            "position": positions,
            **{name: column.numpy() for name, column in columns.columns.items()},
        }
    )
