"""Starts vLLM with a model, in this process, and has its workers measure."""

import gc
import os
import random
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from eaft_probe.columns.statistics import Statistic
from eaft_probe.engines.vllm_model import VllmModel, failed, version
from eaft_probe.engines.vllm_worker import ColumnsExtension
from eaft_probe.errors import BadInput, ModelError, one_line
from eaft_probe.model.foreign import loads, quiet
from eaft_probe.model.gguf import model_folder
from eaft_probe.model.head import Head
from eaft_probe.model.lengths import borders, longest_input
from eaft_probe.model.loading import load_tokenizer, loading_dtype, resolve_device
from eaft_probe.model.proof import TOKENS
from eaft_probe.model.resolve import find_model

ENVIRONMENT = {
    # V2 makes the logits of all requests in chunks of its own; see `vllm_worker.py`.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    # The engine in this process, which has all requests before it begins: what it computes together
    # then depends on them alone, not on when they come, and a unit gives the same bytes again.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # A row as long as the context, and one token sampled behind it, which nothing reads.
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
FLAGS = {  # of what the program sets
    "model": "--model",
    "dtype": "--dtype",
    "max_model_len": "--max-length",
    "trust_remote_code": "--trust-remote-code",
}
# The vLLM of this process, which can have one at a time.
_running: MutableMapping[str, Any] = WeakValueDictionary()


@loads
def load_vllm(
    name: str,
    *,
    statistics: Sequence[Statistic],
    engine_arg: Mapping[str, object],
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    max_length: int | None = None,
    gpus: int = 1,
) -> VllmModel:
    """Starts vLLM with a model, whose statistics are then measured in its workers.

    `engine_arg`: what vLLM's `LLM` takes besides (tensor_parallel_size=8), or batch_invariant=true.
    `max_length`: of the longest input, where that is less than the model reads.
    `device`: cuda:N is the N-th group of `gpus`. Raises `ModelError`, or `BadInput` without vLLM.
    """
    device, _, group = device.partition(":")
    if group:
        _take_gpus(int(group), gpus)
    version()
    engine_arg = _into_environment(engine_arg, resolve_device(device))
    files = find_model(name, revision)
    if not allow_pickle:
        files.require_safetensors()
    folder = model_folder(files)
    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    with quiet(), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        whole = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    _require_served(name, config)
    kind = loading_dtype(dtype, resolve_device(device))
    kind = (text.dtype or torch.float32) if isinstance(kind, str) else kind
    longest = longest_input(text, tokenizer)
    llm = _started(
        engine_arg,
        model=str(folder),
        dtype=str(kind).removeprefix("torch."),
        load_format="auto" if allow_pickle else "safetensors",
        max_model_len=min(longest, max(max_length or longest, TOKENS)) + 1,
        trust_remote_code=trust_remote_code,
    )
    head = _measuring(llm, statistics, text)
    return VllmModel(llm, tokenizer, name, text, head, kind, whole.num_parameters())


def _measuring(llm: Any, statistics: Sequence[Statistic], config: PreTrainedConfig) -> Head:
    """Has the workers measure; the head, without its weights. Raises `ProbeError`."""
    begin = ([s.name for s in statistics], config.vocab_size)
    try:
        shape = llm.collective_rpc("eaft_probe_begin", args=begin)[0]
    except Exception as error:  # of the worker, in a process of vLLM's
        raise failed(error) from error
    weight = torch.empty(config.vocab_size, config.hidden_size, device="meta")
    return Head(weight, None, shape["scale"], shape["softcap"])


def stop() -> None:
    """Ends the vLLM of this process, if there is one, and frees what it holds: left to be collected
    at some time, it would end the next one, whose process groups are the same."""
    if (llm := _running.pop("vLLM", None)) is not None:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def _take_gpus(group: int, size: int) -> None:
    """vLLM takes the first GPUs that it sees: this worker sees its own alone."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(1024)))
    own = seen.split(",")[group * size : (group + 1) * size]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)


def _into_environment(engine_arg: Mapping[str, object], device: str) -> dict[str, object]:
    """Sets vLLM's switches that are no arguments, and gives the arguments that are."""
    invariant = bool(engine_arg.get("batch_invariant", False))
    if invariant and device == "cpu":
        raise BadInput("--engine-arg batch_invariant: vLLM has no such mode on a CPU; leave it out")
    os.environ.update(ENVIRONMENT, VLLM_BATCH_INVARIANT=str(int(invariant)))
    return {name: value for name, value in engine_arg.items() if name != "batch_invariant"}


def _require_served(name: str, config: PreTrainedConfig) -> None:
    from vllm import ModelRegistry

    (*_, architecture) = config.architectures or ["a model without an architecture"]
    if architecture not in ModelRegistry.get_supported_archs():
        raise ModelError(f"vLLM {version()} does not serve {architecture}; take --engine local")
    if borders(config.get_text_config()):
        raise ModelError(
            f"the numbers of {name} depend on how long its input is, which vLLM handles in a way "
            f"of its own; take --engine local"
        )


def _started(engine_arg: Mapping[str, object], **own: object) -> Any:
    """vLLM with the arguments. Raises `BadInput` for those that the user may not choose."""
    from vllm import LLM

    own |= {
        "skip_tokenizer_init": True,
        "enable_prefix_caching": False,
        "worker_extension_cls": f"{ColumnsExtension.__module__}.{ColumnsExtension.__name__}",
    }
    if taken := [name for name in engine_arg if name in own]:
        flag = f"; give {FLAGS[taken[0]]}" if taken[0] in FLAGS else ""
        raise BadInput(f"--engine-arg {taken[0]} is set by the program itself{flag}")
    defaults: dict[str, object] = {
        "enforce_eager": True,
        "seed": 0,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    stop()
    try:
        with _undisturbed():
            llm = _running["vLLM"] = LLM(**{**defaults, **engine_arg, **own})
            return llm
    except Exception as error:
        given = ", ".join(f"{name}={value}" for name, value in engine_arg.items())
        raise ModelError(
            f"vLLM does not start{given and f' with {given}'}: {one_line(error)}"
        ) from error


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Undoes what vLLM does to the process that it runs in: it seeds the random numbers and, on a
    CPU, takes `torch.set_num_threads` away."""
    states, set_threads = (random.getstate(), np.random.get_state()), torch.set_num_threads
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_num_threads = set_threads
