"""A model whose body runs in vLLM: windows of tokens → columns, proven on every token.

The statistics are made in vLLM's workers (`vllm_worker.py`) and compared here with the label's
log-probability and rank, which vLLM itself gives for every token of a prompt.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from eaft_probe.columns.measure import TokenColumns
from eaft_probe.columns.statistics import Statistic
from eaft_probe.data.batches import TokenBatch, Window
from eaft_probe.engines.vllm_worker import POSITIONS, REQUEST
from eaft_probe.errors import BadInput, ModelError, ProbeError, one_line
from eaft_probe.model.foreign import quiet
from eaft_probe.model.gguf import model_folder
from eaft_probe.model.head import Head
from eaft_probe.model.lengths import borders, longest_input
from eaft_probe.model.loading import DTYPES, load_tokenizer, resolve_device
from eaft_probe.model.resolve import ModelFiles, find_model

# Ours against vLLM's log-softmax of the same logits, in nats or relative: what float32 rounds.
BOUND = 1e-4
ENVIRONMENT = {
    # V2 makes the logits of all requests in chunks of its own; see `vllm_worker.py`.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    # A row as long as the context, and one token sampled behind it, which nothing reads.
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass
class VllmModel:
    """What a `Scorer` needs of a model; `measure` takes the place of the local kernel."""

    llm: Any
    tokenizer: PreTrainedTokenizerBase
    files: ModelFiles
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
            self._refuse(batch.window, int(differs.argmax()), logprobs, columns["logprob"])
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
        prompts = [{"prompt_token_ids": window.ids.tolist()} for window in windows]
        outputs = self.llm.generate(prompts, asked, use_tqdm=False)
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
        streams = [s for s in self.llm.collective_rpc("eaft_probe_take") if s is not None]
        if not streams:
            raise self._unusable("it made no logits of prompts")
        table = pa.ipc.open_stream(streams[0]).read_all()
        columns = {name: table[name].to_numpy() for name in table.column_names}
        keys = np.stack([columns.pop("request"), columns.pop("position")], axis=1)[::-1]
        found, last = np.unique(keys, axis=0, return_index=True)
        wanted = [(request, p) for request, w in enumerate(windows) for p in positions(w)]
        if not np.array_equal(found, np.asarray(wanted)):
            raise self._unusable(f"it made logits of {len(found):,} of {len(wanted):,} tokens")
        return {name: column[::-1][last] for name, column in columns.items()}

    def _refuse(
        self, windows: Sequence[Window], index: int, theirs: NDArray[Any], ours: NDArray[Any]
    ) -> None:
        window, position = next(
            (w, p) for n, (w, p) in enumerate((w, p) for w in windows for p in positions(w)) if n == index
        )
        token = self.tokenizer.convert_ids_to_tokens(int(window.ids[position]))
        raise self._unusable(
            f"token {token!r} at position {window.start + position} has log-probability "
            f"{ours[index]:.5f} by its logits, and {theirs[index]:.5f} by its own account"
        )

    def _unusable(self, why: str) -> ProbeError:
        return ProbeError(
            f"vLLM {version()} cannot be used: {why}. Take --engine local, or another version"
        )


def positions(window: Window) -> NDArray[np.int32]:
    """(n,) of its trained tokens, rising."""
    return np.flatnonzero(window.trained).astype(np.int32)


def version() -> str:
    """Raises `BadInput` where vLLM is not installed."""
    try:
        import vllm
    except ImportError as error:
        raise BadInput(f"--engine vllm needs vLLM: pip install 'eaft-probe[vllm]' ({one_line(error)})") from error
    return str(vllm.__version__)


def load_vllm(
    name: str,
    statistics: Sequence[Statistic],
    engine_args: Mapping[str, object],
    *,
    dtype: str,
    device: str,
    revision: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> VllmModel:
    """Starts vLLM with a model. Raises `ModelError`, or `BadInput` without vLLM."""
    version()
    os.environ.update(ENVIRONMENT)
    files = find_model(name, revision)
    if not allow_pickle:
        files.require_safetensors()
    folder = model_folder(files)
    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    with quiet():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    if borders(text):
        raise ModelError(f"the numbers of {name} depend on the length of the input, which vLLM handles in its own way; take --engine local")
    kind = served_dtype(dtype, device, config)
    ...
