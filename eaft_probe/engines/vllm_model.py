"""A model whose body runs in vLLM: windows of tokens → columns, proven on every token.

The statistics are made in vLLM's workers (`vllm_worker.py`) and compared here with the label's
log-probability and rank, which vLLM itself gives for every token of a prompt.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from eaft_probe.columns.measure import TokenColumns, measure
from eaft_probe.columns.statistics import Statistic
from eaft_probe.data.batches import TokenBatch, Window, batch_of
from eaft_probe.engines.vllm_worker import POSITIONS, REQUEST
from eaft_probe.errors import BadInput, ModelError, ProbeError, one_line, out_of_memory
from eaft_probe.model.head import Head
from eaft_probe.model.lengths import longest_input
from eaft_probe.model.loading import CausalLM
from eaft_probe.model.proof import proof_ids

# Ours against vLLM's log-softmax of the same logits, in nats or relative: what float32 rounds.
BOUND = 1e-4
# Between vLLM and `transformers`, in nats: on random ids, log-probabilities of about −20.
APART = {torch.float32: 2e-3, torch.bfloat16: 1.0, torch.float16: 0.1}


@dataclass
class VllmModel:
    """What a `Scorer` needs of a model; `measure` takes the place of the local kernel."""

    llm: Any
    tokenizer: PreTrainedTokenizerBase
    name: str
    config: PreTrainedConfig
    head: Head  # without its weights
    dtype: torch.dtype
    parameters: int
    # vLLM itself decides what is computed together, and shares nothing of a prompt whose logits
    # are asked for.
    cost, borders, unshared = None, (), None

    @property
    def max_length(self) -> int:
        """The longest input, in tokens."""
        return longest_input(self.config, self.tokenizer)

    def measure(self, batch: TokenBatch) -> TokenColumns:
        """The statistics of every trained token, in the order of `batch.targets()`. Raises
        `ProbeError` where vLLM's numbers and ours differ."""
        logprobs, ranks = self._generated(batch.window)
        columns = self._columns(batch.window)
        ties = columns.pop("ties")
        differs = abs(columns["logprob"] - logprobs) > BOUND * (1 + abs(logprobs))
        above = ranks - 1 - columns["rank"]
        differs |= (above < 0) | (above > ties)
        if differs.any():
            first = int(differs.argmax())
            raise self._differs(batch.window, first, columns["logprob"][first], logprobs[first])
        return TokenColumns({name: torch.from_numpy(c) for name, c in columns.items()})

    def _generated(self, windows: Sequence[Window]) -> tuple[NDArray[Any], NDArray[Any]]:
        """vLLM's own (N,) log-probabilities and ranks of the trained tokens."""
        from vllm import SamplingParams

        asked = [
            SamplingParams(
                max_tokens=1,
                temperature=0,
                prompt_logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                extra_args={REQUEST: request, POSITIONS: positions(window).tobytes()},
            )
            for request, window in enumerate(windows)
        ]
        outputs = generate(self.llm, [window.ids.tolist() for window in windows], asked)
        flat = [output.prompt_logprobs for output in outputs]
        # The first token has none: what belongs to position p is the p-1st.
        at = [positions(window) - 1 for window in windows]
        return (
            np.concatenate([np.asarray(f.logprobs)[a] for f, a in zip(flat, at, strict=True)]),
            np.concatenate([np.asarray(f.ranks)[a] for f, a in zip(flat, at, strict=True)]),
        )

    def _columns(self, windows: Sequence[Window]) -> dict[str, NDArray[Any]]:
        """The worker's columns, sorted as the trained tokens are. A request that was interrupted
        and read again comes twice: the last counts."""
        try:
            answers = self.llm.collective_rpc("eaft_probe_take")
        except Exception as error:  # of the worker, in a process of vLLM's
            raise failed(error) from error
        streams = [s for s in answers if s is not None]
        if not streams:
            raise unusable("it made no logits of prompts")
        table = pa.ipc.open_stream(streams[0]).read_all()
        columns = {name: table[name].to_numpy() for name in table.column_names}
        keys = np.stack([columns.pop("request"), columns.pop("position")], axis=1)[::-1]
        found, last = np.unique(keys, axis=0, return_index=True)
        wanted = [(request, p) for request, w in enumerate(windows) for p in positions(w)]
        if not np.array_equal(found, np.asarray(wanted)):
            raise unusable(f"it made logits of {len(found):,} of {len(wanted):,} tokens")
        return {name: column[::-1][last] for name, column in columns.items()}

    def _differs(self, windows: Sequence[Window], index: int, *logprobs: float) -> ProbeError:
        places = ((window, p) for window in windows for p in positions(window))
        window, position = next(islice(places, index, None))
        token = self.tokenizer.convert_ids_to_tokens(int(window.ids[position]))
        ours, theirs = logprobs
        return unusable(
            f"token {token!r} at position {window.start + position} has log-probability {ours:.5f} "
            f"by its logits, and {theirs:.5f} or another rank by its own account"
        )


def positions(window: Window) -> NDArray[np.int32]:
    """(n,) of its trained tokens, rising."""
    return np.flatnonzero(window.trained).astype(np.int32)


def version() -> str:
    """Raises `BadInput` where vLLM is not installed."""
    try:
        import vllm
    except ImportError as error:
        raise BadInput(
            f"--engine vllm needs vLLM: pip install 'eaft-probe[vllm]' ({one_line(error, 120)})"
        ) from error
    return str(vllm.__version__)


def generate(llm: Any, prompts: Sequence[Sequence[int]], asked: Sequence[Any]) -> list[Any]:
    """vLLM's answers to prompts of token ids. Raises `ProbeError` for whatever it raises: it has
    requests left over then, and is not asked again."""
    try:
        requests = [{"prompt_token_ids": list(ids)} for ids in prompts]
        return list(llm.generate(requests, asked, use_tqdm=False))
    except Exception as error:
        raise failed(error) from error


def failed(error: Exception) -> ProbeError:
    """What vLLM raised, as one line."""
    if out_of_memory(error):
        return ProbeError(
            "vLLM is out of memory: give less to its cache with --engine-arg "
            "gpu_memory_utilization=0.8 or lower, or read fewer tokens at once with "
            "max_num_batched_tokens=2048"
        )
    return unusable(one_line(error))


def unusable(why: str) -> ProbeError:
    return ProbeError(f"vLLM {version()} cannot be used: {why}; take --engine local")


@torch.inference_mode()
def compared(served: VllmModel, local: CausalLM, statistics: Sequence[Statistic]) -> float:
    """The largest difference of a log-probability between vLLM and `transformers`, in nats, on a
    short input. Raises `ModelError` where it is more than two orders of summing give."""
    ids = proof_ids(served.head.vocab_size)[0].numpy().astype(np.int32)
    batch = batch_of(ids[:0], [Window(0, 0, ids, np.arange(len(ids)) > 0)])
    theirs, ours = served.measure(batch), measure(local, batch, statistics)
    difference = float((theirs["logprob"] - ours["logprob"]).abs().max())
    if not difference <= (bound := APART[served.dtype]):
        raise ModelError(
            f"the log-probabilities of vLLM and transformers differ by {difference:.2g} nats, more "
            f"than the {bound} that rounding explains; take --engine local"
        )
    return difference


def available_memory() -> int:
    """Bytes that no process uses."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
