"""Hub id, folder, GGUF file, adapter → `CausalLM(body, head, tokenizer)`, proven on every load."""

import contextlib
import inspect
import json
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.distributed import DistributedConfig

from eaft_probe.errors import ModelError, one_line
from eaft_probe.model.adapter_patterns import require_quick
from eaft_probe.model.body import UpToHead, named_body, taken_apart
from eaft_probe.model.foreign import loads, quiet
from eaft_probe.model.gguf import model_folder, whole_model
from eaft_probe.model.head import Head, head_of
from eaft_probe.model.lengths import Border, borders, forget_lengths, longest_input
from eaft_probe.model.prefix import empty_prefix
from eaft_probe.model.proof import TOLERANCE, proof_ids, prove, why_unshared
from eaft_probe.model.resolve import find_model, require_plain
from eaft_probe.model.tensor_parallel import sharded

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class CausalLM:
    """A causal language model in two parts: `head(body(x))` are its logits; see `proof.py`."""

    body: PreTrainedModel | UpToHead
    head: Head
    tokenizer: PreTrainedTokenizerBase
    name: str
    config: PreTrainedConfig
    parameters: int
    whole: PreTrainedModel = field(repr=False)  # to train and save
    _prefix: tuple[torch.Tensor, DynamicCache] | None = field(default=None, repr=False)

    @property
    def described(self) -> str:
        """Its name and its class, for messages."""
        return f"{self.name} ({type(self.whole).__name__})"

    @property
    def device(self) -> torch.device:
        """Where the body's input goes."""
        return _device(self.whole)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.body.parameters()).dtype  # type: ignore[no-any-return]

    @property
    def max_length(self) -> int:
        """The longest input, in tokens."""
        return longest_input(self.config, self.tokenizer)

    @torch.inference_mode()
    def hidden(self, input_ids: torch.Tensor, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T) ids after a common prefix (P,) → (B, T, D) states that the head reads.

        No mask is passed: padding stands at the right, where causal attention never looks.
        """
        input_ids = input_ids.to(self.device)
        if prefix is None or not len(prefix):
            self._prefix = None
            return self._last(input_ids=input_ids, use_cache=False)
        cache = {self.cache_name: self._cached(prefix)}
        return self._last(input_ids=input_ids, use_cache=True, **cache)

    def _cached(self, prefix: torch.Tensor) -> DynamicCache:
        """The prefix's keys and values, kept for the next batches that share it."""
        if self._prefix is None or not torch.equal(self._prefix[0], prefix):
            cache = empty_prefix(self.config)
            options = {"input_ids": prefix[None].to(self.device), self.cache_name: cache}
            self._last(use_cache=True, **options)
            self._prefix = (prefix, cache)
        return self._prefix[1]

    @cached_property
    def cache_name(self) -> str:
        """What the body calls keys and values read before; transformers 5.24 has renamed it."""
        renamed = "cache" in inspect.signature(self.body.forward).parameters
        return "cache" if renamed else "past_key_values"

    def _last(self, **inputs: object) -> torch.Tensor:
        return self.body(**inputs)[0]  # type: ignore[no-any-return]

    @cached_property
    def cost(self) -> tuple[float, float] | None:
        """Multiplications for a token, and for a pair of positions; None where no prefix can be
        shared."""
        if self.unshared is not None:
            return None
        config, heads = self.config, self.config.num_attention_heads
        looked_up = {id(m.weight) for m in self.body.modules() if isinstance(m, torch.nn.Embedding)}
        linear = sum(p.numel() for p in self.body.parameters() if id(p) not in looked_up)
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return linear, 2 * config.num_hidden_layers * heads * width

    unshared = cached_property(why_unshared)  # the reason, where rows cannot share a prefix

    @cached_property
    def borders(self) -> tuple[Border, ...]:
        """Lengths beyond which numbers depend on the length of the whole input."""
        return borders(self.config)

    @property
    def tolerance(self) -> float:
        """Largest relative difference of numbers that should be the same except for rounding."""
        return TOLERANCE[self.dtype]


@loads
def load_model(
    name: str,
    *,
    adapter: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | dict[str, str] | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    merge_adapter: bool = False,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    tp: bool = False,
) -> CausalLM:
    """Loads and proves a model. Raises `ModelError`.

    `dtype` "auto": the checkpoint's on a GPU, float32 on a CPU, where half precision is slower.
    `merge_adapter`: the adapter is added to the weights, to train on from them. `load_in_4bit`:
    linear layers except the head in NF4, as for QLoRA (arXiv 2305.14314); `load_in_8bit`: in
    LLM.int8() (arXiv 2208.07339). `tp`: this rank holds its shards, see `tensor_parallel.py`;
    all ranks load at once.
    """
    place = find_model(name, revision)
    if not allow_pickle:
        place.require_safetensors()
    device = resolve_device(device)
    quantization = _quantization(load_in_4bit, load_in_8bit, device)
    tokenizer = load_tokenizer(
        name, adapter=adapter, revision=revision, trust_remote_code=trust_remote_code
    )
    with quiet():
        model = whole_model(
            model_folder(place),
            dtype=loading_dtype(dtype, device),
            device_map=device_map or ({"": device} if quantization else None),
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=None if allow_pickle else True,
            quantization_config=quantization,
            distributed_config=DistributedConfig(tp_plan="auto") if tp else None,
        )
        if quantization:
            keep_trainable(model)
        elif device_map is None and not tp:
            model.to(device)
        if adapter is not None:
            model = _with_adapter(model, adapter, len(tokenizer), allow_pickle, merge_adapter)
        model.eval()
    forget_lengths(model)
    return taken_apart_and_proven(model, tokenizer, name, tp)


def taken_apart_and_proven(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, tp: bool = False
) -> CausalLM:
    """Of a model in evaluation mode. Raises `ModelError`."""
    parameters = sum(p.numel() for p in model.parameters())
    head = head_of(model)
    if tp:
        body, head = named_body(model), sharded(head)
    else:
        with torch.inference_mode():
            body, head = taken_apart(model, proof_ids(head.vocab_size).to(_device(model)))
    config = model.config.get_text_config()
    loaded = CausalLM(body, head, tokenizer, name, config, parameters, model)
    prove(loaded, far=not tp)  # shards have the ropes of the whole
    _ = loaded.max_length  # a number in its config and tokenizer, or refused here
    return loaded


@loads
def load_tokenizer(
    name: str,
    *,
    adapter: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """The tokenizer alone, with its chat template: the adapter's, where it has one of its own.

    It gets an attribute `stop_token_ids`: where the model's generation stops. Raises `ModelError`.
    """
    folder = model_folder(find_model(name, revision))
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(
            own_tokenizer(adapter) or folder, trust_remote_code=trust_remote_code
        )
    tokenizer.name_or_path = name
    tokenizer.stop_token_ids = _stop_token_ids(folder)
    return tokenizer


def own_tokenizer(adapter: str | None) -> str | None:
    """The adapter's folder, where it brings a tokenizer."""
    return adapter if adapter and (Path(adapter) / "tokenizer_config.json").exists() else None


def _stop_token_ids(folder: Path) -> list[int]:
    """The end-of-sequence tokens of the generation config, or else of the config."""
    for name in ("generation_config.json", "config.json"):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            ids = json.loads((folder / name).read_text()).get("eos_token_id")
            ids = ids if isinstance(ids, list) else [ids]
            if all(isinstance(i, int) for i in ids):
                return ids
    return []


def resolve_device(device: str) -> str:
    """ "auto" is the GPU where there is one. Raises `ModelError` for a device that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"--device {device} cannot be used: {one_line(error, 120)}") from error
    return device


def _device(model: PreTrainedModel) -> torch.device:
    """Where input goes. Weights that `accelerate` keeps in the CPU's memory or on disk are run
    on the device that they are brought to."""
    first: torch.device = next(model.parameters()).device
    if first.type != "meta":
        return first
    used = (d for d in model.hf_device_map.values() if str(d) not in ("cpu", "disk"))
    return torch.device(next(used, "cpu"))


def loading_dtype(dtype: str, device: str) -> torch.dtype | str:
    """What a model is loaded in; "auto" is the checkpoint's own."""
    if dtype == "auto":
        return torch.float32 if device == "cpu" else "auto"
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; --dtype takes auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _quantization(load_in_4bit: bool, load_in_8bit: bool, device: str) -> BitsAndBytesConfig | None:
    """Products in bfloat16 on a GPU, where adapters and the rest are float32 all the same."""
    if not (load_in_4bit or load_in_8bit):
        return None
    if find_spec("bitsandbytes") is None:
        raise ModelError("quantizing needs bitsandbytes; run pip install 'eaft-probe[qlora]'")
    if load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32 if device == "cpu" else torch.bfloat16,
    )


def keep_trainable(model: PreTrainedModel) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes (0.50) packs weights in the first pass in evaluation
    mode, for products without a gradient, and never unpacks them: an evaluation would make all
    later gradients wrong without an error."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _with_adapter(
    model: PreTrainedModel, adapter: str, tokens: int, allow_pickle: bool, merge: bool
) -> PreTrainedModel:
    """The model with a PEFT adapter's layers inside, or merged into its own; with room for all
    `tokens` of its tokenizer, which may have added some."""
    if not (Path(adapter) / "adapter_config.json").exists():
        raise ModelError(f"--adapter {adapter} has no adapter_config.json")
    require_plain(Path(adapter))
    if not allow_pickle and not (Path(adapter) / "adapter_model.safetensors").exists():
        raise ModelError(
            f"--adapter {adapter} has no adapter_model.safetensors; "
            f"pickled weights need --allow-pickle"
        )
    from peft import PeftConfig, PeftModel

    if PeftConfig.from_pretrained(adapter).is_prompt_learning:
        raise ModelError(
            f"--adapter {adapter} is a learned prompt; give an adapter that changes layers"
        )
    require_quick(adapter, (name for name, _ in model.named_modules()))
    if own_tokenizer(adapter) and tokens > len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(tokens, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings")  # of saving; it is read
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        warnings.filterwarnings("error", message="Found missing adapter keys")
        adapted = PeftModel.from_pretrained(model, adapter)
    return adapted.merge_and_unload() if merge else adapted.get_base_model()
